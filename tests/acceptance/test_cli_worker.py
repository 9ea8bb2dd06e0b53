"""``proletarian worker`` in one process."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import URL

from sqlalchemy_proletarian import migrate
from tests.integration.support import eventually

from .cli_runs import succeeds
from .programs import plain
from .worker_command import PATIENCE, Project, make_project

BOTH = pytest.mark.parametrize("target", ["jobs:handlers", "jobs:coroutines"])
LEASED = pytest.mark.parametrize("lease", [[], ["--lease", "30s"]], ids=["transaction", "lease"])


@BOTH
@LEASED
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_when_running_jobs_have_ended(
    project: Project, target: str, lease: list[str], number: int
):
    """It exits with 0, the job that ran is done, and the job behind it has not begun."""
    project.put_writes([1, 2], seconds=2)
    with project.started(target, "--concurrency", "1", *lease) as worker:
        worker.wait_for("begins 1")
        worker.send(number)
        assert worker.ends() == 0, worker.output
    assert project.ran() == [1], worker.output
    assert [job.attempts for job in project.queued()] == [0]
    assert "worker-stopped" in worker.output
    assert "Traceback" not in worker.output


@BOTH
def test_a_second_signal_stops_it_at_once(project: Project, target: str):
    """It exits with 130, and the job is due again, its attempt not counted."""
    project.put_writes(seconds=100)
    with project.started(target, "--shutdown-timeout", "80s") as worker:
        worker.wait_for("begins")
        worker.send()
        worker.wait_for("worker-stopping")
        worker.send()
        before = monotonic()
        assert worker.ends() == 130, worker.output
    assert monotonic() - before < 40, "it waited for the job"
    assert [job.attempts for job in project.queued()] == [0]
    assert "Traceback" not in worker.output


def test_a_handler_that_outlives_the_timeout_is_abandoned(project: Project):
    """It exits with 3 after --shutdown-timeout, and says so; the job is due again."""
    project.put_writes(seconds=50)
    with project.started("jobs:handlers", "--shutdown-timeout", "500ms") as worker:
        worker.wait_for("begins")
        worker.send()
        assert worker.ends() == 3, worker.output
    assert "were still running after 0.5 s" in worker.output
    assert [job.attempts for job in project.queued()] == [0]


def test_a_signal_while_it_starts_ends_it_with_0(project: Project):
    """A module that takes long to import is no reason to miss the signal."""
    project.write("slow.py", "print('importing', flush=True)\nimport time\ntime.sleep(60)")
    with project.started("slow:handlers") as worker:
        worker.wait_for("importing")
        worker.stop()


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("jobs:make_worker()", "in a thread"),
        ("jobs:make_worker", "in a thread"),
        ("jobs:make_async_worker()", "in an event loop"),
        ("jobs:handlers", "in a thread"),
        ("jobs:coroutines", "in an event loop"),
    ],
)
def test_the_target_may_be_handlers_a_worker_or_a_factory(project: Project, target: str, kind: str):
    project.put("write", {"number": 7}, queue="critical" if "make_worker" in target else "default")
    done = project.run_alone(target, "--drain")
    assert done.returncode == 0, done.stderr
    assert kind in done.stderr
    assert project.ran() == [7]


def test_plain_functions_run_in_an_event_loop_on_request(project: Project):
    project.put_writes()
    done = project.run("jobs:handlers", "--drain", "--asyncio", "--concurrency", "3")
    assert "3 jobs at a time in an event loop" in done.stderr
    assert project.ran() == [1]


def test_drain_ends_when_no_job_is_due(project: Project):
    """It ran the due jobs, one of which failed, and exits with 0."""
    project.put_writes(range(5))
    project.put("fail", "never")
    done = project.run("jobs:handlers", "--drain")
    assert done.returncode == 0, done.stderr
    assert "drained: 6 runs" in done.stderr
    assert project.ran() == [0, 1, 2, 3, 4]


@BOTH
def test_a_signal_ends_a_drain_when_running_jobs_have_ended(project: Project, target: str):
    project.put_writes([1, 2, 3], seconds=2)
    with project.started(target, "--drain", "--concurrency", "1") as worker:
        worker.wait_for("begins 1")
        worker.stop()
    assert project.ran() == [1]
    assert len(project.queued()) == 2


@BOTH
def test_a_drain_waits_for_a_handler_as_long_as_any_stop(project: Project, target: str):
    project.put_writes(seconds=50)
    with project.started(target, "--drain", "--shutdown-timeout", "1s") as worker:
        worker.wait_for("begins")
        worker.send()
        assert worker.ends() == 3, worker.output
    assert [job.attempts for job in project.queued()] == [0]
    assert "Traceback" not in worker.output


@pytest.mark.parametrize("target", ["jobs:handlers", "jobs:coroutines"])
def test_it_runs_on_sqlite(tmp_path: Path, target: str):
    """The tables have no schema there, and jobs are held by leases."""
    url = URL.create("sqlite", database=str(tmp_path / "shop.db"))
    migrate.upgrade(url)
    project = make_project(tmp_path, url)
    project.put_writes()
    with project.started(target, "--lease", "30s") as worker:
        eventually(project.ran, PATIENCE, about=worker)
        worker.stop()
    assert "each held by a lease of 30 s" in worker.output
    assert "(job, archived_job)" in worker.output.replace("proletarian.", "")
    assert project.statuses() == ["success"]


# What it says.


def test_the_banner_says_what_runs_where(project: Project):
    url = plain(project.url.set(password="hidden", username="postgres"))  # noqa: S106
    done = project.run("jobs:handlers", "--drain", "--queues", "critical,default")
    assert done.stdout == ""
    lines = dict(line.split(None, 1) for line in done.stderr.splitlines() if line[:2] == "  ")
    assert lines["queues"] == "critical, default"
    assert lines["handlers"] == "write, charge, fail (jobs:handlers)"
    assert lines["runs"] == "1 job at a time in a thread, each held by a transaction"
    assert "(proletarian.job, proletarian.archived_job)" in lines["database"]
    assert lines["process"].split(";")[0].isdigit()
    assert "warning" not in done.stderr
    done = project.run("jobs:handlers", "--drain", PROLETARIAN_URL=url)
    assert "hidden" not in done.stderr


def test_the_banner_warns_of_what_is_wrong(project: Project):
    project.put("write", {"number": 1}, queue="bulk")
    project.put("write", {"number": 1}, queue="bulk")
    project.put("unheard-of", None)
    project.put("later", None, process_in=timedelta(hours=1))
    with project.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO proletarian.paused_queue (queue, paused_at) VALUES ('default', now())"
        )
    done = project.run("jobs:handlers", "--drain", "--concurrency", "20", "--lease", "30s")
    warnings = [
        line.partition(" ")[2] for line in done.stderr.splitlines() if line.startswith("warning: ")
    ]
    assert len(warnings) == 5, done.stderr
    assert warnings[0].startswith(
        "this worker does not serve the queue 'bulk', in which 2 jobs are due, the oldest for "
    )
    assert warnings[1:] == [
        (
            "there is no handler of the type 'unheard-of', of which 1 job is due in the queue "
            "'default'"
        ),
        "this worker does not serve the queue 'critical', to which charge is enqueued",
        "the queue 'default' is paused",
        (
            "20 handlers at a time may need more than the 15 connections of the engine's pool, and "
            "then wait for one: --pool-size 20"
        ),
    ]
    more = "--concurrency", "20", "--lease", "30s", "--pool-size", "20"
    assert "connections of" not in project.run("jobs:handlers", "--drain", *more).stderr


def test_quiet_prints_no_banner_and_logs_warnings(project: Project):
    done = project.run("jobs:handlers", "--drain", "--quiet")
    assert "proletarian worker" not in done.stderr
    assert "WARNING" in done.stderr
    assert "does not serve the queue 'critical'" in done.stderr


def test_each_event_is_one_line(project: Project):
    """What a handler raises is told in the line, with its place; --debug shows the traceback."""
    project.put("fail", "not\n\x1b[31mnow")
    lines = project.run("jobs:handlers", "--drain").stderr.splitlines()
    (failed,) = [line for line in lines if "handle-job-exception" in line]
    assert " job_type=fail attempt=1 wait=" in failed
    assert ": ValueError: not \\x1b[31mnow (jobs.py, line " in failed
    assert not any("Traceback" in line for line in lines)
    project.put("fail", "later")
    assert "Traceback" in project.run("jobs:handlers", "--drain", "--debug").stderr


def test_json_lines_are_json(project: Project):
    """Every line of stderr is an object, also warnings; an event's data are its values."""
    project.put("fail", "never")
    done = project.run("jobs:handlers", "--drain", "--log-format", "json")
    records = [json.loads(line) for line in done.stderr.splitlines()]
    (failed,) = [record for record in records if record.get("event") == "handle-job-exception"]
    assert failed["job_type"] == "fail"
    assert failed["level"] == "WARNING"
    assert "raise ValueError(payload)" in failed["traceback"]


