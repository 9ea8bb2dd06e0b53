"""Lease mode: many concurrent jobs on few connections, no job runs twice or blocks another."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from threading import Barrier, Event
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    Engine,
    ForeignKey,
    create_engine,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Discard,
    Handlers,
    Job,
    JobMixin,
    QueueWorker,
    RetryAfter,
    RunningJob,
    Snooze,
    enqueue_many,
    utcnow,
)
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

from .kinds import Kind, leases
from .support import (
    MINUTE,
    PATIENCE,
    SECOND,
    Log,
    ManualClock,
    Note,
    archived,
    eventually,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    succeed,
)

SHORT = 0.9 * SECOND


def connections(engine: Engine, name: str) -> int:
    """Return how many connections a worker has."""
    query = text("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE :name")
    with engine.connect() as connection:
        return int(connection.scalar(query, {"name": f"{name}%"}) or 0)


@contextmanager
def locked(engine: Engine, job_id: Any) -> Iterator[Connection]:
    """Lock a job's row in another transaction."""
    with engine.connect() as connection, connection.begin():
        job = select(Job.job_id).where(Job.job_id == job_id).with_for_update()
        assert connection.scalar(job) == job_id
        yield connection


# Concurrency.


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_many_jobs_on_few_connections(shop: Engine, driver: str) -> None:
    """500 coroutines that each wait a second run concurrently on at most five connections."""
    handlers = Handlers()
    runs: Counter[int] = Counter()
    counts: list[int] = []

    @handlers("wait")
    async def wait(payload: int) -> None:
        runs[payload] += 1
        await asyncio.sleep(1)

    async def main() -> float:
        url = shop.url.set(drivername=f"postgresql+{driver}")
        engine = create_async_engine(url, pool_size=5, max_overflow=0)
        worker = AsyncQueueWorker(engine, handlers, concurrency=500, lease=MINUTE, name="many")
        started = monotonic()
        async with asyncio.TaskGroup() as group:
            drained = group.create_task(worker.drain())
            while not drained.done():
                counts.append(await asyncio.to_thread(connections, shop, "many"))
                await asyncio.sleep(0.05)
        seconds = monotonic() - started
        await engine.dispose()
        return seconds

    with Session(shop) as session, session.begin():
        enqueue_many(session, [("wait", n) for n in range(500)])
    seconds = asyncio.run(main())
    print(f"{driver}: {seconds:.2f} s, {max(counts)} connections")  # noqa: T201 - a measurement
    assert seconds < 10  # sequentially they would take 500
    assert runs == Counter(range(500))
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert len(archived(shop)) == 500
    assert 1 <= max(counts) <= 5
    assert rows(shop, RunningJob) == []


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_sessions_of_many_jobs_share_the_pool(shop: Engine, driver: str) -> None:
    """A handler's session takes a connection only when it is used."""
    handlers = Handlers()

    @handlers("write")
    async def write(payload: int, session: AsyncSession) -> None:
        await asyncio.sleep(0.5)
        session.add(Note(text=str(payload)))

    async def main() -> float:
        url = shop.url.set(drivername=f"postgresql+{driver}")
        engine = create_async_engine(url, pool_size=5, max_overflow=0)
        worker = AsyncQueueWorker(engine, handlers, concurrency=200, lease=MINUTE)
        started = monotonic()
        await worker.drain()
        seconds = monotonic() - started
        await engine.dispose()
        return seconds

    with Session(shop) as session, session.begin():
        enqueue_many(session, [("write", n) for n in range(200)])
    seconds = asyncio.run(main())
    print(f"{driver}: {seconds:.2f} s")  # noqa: T201 - a measurement
    assert seconds < 20  # sequentially they would take 100
    assert sorted(map(int, notes(shop))) == list(range(200))
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}


