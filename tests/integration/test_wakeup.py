"""How idle workers find new jobs: notifications, commits in their process, timers and polling."""

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
from sqlalchemy_proletarian.worker.loop import RECHECKS

from .support import MINUTE, Log, eventually, listening, put

PRODUCER = """
import os, sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy_proletarian import enqueue
with Session(create_engine(os.environ["URL"])) as session, session.begin():
    enqueue(session, "job", sys.argv[1])
"""


def put_from_other_process(url: URL, payload: str) -> float:
    """Enqueue a job in another process; return a time shortly after the commit."""
    environment = os.environ | {"URL": url.render_as_string(hide_password=False)}
    subprocess.run([sys.executable, "-c", PRODUCER, payload], env=environment, check=True)
    return monotonic()


@contextmanager
def idle_worker(engine: Engine, **options: Any) -> Iterator[tuple[list[Any], Log]]:
    """Run a worker that polls at most once a minute; yield the payloads of its jobs and its log."""
    seen: list[Any] = []
    log = Log()
    options = {"polling_interval": MINUTE, "log": log} | options
    with QueueWorker(engine, lambda _, payload: seen.append(payload), **options):
        eventually(lambda: log.events().count("polling-for-jobs") >= 2)
        yield seen, log


def test_a_commit_in_another_process_wakes_an_idle_worker(engine: Engine, url: URL) -> None:
    """A job committed by another process starts immediately, not at the next poll."""
    with idle_worker(engine) as (seen, _):
        put_from_other_process(url, "one")
        eventually(lambda: seen == ["one"])


def test_a_commit_in_the_same_process_wakes_an_idle_worker(engine: Engine) -> None:
    """A commit wakes workers in the same process."""
    with idle_worker(engine) as (seen, _):
        put(engine, "job", "own")
        eventually(lambda: seen == ["own"])


def test_jobs_of_rapid_commits_start_soon(engine: Engine) -> None:
    """The jobs of many rapid commits all start soon, even if notifications are debounced."""
    with idle_worker(engine) as (seen, _):
        for n in range(50):
            put(engine, "job", n)
        eventually(lambda: sorted(seen) == list(range(50)))


def test_a_scheduled_job_starts_at_its_time(engine: Engine) -> None:
    """A worker wakes up when the next job is due, even before the next poll."""
    with idle_worker(engine) as (seen, _):
        put(engine, "job", "later", process_in=timedelta(seconds=0.5))
        sleep(0.3)
        assert seen == []
        eventually(lambda: seen == ["later"])


def test_a_worker_without_notify_polls(engine: Engine, url: URL) -> None:
    """With ``notify=False`` a worker opens no listening connection and finds jobs by polling."""
    seen: list[Any] = []
    options: Any = {"notify": False, "polling_interval": timedelta(seconds=0.2)}
    with QueueWorker(
        engine, lambda _, payload: seen.append(payload), name="no-listener", **options
    ):
        put_from_other_process(url, "one")
        eventually(lambda: seen == ["one"])
        with engine.connect() as connection:
            names = connection.scalars(text("SELECT application_name FROM pg_stat_activity"))
            assert not any("listening" in name for name in names)


def test_a_lost_listening_connection_is_reopened(engine: Engine, url: URL) -> None:
    """A worker that loses its listening connection logs it once and reconnects."""
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
            put_from_other_process(url, payload)
            eventually(lambda payload=payload: payload in seen)  # type: ignore[misc]
        assert log.events().count("listening-lost") == 2


def test_a_transaction_notifies_each_queue_once(engine: Engine, url: URL) -> None:
    """A transaction sends one notification for each queue, regardless of the number of jobs."""
    with listening(url) as announced, Session(engine) as session:
        for _ in range(10):
            enqueue(session, "job", queue="a")
        enqueue_many(session, [("job", n) for n in range(10)], queue="b")
        assert announced() == []
        session.commit()
        assert announced() == ["a", "b"]


def test_a_rollback_discards_notifications(engine: Engine, url: URL) -> None:
    """A rollback, also of a SAVEPOINT, discards the notifications of its jobs."""
    with listening(url) as announced, Session(engine) as session:
        enqueue(session, "job", queue="rolled back")
        session.flush()
        session.rollback()
        with session.begin_nested() as savepoint:
            enqueue(session, "job", queue="in a savepoint")
            savepoint.rollback()
        with session.begin_nested():
            enqueue(session, "job", queue="released")
        session.commit()
        assert announced() == ["released"]
        enqueue(session, "job", queue="closed")
        session.close()
        session.execute(text("SELECT 1"))
        session.commit()
        assert announced() == []


def test_enqueue_without_notify(engine: Engine, url: URL) -> None:
    """``enqueue`` with ``notify=False`` sends no notification."""
    with listening(url) as announced:
        put(engine, "job", notify=False)
        assert announced() == []


def test_a_missed_notification_is_made_up_by_polling(engine: Engine) -> None:
    """A listening worker still polls, ten times less often, and finds jobs without notification."""
    seen: list[Any] = []
    interval = timedelta(seconds=0.1)
    with QueueWorker(
        engine, lambda _, payload: seen.append(payload), polling_interval=interval
    ) as worker:
        eventually(lambda: worker._core.pool.listener.active)
        sleep(0.5)  # so that the polls after startup do not find it
        put(engine, "job", 1, notify=False)
        eventually(lambda: seen)


def test_notifications_are_debounced(engine: Engine, url: URL) -> None:
    """A stream of commits sends fewer notifications than commits."""
    with listening(url) as announced, Session(engine) as session:
        started = monotonic()
        for _ in range(30):
            enqueue(session, "job", queue="stream")
            session.commit()
        allowed = (monotonic() - started) / DEBOUNCE + 1
        assert 1 <= len(announced()) <= allowed


@pytest.mark.parametrize("threads", [1, 4])
def test_an_idle_worker_polls_rarely(engine: Engine, threads: int) -> None:
    """Only one thread of an idle worker polls, regardless of the number of threads."""
    put(engine, "job", process_at=utcnow() + MINUTE)
    log = Log()
    interval = timedelta(seconds=0.2)
    with QueueWorker(engine, print, threads=threads, polling_interval=interval, log=log):
        eventually(lambda: log.events().count("polling-for-jobs") >= 1 + len(RECHECKS))
        before = log.events().count("polling-for-jobs")
        sleep(1.5)
        assert log.events().count("polling-for-jobs") - before <= 2  # every 2 s while it listens


def test_channels_of_long_table_names() -> None:
    """Channel names fit into a PostgreSQL identifier and are unique for each table."""
    long = "a" * 70
    channels = {channel_of(long), channel_of(long + "b"), channel_of("short")}
    assert len(channels) == 3
    assert max(map(len, channels)) <= 63