def test_logging_of_the_program_is_left_alone(project: Project):
    setup = "import logging\nlogging.basicConfig(format='MINE %(message)s', level='INFO')\n"
    project.write("own.py", setup + "from jobs import handlers")
    done = project.run("own:handlers", "--drain", "--log-level", "debug")
    assert "MINE drained: 0 runs" in done.stderr
    assert "DEBUG" not in done.stderr
    assert "--log-level and --log-format have no effect" in done.stderr


def test_log_level(project: Project):
    done = project.run("jobs:handlers", "--drain", "--log-level", "warning", "--queues", "critical")
    assert "drained" not in done.stderr


def test_a_worker_has_no_modules_of_other_commands_in_memory(project: Project):
    """They would stay in memory as long as the worker runs."""
    project.write("modules.py", MODULES)
    project.put("modules", None)
    done = project.run_alone("modules:handlers", "--drain", "--quiet")
    assert done.stdout == "loaded: []\n", done.stderr


MODULES = """
import sys
from sqlalchemy_proletarian import Handlers
handlers = Handlers()

@handlers("modules")
def modules(payload: None) -> None:
    unneeded = {
        "alembic", "rich.console", "sqlalchemy_proletarian.demo", "sqlalchemy_proletarian.migrate",
        "sqlalchemy_proletarian.cli.worker.banner", "sqlalchemy_proletarian.cli.worker.supervisor",
    }
    print("loaded:", sorted(unneeded & set(sys.modules)))
"""