@leases
def test_no_transaction_is_open_while_handlers_run(shop: Engine, kind: Kind) -> None:
    """While handlers run, no transaction is open; their jobs have leases and markers."""
    started, release = Barrier(4), Event()

    def handler(job_type: str, payload: Any) -> None:
        started.wait(25)
        assert release.wait(25)

    with Session(shop) as session, session.begin():
        enqueue_many(session, [("job", n) for n in range(3)])
    open_transactions = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name LIKE 'calm%' AND state <> 'idle'"
    )
    with kind.worker(shop, handler, threads=3, name="calm", lease=10 * SECOND):
        started.wait(25)
        before = utcnow()
        with shop.connect() as connection:
            # Within one transaction, pg_stat_activity does not change.
            eventually(lambda: connection.rollback() or connection.scalar(open_transactions) == 0)
        assert {job.attempts for job in queued(shop)} == {0}
        assert None not in {job.lease_id for job in queued(shop)}
        left = [job.process_at - before for job in queued(shop)]
        assert all(8 * SECOND < each < 11 * SECOND for each in left)
        markers = rows(shop, RunningJob)
        assert {marker.job_id for marker in markers} == {job.job_id for job in queued(shop)}
        assert {(marker.batch_size, marker.worker[:5]) for marker in markers} == {(3, "calm ")}
        release.set()
    assert len(archived(shop)) == 3
    assert rows(shop, RunningJob) == []


@leases
def test_markers_count_jobs_that_start_later(engine: Engine, kind: Kind) -> None:
    """The marker of a job that ran alone also counts jobs that start next to it later."""
    running, release = Event(), Event()

    def handler(job_type: str, payload: Any) -> None:
        running.set()
        assert release.wait(25)

    put(engine, "job", 1)
    with kind.worker(engine, handler, threads=2):
        assert running.wait(25)
        assert [marker.batch_size for marker in rows(engine, RunningJob)] == [1]
        put(engine, "job", 2)
        eventually(lambda: [m.batch_size for m in rows(engine, RunningJob)] == [2, 2])
        release.set()
    assert rows(engine, RunningJob) == []


@leases
def test_workers_of_both_modes_share_a_queue(shop: Engine, kind: Kind) -> None:
    """Workers in lease mode and in transaction mode can share a queue; each job runs once."""
    jobs = 2000
    with Session(shop) as session, session.begin():
        enqueue_many(session, [("write", n) for n in range(jobs)])

    def handlers() -> Handlers:
        registry = Handlers()

        @registry("write")
        def write(payload: int, session: Session) -> None:
            session.add(Note(text=str(payload)))

        return registry

    workers = [kind.worker(shop, handlers(), threads=8, lease=5 * SECOND) for _ in range(2)]
    workers.append(QueueWorker(shop, handlers(), threads=2))  # type: ignore[arg-type]
    with ThreadPoolExecutor() as pool:
        assert sum(pool.map(lambda worker: worker.drain(), workers)) == jobs
    assert sorted(map(int, notes(shop))) == list(range(jobs))
    assert len(archived(shop)) == jobs
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert queued(shop) == rows(shop, RunningJob) == []


# Extending leases.


@leases
def test_the_lease_of_a_long_job_is_extended(shop: Engine, kind: Kind) -> None:
    """The lease of a long job is extended, and no other worker runs the job."""
    runs: list[int] = []

    def handler(job_type: str, payload: Any) -> None:
        runs.append(1)
        sleep(1.6 * SHORT.total_seconds())

    put(shop, "long")
    options: Any = {"lease": SHORT, "polling_interval": SECOND / 10}
    with kind.worker(shop, handler, **options), kind.worker(shop, handler, **options):
        eventually(lambda: archived(shop))
    assert runs == [1]
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
    assert rows(shop, RunningJob) == []


@leases
def test_a_long_job_with_a_session_completes(shop: Engine, kind: Kind) -> None:
    """A handler whose session is in use for longer than the lease completes its job."""
    handlers = Handlers()

    @handlers("long")
    def long(payload: Any, session: Session, job: Job) -> None:
        session.add(Note(text=f"attempt {job.attempts}"))
        session.flush()
        sleep(1.6 * SHORT.total_seconds())

    put(shop, "long")
    options: Any = {"lease": SHORT, "polling_interval": SECOND / 10}
    with kind.worker(shop, handlers, **options), kind.worker(shop, handlers, **options):
        eventually(lambda: archived(shop))
    assert notes(shop) == ["attempt 1"]
    assert only_archived(shop).attempts == 1


