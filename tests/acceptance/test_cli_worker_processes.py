"""``proletarian worker`` with a supervisor: several processes, replacement and reloading."""

from __future__ import annotations

import os
import signal
from time import monotonic

import psutil
import pytest

from tests.integration.support import eventually

from .worker_command import PATIENCE, Project, Started


def pids_ready(worker: Started, processes: int) -> list[int]:
    """Wait until so many processes run a worker; return their ids."""
    worker.wait_for("worker-starting", processes)
    eventually(lambda: len(worker.children()) == processes, PATIENCE, about=worker)
    return [child.pid for child in worker.children()]


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("target", ["jobs:handlers", "jobs:coroutines"])
def test_a_process_that_is_killed_is_restarted_and_no_job_is_lost(project: Project, target: str):
    """Two processes share the jobs, and each job has had its effect once."""
    with project.started(target, "--processes", "2", "--concurrency", "1") as worker:
        first, _ = pids_ready(worker, 2)
        project.put_writes(range(40), seconds=0.1)
        eventually(lambda: len(project.pids()) == 2, PATIENCE, about=worker)
        os.kill(first, signal.SIGKILL)
        worker.wait_for("worker-starting", 3)
        eventually(lambda: not project.queued(), PATIENCE, about=worker)
        worker.stop()
    assert project.ran() == list(range(40))
    assert set(project.statuses()) == {"success"}
    assert f"process {first} was ended by SIGKILL; it is started again in" in worker.output
    assert first not in [child.pid for child in worker.children()]


def test_a_signal_stops_all_processes_gracefully(project: Project):
    """Running jobs end, the supervisor ends last, with 0, and leaves no process behind."""
    project.put_writes(range(10), seconds=2)
    with project.started("jobs:handlers", "--processes", "2") as worker:
        pids = pids_ready(worker, 2)
        worker.wait_for("begins", 2)
        worker.stop()
    assert len(project.ran()) >= 2
    assert len(project.ran()) + len(project.queued()) == 10
    assert all(map(is_gone, pids))


def test_a_signal_to_the_whole_group_counts_once(project: Project):
    """A service manager signals all processes: each of them sees one request, not two."""
    project.put_writes(seconds=2)
    with project.started("jobs:handlers", "--processes", "2") as worker:
        pids = pids_ready(worker, 2)
        worker.wait_for("begins")
        for pid in (worker.process.pid, *pids):
            os.kill(pid, signal.SIGTERM)
        assert worker.ends() == 0, worker.output
    assert project.ran() == [1]


def test_a_second_signal_is_passed_on(project: Project):
    project.put_writes([1, 2], seconds=100)
    options = "--processes", "2", "--shutdown-timeout", "80s"
    with project.started("jobs:handlers", *options) as worker:
        pids = pids_ready(worker, 2)
        worker.wait_for("begins", 2)
        worker.send()
        worker.wait_for("worker-stopping", 2)
        worker.send()
        before = monotonic()
        assert worker.ends() == 130, worker.output
    assert monotonic() - before < 40
    assert all(map(is_gone, pids))
    assert [job.attempts for job in project.queued()] == [0, 0]


def test_processes_stop_when_their_supervisor_is_killed(project: Project):
    """None of them goes on alone, and what they ran has ended."""
    project.put_writes(seconds=2)
    with project.started("jobs:handlers", "--processes", "2") as worker:
        pids = pids_ready(worker, 2)
        worker.wait_for("begins")
        worker.send(signal.SIGKILL)
        worker.ends()
        eventually(lambda: all(map(is_gone, pids)), PATIENCE, about=worker)
    assert project.ran() == [1]


def test_a_wrong_option_or_program_ends_it(project: Project):
    """What is wrong when the first process starts is told once, and nothing is restarted."""
    done = project.run_alone("jobs:handler", "--processes", "3")
    assert done.returncode == 1
    assert done.stderr.count("Error: ") == 1
    assert "did you mean jobs:handlers?" in done.stderr