# Settings.


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(project: Project):
    project.write(
        "pyproject.toml",
        f"""
        [tool.proletarian]
        url = {json.dumps(plain(project.url))}

        [tool.proletarian.worker]
        target = "jobs:handlers"
        queues = ["file", "default"]
        threads = 2
        lease = "2m"
        """,
    )
    file = project.run("--drain", PROLETARIAN_URL="")
    assert "file, default\n" in file.stderr, file.stderr
    assert "2 jobs at a time in threads, each held by a lease of 2 min" in file.stderr
    variable = project.run("--drain", PROLETARIAN_QUEUES="variable")
    assert "variable\n" in variable.stderr
    option = project.run("--drain", "--queues", "option,default", PROLETARIAN_QUEUES="variable")
    assert "option, default\n" in option.stderr
    weighted = project.run("--drain", "--queues", "default=5,critical=1")
    assert "default=5, critical=1 (weights)\n" in weighted.stderr
    instead = project.run("--drain", "--concurrency", "3", PROLETARIAN_MAX_JOBS="5")
    assert "3 jobs at a time in threads" in instead.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[tool.proletarian.worker]\nthread = 1", "unknown key 'thread'; did you mean 'threads'?"),
        ("[tool.proletarian.worker]\ndrain = true", "unknown key 'drain'"),
        ("[tool.proletarian.worker]\nlease = 30", "30 is not a duration: write 30s"),
        ("[tool.proletarian]\nworker = 1", "tool.proletarian.worker in"),
        ("[tool", "cannot be read"),
    ],
)
def test_wrong_settings_are_one_line(project: Project, content: str, message: str):
    project.write("pyproject.toml", content)
    done = project.run("jobs:handlers")
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert "Traceback" not in done.stderr