@leases
@pytest.mark.parametrize("isolation_level", ["REPEATABLE READ", "AUTOCOMMIT"])
def test_engines_with_other_isolation_levels(
    shop: Engine, kind: Kind, isolation_level: Any
) -> None:
    """With any isolation level, a long job completes and a failed one is rolled back."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: str, session: Session) -> None:
        session.add(Note(text=payload))
        session.flush()
        if payload == "fails":
            raise ValueError
        sleep(SHORT.total_seconds())  # the lease is extended meanwhile

    put(shop, "write", "fails")
    put(shop, "write", "long")
    engine = create_engine(shop.url, isolation_level=isolation_level)
    if kind.driver is None:
        QueueWorker(engine, handlers, threads=2, lease=SHORT).drain()
    else:

        async def main() -> None:
            url = shop.url.set(drivername=f"postgresql+{kind.driver}")
            engine = create_async_engine(url, isolation_level=isolation_level)
            await AsyncQueueWorker(engine, handlers, concurrency=2, lease=SHORT).drain()
            await engine.dispose()

        asyncio.run(main())
    engine.dispose()
    assert {job.payload: job.status for job in archived(shop)} == {
        '"fails"': "failure",
        '"long"': "success",
    }
    assert notes(shop) == ["long"]


@leases
def test_a_handler_may_update_its_own_row(shop: Engine, kind: Kind) -> None:
    """A handler that updates its own job's row does not block the extension of any lease."""
    handlers = Handlers()
    runs: Counter[str] = Counter()

    @handlers("selfish", retry={"retries": 0})
    def selfish(payload: Any, session: Session, job: Job) -> None:
        runs["selfish"] += 1
        job.error = "a note to myself"
        session.flush()
        sleep(1.6 * SHORT.total_seconds())

    @handlers("other")
    def other(payload: Any) -> None:
        runs["other"] += 1
        sleep(1.6 * SHORT.total_seconds())

    put(shop, "selfish")
    put(shop, "other")
    options: Any = {"lease": SHORT, "polling_interval": SECOND / 10, "threads": 2}
    with kind.worker(shop, handlers, **options), kind.worker(shop, handlers, **options):
        eventually(lambda: len(archived(shop)) == 2)
    assert runs == {"selfish": 1, "other": 1}
    assert {job.job_type: job.error for job in archived(shop)} == {
        "selfish": "a note to myself",
        "other": None,
    }


class Archive(DeclarativeBase):
    """A base for tables that reference jobs."""


class Receipt(Archive):
    """A row that references a job while it runs."""

    __tablename__ = "receipt"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[Any] = mapped_column(ForeignKey(Job.job_id, ondelete="SET NULL"), nullable=True)


def test_a_lease_is_extended_despite_a_foreign_key_lock(shop: Engine) -> None:
    """A lease is extended while the handler's transaction holds a foreign key lock on the row."""
    handlers = Handlers()
    ends: list[Any] = []

    @handlers("refers")
    def refers(payload: Any, session: Session, job: Job) -> None:
        session.add(Receipt(job_id=job.job_id))
        session.flush()
        for _ in range(2):
            sleep(SHORT.total_seconds() / 2)
            ends.append(only_queued(shop).process_at)

    Archive.metadata.create_all(shop)
    try:
        put(shop, "refers")
        assert QueueWorker(shop, handlers, lease=SHORT).drain() == 1
        assert ends[0] < ends[1]
        assert only_archived(shop).status == "success"
    finally:
        Archive.metadata.drop_all(shop)


