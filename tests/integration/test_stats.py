"""Statistics of queues and job types, and the list of running jobs."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Engine, insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    RunningJob,
    enqueue_many,
    manage,
    utcnow,
)
from sqlalchemy_proletarian.asyncio import running as async_running
from sqlalchemy_proletarian.asyncio import stats as async_stats

from .kinds import LEASE, Kind
from .loops import in_a_loop
from .support import (
    MINUTE,
    SECOND,
    ArchivedEmailJob,
    EmailJob,
    ManualClock,
    archived,
    eventually,
    fail,
    put,
    run_all,
    succeed,
)


def stats(engine: Engine, **options: Any) -> manage.Stats:
    with Session(engine) as session:
        return manage.stats(session, **options)


def running(engine: Engine, **options: Any) -> list[manage.Running]:
    with Session(engine) as session:
        return manage.running(session, **options)


def test_nothing(engine: Engine, clock: ManualClock) -> None:
    found = stats(engine, clock=clock)
    assert (found.at, found.since) == (clock.now, clock.now - 5 * MINUTE)
    assert (list(found.job_types), found.queues, found.incomplete) == ([], {}, frozenset())
    assert running(engine) == []


def test_each_state_is_counted(engine: Engine, clock: ManualClock) -> None:
    """By queue and job type, together with the age of the oldest due job and what ended."""
    options: Any = {"clock": clock}
    put(engine, "mail", process_in=2 * MINUTE, **options)
    put(engine, "mail", queue="slow", **options)
    for _ in range(4):
        put(engine, "done", **options)
    run_all(engine, succeed, **options)
    put(engine, "mail", **options)
    put(engine, "report", **options)
    run_all(engine, fail, retry_strategy={"retries": 1, "delays": [60_000]}, **options)
    clock.advance(30 * SECOND)
    put(engine, "mail", **options)
    run_all(engine, fail, **options)
    cancelled = put(engine, "mail", **options)
    with Session(engine) as session, session.begin():
        manage.cancel(session, cancelled, clock=clock)
    put(engine, "mail", priority=9, **options)
    clock.advance(10 * SECOND)
    put(engine, "mail", priority=1, **options)
    clock.advance(5 * SECOND)
    found = stats(engine, window=100 * SECOND, **options)
    done, mail, report, slow = found.job_types
    assert (done.queue, done.job_type, done.succeeded, done.due) == ("default", "done", 4, 0)
    assert (mail.due, mail.scheduled, mail.retrying, mail.running) == (2, 1, 1, 0)
    assert mail.oldest_due == 15 * SECOND
    assert (mail.succeeded, mail.failed, mail.cancelled, mail.throughput) == (0, 1, 1, 0.02)
    assert (report.retrying, report.oldest_due, report.failed) == (1, None, 0)
    assert (slow.queue, slow.due, slow.oldest_due) == ("slow", 1, 45 * SECOND)
    total = found.queues["default"]
    assert (total.queue, total.job_type, total.due, total.retrying) == ("default", None, 2, 2)
    assert (total.succeeded, total.failed, total.oldest_due) == (4, 1, 15 * SECOND)
    assert total.throughput == pytest.approx(0.06)
    clock.advance(80 * SECOND)
    later = stats(engine, window=100 * SECOND, **options)
    assert (later.queues["default"].succeeded, later.queues["default"].failed) == (0, 1)


def test_numbers_are_bounded(engine: Engine, clock: ManualClock) -> None:
    """Of a queue with more jobs, the most urgent ones are counted, and the result says so."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("a", n) for n in range(30)], clock=clock)
        enqueue_many(session, [("b", n) for n in range(5)], priority=0, clock=clock)
        enqueue_many(session, [("c", n) for n in range(9)], queue="other", clock=clock)
    found = stats(engine, max_rows=10, clock=clock)
    assert {counts.job_type: counts.due for counts in found.job_types} == {"a": 5, "b": 5, "c": 9}
    assert found.incomplete == {"default"}
    run_all(engine, succeed, queues=["default", "other"], clock=clock)
    clock.advance(SECOND)
    put(engine, "late", clock=clock)
    run_all(engine, succeed, clock=clock)
    late = clock.now
    found = stats(engine, max_rows=1, clock=clock)
    assert [counts.job_type for counts in found.job_types] == ["late"]
    assert found.since == late


def test_many_queues(engine: Engine) -> None:
    """More of them than one statement counts."""
    with Session(engine) as session, session.begin():
        for n in range(230):
            enqueue_many(session, [("a", None)] * 2, queue=f"tenant {n}", notify=False)
    found = stats(engine)
    assert len(found.queues) == 230
    assert {counts.due for counts in found.job_types} == {2}


def blocking() -> tuple[Handlers, Event]:
    """Return handlers whose jobs wait for the event."""
    handlers, release = Handlers(), Event()

    @handlers("slow")
    def slow(payload: Any) -> None:
        assert release.wait(20)

    return handlers, release


def test_running_jobs(engine: Engine, kind: Kind) -> None:
    """The list says which worker runs which attempt of a job since when."""
    handlers, release = blocking()
    before = utcnow()
    job_id = put(engine, "slow")
    run_all(engine, fail, retry_strategy={"retries": 1, "delays": [60_000]})
    with engine.begin() as connection:
        connection.execute(update(Job.__table__).values(process_at=before))
    with kind.worker(engine, handlers, name="alpha", polling_interval=MINUTE) as worker:
        eventually(lambda: running(engine))
        put(engine, "other")
        (job,) = running(engine)
        assert (job.job_id, job.queue, job.job_type, job.attempt) == (job_id, "default", "slow", 2)
        assert job.worker is not None and job.worker.startswith(worker.name)
        assert (job.alive, job.batch_size) == (True, 1)
        assert job.started_at is not None and before <= job.started_at <= utcnow()
        if kind.leased:
            assert job.lease_until is not None and job.lease_until > utcnow()
        else:
            assert job.lease_until is None
        slow, other = sorted(stats(engine).job_types, key=lambda c: c.job_type, reverse=True)
        assert (slow.running, slow.due, slow.scheduled, slow.oldest_due) == (1, 0, 0, None)
        assert (other.running, other.due) == (0, 1)
        release.set()
        eventually(lambda: len(archived(engine)) == 1)
    assert running(engine) == []