OWN_MODELS = """
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy_proletarian import ArchivedJobMixin, JobMixin, RunningJobMixin

class Base(DeclarativeBase): ...

class WorkerMail(JobMixin, Base):
    __tablename__ = "worker_mail"

class ArchivedWorkerMail(ArchivedJobMixin, Base):
    __tablename__ = "archived_worker_mail"

class RunningWorkerMail(RunningJobMixin, Base):
    __tablename__ = "running_worker_mail"

def create(url):
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()
"""


@pytest.mark.parametrize("kind", [[], ["--asyncio"]], ids=["threads", "asyncio"])
def test_tables_of_your_own(project: Project, kind: list[str]):
    """The worker takes the models of the option or of the settings, like the other commands."""
    namespace: dict[str, Any] = {"__name__": "worker_models"}
    exec(OWN_MODELS, namespace)  # noqa: S102
    namespace["create"](project.url)
    project.write("worker_models.py", OWN_MODELS)
    models = "worker_models:WorkerMail,ArchivedWorkerMail,RunningWorkerMail"
    command = "enqueue", "charge", "--models", models
    succeeds(*command, url=project.url, cwd=project.folder)
    done = project.run("jobs:handlers", "--drain", "--models", models, *kind)
    assert "drained: 1 run" in done.stderr, done.stderr
    assert "(worker_mail, archived_worker_mail)" in done.stderr
    succeeds(*command, url=project.url, cwd=project.folder)
    project.write("pyproject.toml", f"[tool.proletarian]\nmodels = '{models}'\n")
    assert "drained: 1 run" in project.run("jobs:handlers", "--drain", *kind).stderr
    assert project.run_alone("jobs:make_worker", "--drain").returncode == 0, (
        "a worker has its own models"
    )
    refused = project.run_alone("jobs:make_worker", "--drain", "--models", models)
    assert "--models cannot change them" in refused.stderr


# On a terminal.


def test_on_a_terminal_ctrl_c_ends_it_quietly(project: Project):
    """A person sees the banner in colours, and after Ctrl-C no traceback."""
    project.put("unheard-of", None)
    ours, theirs = pty.openpty()
    command = project.command("jobs:handlers", "--processes", "2")
    environment = project.environment(TERM="xterm-256color", COLUMNS="80")
    with subprocess.Popen(
        command,
        cwd=project.folder,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - no other thread holds a lock
    ) as process:
        os.close(theirs)
        try:
            seen = _read(ours, "worker-starting", 2)
            os.write(ours, b"\x03")
            seen += _read(ours, "", 0)
            assert process.wait(PATIENCE) == 0, seen
        finally:
            process.kill()
            os.close(ours)
    assert "\x1b[1mproletarian worker" in seen
    assert "the first of 2" in seen
    assert "\x1b[33mwarning: there is no handler of the type 'unheard-of'" in seen
    assert seen.count("  queues") == 1, "one banner for all processes"
    assert seen.count("worker-stopped") == 2
    assert "Traceback" not in seen
    assert "Aborted" not in seen
    banner = seen.partition("worker-starting")[0].replace("\r", "")
    printed = re.sub(r"\x1b\[[0-9;]*m", "", banner)
    assert max(map(len, printed.splitlines()[:-1])) <= 80


def _take_terminal() -> None:
    """Make the terminal the one whose Ctrl-C reaches this process."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read(terminal: int, word: str, times: int) -> str:
    """Read until a word was there so many times, or until the end."""
    seen, deadline = "", monotonic() + PATIENCE
    while monotonic() < deadline and not (times and seen.count(word) >= times):
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        data = b""
        with suppress(OSError):  # the other end is closed
            data = os.read(terminal, 65536)
        if not data:
            break
        seen += data.decode(errors="replace")
    return seen