@leases
def test_leases_that_expired_during_sleep_are_extended(
    shop: Engine, kind: Kind, clock: ManualClock
) -> None:
    """A worker whose leases expired while the computer slept extends them; no job runs twice."""
    runs: list[int] = []
    release = Event()

    def handler(job_type: str, payload: Any) -> None:
        runs.append(1)
        assert release.wait(25)

    put(shop, "long", clock=clock)
    with kind.worker(shop, handler, threads=2, clock=clock, polling_interval=SECOND / 20):
        eventually(lambda: runs)
        clock.advance(60 * MINUTE)
        eventually(lambda: only_queued(shop).process_at > clock.now)
        release.set()
    assert runs == [1]
    assert only_archived(shop).attempts == 1


@leases
def test_a_worker_does_not_claim_its_own_running_job(shop: Engine, kind: Kind) -> None:
    """A worker does not claim a job it still runs if its lease expires during a poll."""
    start = utcnow()
    times = [start]
    runs: list[Any] = []
    release = Event()

    def clock() -> datetime:
        return times.pop(0) if len(times) > 1 else times[0]

    def handler(job_type: str, payload: Any) -> None:
        runs.append(payload)
        assert payload or release.wait(PATIENCE)

    put(shop, "long", 0, clock=clock)
    with kind.worker(shop, handler, threads=3, clock=clock, polling_interval=MINUTE):
        eventually(lambda: runs == [0])
        times[:] = [start, start, start + 5 * MINUTE]
        put(shop, "short", 1)
        eventually(lambda: 1 in runs)
        put(shop, "short", 2)
        eventually(lambda: 2 in runs)
        release.set()
        eventually(lambda: len(archived(shop)) == 3)
    assert sorted(runs) == [0, 1, 2]
    assert {job.attempts for job in archived(shop)} == {1}


# Outcomes.


@leases
def test_outcomes_of_leased_jobs(engine: Engine, kind: Kind, clock: ManualClock) -> None:
    """Attempts, due time and error depend only on the outcome, not on the lease."""
    handlers = Handlers(retry={"retries": 2, "delays": [5000]})

    def outcome_of(job_type: str, error: Any) -> None:
        def handler(payload: Any) -> None:
            if error is not None:
                raise error

        handlers(job_type)(handler)

    outcome_of("succeeds", None)
    outcome_of("fails", ValueError("no"))
    outcome_of("asks", RetryAfter(MINUTE, "busy"))
    outcome_of("snoozes", Snooze(2 * MINUTE))
    outcome_of("discards", Discard("never"))
    due = clock.now
    for job_type in ("succeeds", "fails", "asks", "snoozes", "discards", "unknown"):
        put(engine, job_type, clock=clock)
    clock.advance(10 * SECOND)
    now = clock.now
    assert kind.run_all(engine, handlers, clock=clock, threads=6) == 5
    assert {
        job.job_type: (job.attempts, job.process_at - now, job.error and job.error.split()[-1])
        for job in queued(engine)
    } == {
        "fails": (1, 5 * SECOND, "no"),
        "asks": (1, MINUTE, "busy"),
        "snoozes": (0, 2 * MINUTE, None),
        "unknown": (0, due - now, None),
    }
    assert {
        job.job_type: (job.status, job.attempts, job.process_at, job.finished_at)
        for job in archived(engine)
    } == {
        "succeeds": ("success", 1, due, now),
        "discards": ("failure", 1, due, now),
    }
    assert rows(engine, RunningJob) == []