def test_a_process_that_dies_soon_is_restarted_later_and_later(project: Project):
    """The module cannot be imported any more after the first process has started."""
    project.write("brittle.py", BRITTLE)
    with project.started("brittle:handlers", "--processes", "2") as worker:
        (alive,) = pids_ready(worker, 1)
        worker.wait_for(r"is started again in 0\.5 s")
        worker.wait_for(r"is started again in 1 s")
        worker.wait_for(r"is started again in 2 s")
        assert not is_gone(alive)
        worker.stop()


BRITTLE = """
from pathlib import Path
from jobs import handlers
mark = Path(__file__).with_name("was-here")
if mark.exists():
    raise OSError("worn out")
mark.touch()
"""


def test_max_jobs_replaces_processes_without_losing_jobs(project: Project):
    project.put_writes(range(12), seconds=0.3)
    with project.started("jobs:handlers", "--max-jobs", "4") as worker:
        eventually(lambda: not project.queued(), 2 * PATIENCE, about=worker)
        worker.stop()
    assert project.ran() == list(range(12))
    assert len(project.pids()) >= 2
    assert "is replaced: it has run 4 jobs" in worker.output
    assert "started again" not in worker.output, "it was no death"


def test_max_memory_replaces_a_process_that_grows(project: Project):
    project.write("hungry.py", HUNGRY)
    project.put("eat", None)
    with project.started("hungry:handlers", "--max-memory", "400MB") as worker:
        worker.wait_for(r"is replaced: it takes \d+ MB of memory")
        worker.wait_for("worker-starting", 2)
        worker.stop()


HUNGRY = """
from sqlalchemy_proletarian import Handlers
handlers = Handlers()
held = []

@handlers("eat")
def eat(payload: None) -> None:
    held.append(b"x" * 500_000_000)
"""


def test_max_memory_below_what_a_process_takes_is_an_error(project: Project):
    done = project.run_alone("jobs:handlers", "--max-memory", "1MB")
    assert done.returncode == 1
    assert "before it runs any job: --max-memory must be more" in done.stderr


def test_drain_with_several_processes(project: Project):
    project.put_writes(range(20), seconds=0.1)
    done = project.run_alone("jobs:handlers", "--drain", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert project.ran() == list(range(20))
    assert done.stderr.count("drained") == 2


def test_reload_restarts_when_a_file_changes(project: Project):
    """The next job runs the new code; a file that cannot be imported is waited out."""
    project.write("words.py", "WORD = 'old'")
    project.write("talk.py", TALK)
    with project.started("talk:handlers", "--reload") as worker:
        project.put("talk", None)
        worker.wait_for("says old")
        project.write("words.py", "WORD = 'new and better'")
        worker.wait_for("restarting: words.py changed")
        worker.wait_for("worker-starting", 2)
        project.put("talk", None)
        worker.wait_for("says new")
        project.write("words.py", "WORD =")
        worker.wait_for(r"SyntaxError: .*words.py, line 1")
        worker.wait_for("is started when a .py file changes")
        project.write("words.py", "WORD = 'repaired'")
        project.put("talk", None)
        worker.wait_for("says repaired")
        worker.stop()


TALK = """
from sqlalchemy_proletarian import Handlers
from words import WORD
handlers = Handlers()

@handlers("talk")
def talk(payload: None) -> None:
    print("says", WORD, flush=True)
"""


def test_reload_lets_running_jobs_end(project: Project):
    project.put_writes(seconds=2)
    with project.started("jobs:handlers", "--reload") as worker:
        worker.wait_for("begins")
        project.write("other.py", "")
        worker.wait_for("worker-starting", 2)
        worker.stop()
    assert project.ran() == [1]


def test_programs_that_handlers_start_do_not_inherit_the_supervisor(project: Project):
    """They would look alive after the process has died, and hide its death."""
    project.write("nested.py", NESTED)
    project.put("nest", None)
    with project.started("nested:handlers", "--processes", "2") as worker:
        worker.wait_for("variable None")
        worker.stop()


NESTED = """
import os, subprocess, sys
from sqlalchemy_proletarian import Handlers
handlers = Handlers()

@handlers("nest")
def nest(payload: None) -> None:
    code = "import os; print('variable', os.environ.get('PROLETARIAN_SUPERVISOR'), flush=True)"
    subprocess.run([sys.executable, "-c", code], check=True)
"""
