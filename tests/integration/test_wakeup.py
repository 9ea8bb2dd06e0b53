"""How idle workers learn of work: by commits of others and their own, by the clock, by polling."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import QueueWorker, enqueue, enqueue_many, utcnow
from sqlalchemy_proletarian.wakeup.announce import DEBOUNCE
from sqlalchemy_proletarian.wakeup.channels import channel_of
from sqlalchemy_proletarian.worker.pool import LOOKS

from .support import MINUTE, Log, eventually, listening, put

PRODUCER = """
import os, sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy_proletarian import enqueue
with Session(create_engine(os.environ["URL"])) as session, session.begin():
    enqueue(session, "job", sys.argv[1])
"""


def put_from_elsewhere(url: URL, payload: str) -> float:
    """Enqueue in a process of its own; return when that was committed, or a little later."""
    environment = os.environ | {"URL": url.render_as_string(hide_password=False)}
    subprocess.run([sys.executable, "-c", PRODUCER, payload], env=environment, check=True)
    return monotonic()


@contextmanager
def idle_worker(engine: Engine, **options: Any) -> Iterator[tuple[list[Any], Log]]:
    """Run a worker that polls once a minute at the most; yield what it has run."""
    seen: list[Any] = []
    log = Log()
    options = {"polling_interval": MINUTE, "log": log} | options
    with QueueWorker(engine, lambda _, payload: seen.append(payload), **options):
        eventually(lambda: log.events().count("polling-for-jobs") >= 2)
        yield seen, log


def test_commit_of_another_process_wakes_an_idle_worker(engine: Engine, url: URL) -> None:
    """A job committed elsewhere starts at once, not at the next poll."""
    with idle_worker(engine) as (seen, _):
        put_from_elsewhere(url, "one")
        eventually(lambda: seen == ["one"])


def test_commit_of_the_same_process_wakes_a_worker_that_does_not_listen(engine: Engine) -> None:
    """Workers in the producer's process need no notification from the database."""
    with idle_worker(engine) as (seen, _):
        put(engine, "job", "own")
        eventually(lambda: seen == ["own"])


def test_bursts_are_not_lost_to_the_debounce(engine: Engine) -> None:
    """Of many commits in a few milliseconds each job starts soon, announced or not."""
    with idle_worker(engine) as (seen, _):
        for n in range(50):
            put(engine, "job", n)
        eventually(lambda: sorted(seen) == list(range(50)))


def test_scheduled_job_starts_at_its_time(engine: Engine) -> None:
    """A worker sleeps until the next job is due, however far the next poll is away."""
    with idle_worker(engine) as (seen, _):
        put(engine, "job", "later", process_in=timedelta(seconds=0.5))
        sleep(0.3)
        assert seen == []
        eventually(lambda: seen == ["later"])


def test_without_notify_the_worker_polls(engine: Engine, url: URL) -> None:
    """``notify=False`` opens no listening connection; the polling interval finds the job."""
    seen: list[Any] = []
    options: Any = {"notify": False, "polling_interval": timedelta(seconds=0.2)}
    with QueueWorker(engine, lambda _, payload: seen.append(payload), name="deaf", **options):
        put_from_elsewhere(url, "one")
        eventually(lambda: seen == ["one"])
        with engine.connect() as connection:
            names = connection.scalars(text("SELECT application_name FROM pg_stat_activity"))
            assert not any("listening" in name for name in names)


def test_lost_listener_is_reported_once_and_mended(engine: Engine, url: URL) -> None:
    """A worker whose listening connection dies says so once and listens again by itself."""
    with idle_worker(engine, name="listens") as (seen, log):
        for payload in ("first", "second"):
            with engine.begin() as connection:
                killed = connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE application_name LIKE 'listens % listening'"
                    )
                ).all()
            assert len(killed) == 1
            sleep(0.5)
            put_from_elsewhere(url, payload)
            eventually(lambda payload=payload: payload in seen)  # type: ignore[misc]
        assert log.events().count("listening-lost") == 2


def test_a_transaction_announces_each_queue_once(engine: Engine, url: URL) -> None:
    """However many jobs a transaction holds, it sends one notification for each queue."""
    with listening(url) as heard, Session(engine) as session:
        for _ in range(10):
            enqueue(session, "job", queue="a")
        enqueue_many(session, [("job", n) for n in range(10)], queue="b")
        assert heard() == []
        session.commit()
        assert heard() == ["a", "b"]


def test_nothing_is_announced_that_was_rolled_back(engine: Engine, url: URL) -> None:
    """Neither a rollback nor the rollback of a SAVEPOINT leaves a wake-up behind."""
    with listening(url) as heard, Session(engine) as session:
        enqueue(session, "job", queue="rolled back")
        session.flush()
        session.rollback()
        with session.begin_nested() as savepoint:
            enqueue(session, "job", queue="in a savepoint")
            savepoint.rollback()
        with session.begin_nested():
            enqueue(session, "job", queue="released")
        session.commit()
        assert heard() == ["released"]
        enqueue(session, "job", queue="closed")
        session.close()
        session.execute(text("SELECT 1"))
        session.commit()
        assert heard() == []


def test_enqueue_can_keep_silent(engine: Engine, url: URL) -> None:
    """``notify=False`` at enqueue commits a job that nobody is told of."""
    with listening(url) as heard:
        put(engine, "job", notify=False)
        assert heard() == []


def test_announcement_that_is_missed(engine: Engine) -> None:
    """A worker that listens polls all the same, ten times less often: it finds what it missed."""
    seen: list[Any] = []
    interval = timedelta(seconds=0.1)
    with QueueWorker(
        engine, lambda _, payload: seen.append(payload), polling_interval=interval
    ) as worker:
        eventually(lambda: worker._core.crew._listener.active)
        sleep(0.5)  # so that it is not found by the look that follows the beginning
        put(engine, "job", 1, notify=False)
        eventually(lambda: seen)


def test_announcements_are_debounced(engine: Engine, url: URL) -> None:
    """A stream of commits does not send a notification with each of them."""
    with listening(url) as heard, Session(engine) as session:
        started = monotonic()
        for _ in range(30):
            enqueue(session, "job", queue="stream")
            session.commit()
        allowed = (monotonic() - started) / DEBOUNCE + 1
        assert 1 <= len(heard()) <= allowed


@pytest.mark.parametrize("threads", [1, 4])
def test_idle_worker_is_quiet(engine: Engine, threads: int) -> None:
    """However many threads a worker has, one of them watches while the others sleep."""
    put(engine, "job", process_at=utcnow() + MINUTE)
    log = Log()
    interval = timedelta(seconds=0.2)
    with QueueWorker(engine, print, threads=threads, polling_interval=interval, log=log):
        eventually(lambda: log.events().count("polling-for-jobs") >= 1 + len(LOOKS))
        before = log.events().count("polling-for-jobs")
        sleep(1.5)
        assert log.events().count("polling-for-jobs") - before <= 2  # each 2 s while it listens


def test_long_table_names_have_a_channel() -> None:
    """The channel of a table fits into an identifier, and differs from that of any other."""
    long = "a" * 70
    channels = {channel_of(long), channel_of(long + "b"), channel_of("short")}
    assert len(channels) == 3
    assert max(map(len, channels)) <= 63