@leases
def test_a_handler_sees_the_original_due_time(shop: Engine, kind: Kind, clock: ManualClock) -> None:
    """The handler and the archive see the original due time, not the end of the lease."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("write")
    def write(payload: Any, session: Session, job: Job) -> None:
        seen.append((job.attempts, job.process_at))
        session.add(Note(text="written"))

    put(shop, "write", clock=clock)
    due = clock.now
    clock.advance(MINUTE)
    assert kind.run_all(shop, handlers, clock=clock) == 1
    assert seen == [(1, due)]
    assert only_archived(shop).process_at == due
    assert only_archived(shop).finished_at == clock.now


# Isolation between jobs.


@leases
@pytest.mark.parametrize("takes_session", [True, False])
def test_a_job_that_cannot_be_archived_does_not_affect_others(
    shop: Engine, kind: Kind, takes_session: bool
) -> None:
    """A job whose id is already archived stays queued with the error; other jobs complete."""
    handlers = Handlers()
    if takes_session:

        @handlers("write")
        def write(payload: Any, session: Session) -> None:
            session.add(Note(text=str(payload)))

    else:
        handlers("write")(lambda payload: None)
    duplicate_id = put(shop, "write", 0)
    with Session(shop) as session, session.begin():
        session.add(
            ArchivedJob(job_id=duplicate_id, job_type="write", payload="", status="success")
        )
        enqueue_many(session, [("write", n) for n in range(1, 11)])
    log = Log()
    kind.run_all(shop, handlers, threads=11, log=log)
    done = [job for job in archived(shop) if job.job_id != duplicate_id]
    assert {(job.status, job.attempts) for job in done} == {("success", 1)}
    assert len(done) == 10
    bad = only_queued(shop)
    assert bad.job_id == duplicate_id
    assert "IntegrityError" in bad.error
    assert bad.process_at > utcnow()
    assert log.events().count("archive-refused") == 1
    assert "0" not in notes(shop)
    assert len(notes(shop)) == (10 if takes_session else 0)
    assert rows(shop, RunningJob) == []


@leases
def test_a_locked_row_delays_only_its_own_job(engine: Engine, kind: Kind) -> None:
    """A job whose row is locked when it ends waits for the lock; other jobs continue."""
    running = Barrier(3)

    def handler(job_type: str, payload: Any) -> None:
        if job_type == "first":
            running.wait(25)
            running.wait(25)

    first = [put(engine, "first", n) for n in range(2)]
    options: Any = {"threads": 3, "polling_interval": SECOND / 20, "lease": SHORT}
    with kind.worker(engine, handler, **options):
        running.wait(25)
        with locked(engine, first[0]):
            running.wait(25)
            eventually(lambda: len(archived(engine)) == 1)
            put(engine, "second")
            eventually(lambda: len(archived(engine)) == 2)
            sleep(0.3)
        eventually(lambda: not queued(engine))
    assert {(job.job_type, job.status, job.attempts) for job in archived(engine)} == {
        ("first", "success", 1),
        ("second", "success", 1),
    }
    assert rows(engine, RunningJob) == []


@leases
def test_a_stopping_worker_does_not_poll_busily(engine: Engine, kind: Kind) -> None:
    """A stopping worker does not poll busily while handlers run, even if other jobs are due."""
    release, running, log = Event(), Event(), Log()

    def handler(job_type: str, payload: Any) -> None:
        running.set()
        assert release.wait(25)

    put(engine, "job")
    worker = kind.worker(engine, handler, threads=2, log=log)
    worker.start()
    assert running.wait(25)
    before = log.events().count("polling-for-jobs")
    put(engine, "later", process_in=SECOND / 5)
    eventually(lambda: log.events().count("polling-for-jobs") > before)
    worker.request_stop()
    sleep(0.3)
    before = log.events().count("polling-for-jobs")
    sleep(0.3)
    assert log.events().count("polling-for-jobs") - before < 5
    release.set()
    worker.stop()
    assert only_queued(engine).job_type == "later"


class Colour(Enum):
    """The values of a user-defined column."""

    RED = "red"


class Paint(DeclarativeBase):
    """A base for jobs with a column whose values are validated when they are loaded."""


class PaintJob(JobMixin, Paint):
    """A job with a colour."""

    __tablename__ = "paint_job"

    colour: Mapped[Colour | None]


class ArchivedPaintJob(ArchivedJobMixin, Paint):
    """The archive of :class:`PaintJob`."""

    __tablename__ = "archived_paint_job"


@leases
@pytest.mark.parametrize("loaded_by", ["handler", "callback"])
def test_a_row_that_cannot_be_loaded_fails_its_job(
    engine: Engine, kind: Kind, loaded_by: str
) -> None:
    """A job whose row the model cannot load fails; other jobs complete."""
    handlers = Handlers()
    if loaded_by == "handler":

        @handlers("paint")
        def paint(payload: Any, job: PaintJob) -> None:
            assert job.colour is Colour.RED

    else:

        @handlers("paint")
        def fail_on_request(payload: Any) -> None:
            if payload == "fails":
                raise ValueError

    Paint.metadata.create_all(engine)
    model: Any = {"job_model": PaintJob}
    try:
        bad = put(engine, "paint", "fails", **model)
        put(engine, "paint", "red", colour=Colour.RED, **model)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE paint_job ALTER colour TYPE text"))
            connection.execute(
                text("UPDATE paint_job SET colour = 'mauve' WHERE job_id = :id"), {"id": bad}
            )
        failed: list[Any] = []
        kind.run_all(
            engine,
            handlers,
            threads=2,
            archived_job_model=ArchivedPaintJob,
            on_failed=lambda job, error: failed.append((job, type(error))),
            **model,
        )
        ended = archived(engine, ArchivedPaintJob)
        assert {job.payload: job.status for job in ended} == {
            '"red"': "success",
            '"fails"': "failure",
        }
        expected = LookupError if loaded_by == "handler" else ValueError
        assert failed == [(None, expected)]
    finally:
        Paint.metadata.drop_all(engine)


@leases
def test_an_error_of_another_database_is_a_failure(shop: Engine, kind: Kind) -> None:
    """An error from a database other than the queue's is a failed attempt."""
    handlers = Handlers()

    @handlers("ask", retry={"retries": 1})
    def ask(payload: Any, session: Session) -> None:
        session.add(Note(text="half done"))
        session.flush()
        create_engine("postgresql+psycopg://nobody@localhost:1/none").connect()

    put(shop, "ask")
    assert kind.run_all(shop, handlers) == 2
    job = only_archived(shop)
    assert (job.status, job.attempts) == ("failure", 2)
    assert "OperationalError" in job.error
    assert notes(shop) == []


