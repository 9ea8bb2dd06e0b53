"""``proletarian status``, also while a terminal watches it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event
from typing import Any

from sqlalchemy import URL, Engine, NullPool, create_engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker, enqueue, manage

from .cli_runs import fails, printed_json, succeeds
from .programs import PROLETARIAN, plain
from .terminal import on_terminal


@contextmanager
def running_job(engine: Engine, **options: Any) -> Iterator[str]:
    """Run a job, and yield its id while it runs."""
    handlers, runs, end = Handlers(), Event(), Event()

    @handlers("long")
    def long(payload: Any) -> None:
        runs.set()
        end.wait(30)

    with Session(engine) as session, session.begin():
        job_id = enqueue(session, "long", priority=0).job_id
    with QueueWorker(engine, handlers, name="mailer", **options):
        assert runs.wait(20)
        try:
            yield str(job_id)
        finally:
            end.set()


def test_nothing(url: URL, engine: Engine) -> None:
    """Without jobs the command says so."""
    assert "No jobs" in succeeds("status", url=url)
    found = printed_json("status", url=url)
    assert set(found) == {
        *("at", "since", "schema_version", "queues", "job_types", "paused", "running")
    }


def test_what_is_queued_running_and_paused(url: URL, engine: Engine) -> None:
    """The numbers of queues and types, the running job with its worker, and the paused queues."""
    with running_job(engine) as job_id:
        with Session(engine) as session, session.begin():
            enqueue(session, "mail", queue="mail")
            enqueue(session, "mail", queue="mail", process_in=timedelta(days=1))
            manage.pause(session, "mail", reason="down", paused_by="Ada")
        found = printed_json("status", url=url)
        queues = {queue["queue"]: queue for queue in found["queues"]}
        assert (queues["mail"]["due"], queues["mail"]["scheduled"]) == (1, 1)
        assert queues["mail"]["paused"]["reason"] == "down"
        assert queues["default"]["running"] == 1
        (run,) = found["running"]
        assert (run["job_id"], run["attempt"], run["alive"]) == (job_id, 1, True)
        assert run["worker"].startswith("mailer")
        output = succeeds("status", url=url)
        assert max(map(len, output.splitlines())) <= 80
        for words in (job_id, "mailer", "by Ada: down", "long"):
            assert words in output
        assert "long" not in succeeds("status", "--queue", "mail", url=url)
        assert "Worker" in succeeds("jobs", "show", job_id, url=url)


def test_watch_redraws_and_ends_on_ctrl_c(url: URL, engine: Engine) -> None:
    """A job that was enqueued meanwhile appears; Ctrl-C ends it without a traceback."""
    arguments = [*PROLETARIAN, "status", "--watch", "0.2"]
    with on_terminal(arguments, PROLETARIAN_URL=plain(url)) as terminal:
        terminal.wait_for("No jobs")
        with Session(engine) as session, session.begin():
            enqueue(session, "new-type")
        terminal.wait_for("new-type")
        terminal.interrupt()
        assert terminal.end() == 0
    assert "Traceback" not in terminal.text
    assert "--watch is for a terminal" in fails(2, "status", "--watch", url=url)


def test_watch_survives_the_loss_of_the_database(empty_database: URL, server_url: URL) -> None:
    """While the database is away it says so, and it goes on afterwards."""
    succeeds("migrate", "upgrade", url=empty_database)
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    name = empty_database.database

    def execute(statement: str) -> None:
        with admin.connect() as connection:
            connection.execute(text(statement))

    arguments = [*PROLETARIAN, "status", "--watch", "0.2"]
    with on_terminal(arguments, PROLETARIAN_URL=plain(empty_database)) as terminal:
        terminal.wait_for("No jobs")
        execute(f"ALTER DATABASE {name} RENAME TO {name}_away")
        terminal.wait_for("Trying again since")
        execute(f"ALTER DATABASE {name}_away RENAME TO {name}")
        engine = create_engine(empty_database, poolclass=NullPool)
        with Session(engine) as session, session.begin():
            enqueue(session, "after-all")
        terminal.wait_for("after-all")
        os.kill(terminal.process.pid, signal.SIGINT)
        assert terminal.end() == 0