def test_a_running_job_behind_a_large_backlog_is_counted(engine: Engine, kind: Kind) -> None:
    """Although its row is not among those that are read."""
    handlers, release = blocking()
    put(engine, "slow", priority=0)
    with kind.worker(engine, handlers, polling_interval=MINUTE):
        eventually(lambda: running(engine))
        with engine.begin() as connection:
            if kind.leased:
                connection.execute(update(Job.__table__).values(priority=9))
        with Session(engine) as session, session.begin():
            enqueue_many(session, [("none", None)] * 20, priority=0)
        found = stats(engine, max_rows=5)
        assert {c.job_type: c.running for c in found.job_types}["slow"] == 1
        release.set()


PROGRAM = """
from datetime import timedelta
from sys import argv
from time import sleep
from sqlalchemy import create_engine
from sqlalchemy_proletarian import Handlers, QueueWorker

handlers = Handlers()


@handlers("slow")
def slow(payload):
    sleep(60)


lease = timedelta(minutes=1) if argv[2] == "lease" else None
QueueWorker(create_engine(argv[1]), handlers, lease=lease).run()
"""


@pytest.mark.parametrize("mode", ["transaction", "lease"])
def test_a_job_of_a_worker_that_was_killed(engine: Engine, mode: str) -> None:
    """The list says that the worker is dead; the job is due at once, or when its lease expires."""
    put(engine, "slow")
    url = engine.url.render_as_string(hide_password=False)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, url, mode])
    try:
        eventually(lambda: running(engine))
        assert running(engine)[0].alive
        assert stats(engine).queues["default"].running == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    eventually(lambda: running(engine)[0].alive is False)
    found = stats(engine).queues["default"]
    assert (found.running, found.due) == ((0, 1) if mode == "transaction" else (1, 0))


def test_leased_jobs_without_markers(shop: Engine) -> None:
    """They are listed without their worker."""
    handlers, release = blocking()
    put(shop, "slow", job_model=EmailJob)
    put(shop, "later", job_model=EmailJob, process_in=MINUTE)
    models: Any = {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob}
    with Kind(leased=True).worker(shop, handlers, **models):
        eventually(lambda: running(shop, job_model=EmailJob))
        (job,) = running(shop, job_model=EmailJob)
        assert (job.job_type, job.worker, job.alive, job.started_at) == ("slow", None, None, None)
        assert job.lease_until is not None and job.lease_until > utcnow() + LEASE / 2
        found = stats(shop, **models).queues["default"]
        assert (found.running, found.scheduled) == (1, 1)
        release.set()
    with shop.begin() as connection:
        connection.execute(EmailJob.__table__.delete())


def test_a_job_that_the_archive_rejects(engine: Engine) -> None:
    job_id = put(engine, "job")
    with engine.begin() as connection:
        values = {"ended_as": "failure", "ended_at": utcnow(), "refusal": "no"}
        connection.execute(update(Job.__table__).values(values))
    assert job_id
    found = stats(engine).queues["default"]
    assert (found.refused, found.due) == (1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": timedelta(0)}, "window must be positive"),
        ({"max_rows": 0}, "max_rows must be"),
        ({"window": "1 hour"}, "window must be a timedelta"),
    ],
)
def test_arguments_are_checked(engine: Engine, options: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        stats(engine, **options)


def test_no_statement_reads_a_whole_table(engine: Engine) -> None:
    """The archive and the queue are read by their indexes, for at most ``max_rows`` rows."""
    now = utcnow()
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO proletarian.archived_job (job_id, queue, job_type, payload, attempts,"
                " enqueued_at, process_at, status, finished_at)"
                " SELECT gen_random_uuid(), 'default', 'old', 'null', 1, now(), now(), 'success',"
                " now() - n * interval '1 millisecond' FROM generate_series(1, 30000) n"
            )
        )
        connection.execute(
            text(
                "INSERT INTO proletarian.job (job_id, queue, job_type, payload, attempts,"
                " enqueued_at, process_at) SELECT gen_random_uuid(), 'default', 'new', 'null', 0,"
                " now(), now() - n * interval '1 millisecond' FROM generate_series(1, 30000) n"
            )
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE proletarian.job, proletarian.archived_job"))
    read = text(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"
        " WHERE relname IN ('job', 'archived_job')"
    )
    with Session(engine) as session:
        found = manage.stats(session, max_rows=1000)
        rows_read = session.scalar(read)
    assert found.at >= now
    assert found.incomplete == {"default"}
    assert sum(counts.succeeded for counts in found.job_types) == 1000
    assert rows_read <= 2100


@in_a_loop
async def test_in_asyncio(engine: Engine, loop_engine: AsyncEngine) -> None:
    """The awaitable variants do the same."""
    job_id = put(engine, "job")
    with engine.begin() as connection:
        values = {"job_id": job_id, "worker": "w", "batch_size": 1, "started_at": utcnow()}
        connection.execute(insert(RunningJob.__table__).values(values))
    async with AsyncSession(loop_engine) as session:
        (job,) = await async_running(session)
        assert (job.job_id, job.alive) == (job_id, False)
        found = await async_stats(session, window=MINUTE)
        assert found.queues["default"].due == 1