# Jobs of crashed workers.


@leases
@pytest.mark.parametrize("batch_size", [0, 1, 5])
def test_jobs_left_by_a_worker_in_transaction_mode_run(
    engine: Engine, kind: Kind, batch_size: int
) -> None:
    """A job left by a crashed worker in transaction mode runs; it is its first attempt."""
    for n in range(3):
        put(engine, "job", n)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO proletarian.running (job_id, worker, batch_size, started_at)"
                " SELECT job_id, 'gone', :size, clock_timestamp() FROM proletarian.job LIMIT 1"
            ),
            {"size": batch_size},
        )
    assert kind.run_all(engine, succeed, threads=3) == 3
    assert {(job.status, job.attempts) for job in archived(engine)} == {("success", 1)}
    assert rows(engine, RunningJob) == []


@leases
def test_drain_continues_after_a_poison_job(engine: Engine, kind: Kind) -> None:
    """``drain`` continues with other due jobs after it has failed a poison job."""
    killer = put(engine, "job")
    for _ in range(2):
        put(engine, "job", priority=9)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO proletarian.running (job_id, worker, batch_size, started_at)"
                " VALUES (:id, 'gone', 1, clock_timestamp())"
            ),
            {"id": killer},
        )
        connection.execute(
            text(
                "UPDATE proletarian.job SET lease_id = :id, deaths = 2,"
                " process_at = clock_timestamp() WHERE job_id = :id"
            ),
            {"id": killer},
        )
    assert kind.run_all(engine, succeed, retry_strategy={"retries": 1}) == 3
    assert queued(engine) == []
    ended = archived(engine)
    assert {job.job_id for job in ended if job.status == "failure"} == {killer}
    assert {job.attempts for job in ended} == {1}
    assert "3 workers in a row died" in next(job.error for job in ended if job.job_id == killer)
