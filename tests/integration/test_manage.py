"""Cancelling jobs: queued, leased, or running in a worker's transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    RunningJob,
    TablesMissingError,
    enqueue,
    manage,
)
from sqlalchemy_proletarian.asyncio import cancel as async_cancel
from sqlalchemy_proletarian.wakeup.channels import cancel_channel_of

from .kinds import KINDS, Kind, event_loops, leases, only, transactions
from .support import (
    FAST,
    MINUTE,
    SECOND,
    ArchivedEmailJob,
    Customer,
    EmailJob,
    Log,
    ManualClock,
    Note,
    archived,
    enqueue_batch,
    eventually,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    run_all,
    succeed,
    writers,
)

transactions_in_a_loop = only(
    *(kind for kind in KINDS if kind.driver is not None and not kind.leased)
)
transactions_in_threads = only(*(kind for kind in KINDS if kind.driver is None and not kind.leased))
leases_in_a_loop = only(*(kind for kind in KINDS if kind.driver is not None and kind.leased))


def cancel(engine: Engine, job_id: Any, **options: Any) -> Any:
    """Cancel a job and commit."""
    with Session(engine) as session, session.begin():
        return manage.cancel(session, job_id, **options)


@contextmanager
def listening(engine: Engine) -> Iterator[Any]:
    """Yield a function that returns the cancel requests received since its last call."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        channel = cancel_channel_of("proletarian.job")
        connection.execute(text(f'LISTEN "{channel}"'))
        driver = connection.connection.driver_connection
        yield lambda: [received.payload for received in driver.notifies(timeout=0.3)]


# Queued jobs.


def test_a_queued_job_is_cancelled(engine: Engine, clock: ManualClock) -> None:
    """A cancelled job is archived with the reason and never runs."""
    job_id = put(engine, "job", {"a": 1}, process_in=MINUTE, unique_key="once", clock=clock)
    other = put(engine, "job", clock=clock)
    before = next(job for job in queued(engine) if job.job_id == job_id)
    clock.advance(SECOND)
    assert cancel(engine, job_id, reason="the customer left", clock=clock) == "cancelled"
    job = only_archived(engine)
    assert (job.status, job.error, job.attempts) == ("cancelled", "the customer left", 0)
    assert (job.job_id, job.payload, job.unique_key) == (job_id, '{"a":1}', "once")
    assert (job.process_at, job.finished_at) == (before.process_at, clock.now)
    assert only_queued(engine).job_id == other
    clock.advance(MINUTE)
    assert run_all(engine, succeed, clock=clock) == 1


def test_a_job_that_waits_for_a_retry_is_cancelled(engine: Engine, clock: ManualClock) -> None:
    """A cancelled job keeps its attempts; the reason replaces the error of the last attempt."""
    job_id = put(engine, "job", clock=clock)

    def fail(job_type: str, payload: Any) -> None:
        raise ValueError

    run_all(engine, fail, retry_strategy={"retries": 1, "delays": [60_000]}, clock=clock)
    assert cancel(engine, job_id) == "cancelled"
    job = only_archived(engine)
    assert (job.status, job.attempts, job.error) == ("cancelled", 1, "cancelled")


def test_cancelling_an_unknown_job_returns_none(engine: Engine) -> None:
    """Cancelling a job that is not queued, or not any more, returns None."""
    job_id = put(engine, "job")
    assert cancel(engine, uuid4()) is None
    run_all(engine, succeed)
    assert cancel(engine, job_id) is None
    assert only_archived(engine).status == "success"


def test_a_job_can_be_cancelled_in_the_transaction_that_enqueues_it(engine: Engine) -> None:
    """A job can be cancelled in the transaction that enqueues it; autoflush inserts it first."""
    with Session(engine) as session, session.begin():
        job = enqueue(session, "job")
        assert manage.cancel(session, job.job_id) == "cancelled"
        unflushed = enqueue(session, "job").job_id
        with session.no_autoflush:
            assert manage.cancel(session, unflushed) is None
    assert only_archived(engine).status == "cancelled"
    assert only_queued(engine).job_id == unflushed


@pytest.mark.parametrize("savepoint", [False, True])
def test_a_rollback_undoes_the_cancellation(engine: Engine, savepoint: bool) -> None:
    """A cancellation that is rolled back has no effect and sends no notification."""
    job_id = put(engine, "job")
    with listening(engine) as received, Session(engine) as session:
        if savepoint:
            nested = session.begin_nested()
            assert manage.cancel(session, job_id) == "cancelled"
            nested.rollback()
            session.commit()
        else:
            assert manage.cancel(session, job_id) == "cancelled"
            session.rollback()
        assert received() == []
        assert cancel(engine, job_id, reason="two\nlines") == "cancelled"
        assert received() == [f"{job_id}\ntwo\nlines"]
    assert only_archived(engine).error == "two\nlines"


def test_cancel_waits_for_a_short_lock(engine: Engine) -> None:
    """``cancel`` waits for a short row lock, such as that of a claim."""
    job_id = put(engine, "job")
    with engine.connect() as other, Session(engine) as session, session.begin():
        other.execute(select(Job.job_id).with_for_update())
        pid = other.scalar(text("SELECT pg_backend_pid()"))
        # This transaction ends while the cancellation waits.
        other.connection.driver_connection.pgconn.send_query(b"SELECT pg_sleep(0.03); COMMIT")
        assert pid
        assert manage.cancel(session, job_id) == "cancelled"
        other.invalidate()
    assert only_archived(engine).status == "cancelled"


@pytest.mark.parametrize("scoped", [False, True])
def test_cancelling_a_job_of_a_custom_model(shop: Engine, scoped: bool) -> None:
    """A job of a custom model is moved to its custom archive."""
    with Session(shop) as session, session.begin():
        customer = Customer(name="Ada")
        job_id = enqueue(
            session, "mail", job_model=EmailJob, customer=customer, campaign="spring"
        ).job_id
    models: Any = {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob}
    if scoped:
        session = scoped_session(sessionmaker(shop))
        assert manage.cancel(session, job_id, **models) == "cancelled"
        session.commit()
        session.remove()
    else:
        assert cancel(shop, job_id, **models) == "cancelled"
    job = only_archived(shop, ArchivedEmailJob)
    assert (job.status, job.campaign, job.reviewed) == ("cancelled", "spring", False)
    assert queued(shop, EmailJob) == archived(shop) == []


def test_missing_tables_are_reported(empty_database: Any) -> None:
    """Without the tables the error names the command to create them."""
    engine = create_engine(empty_database)
    with pytest.raises(TablesMissingError, match="proletarian migrate upgrade"):
        cancel(engine, uuid4())
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_cancelling_with_an_async_session(engine: Engine, driver: str) -> None:
    """The async variant does the same; the plain function rejects an AsyncSession."""
    first, second = put(engine, "job", 1), put(engine, "job", 2)

    async def main() -> None:
        loop_engine: AsyncEngine = create_async_engine(
            engine.url.set(drivername=f"postgresql+{driver}")
        )
        async with AsyncSession(loop_engine) as session:
            async with session.begin():
                result = await async_cancel(session, first, reason="in a loop")
                assert result == "cancelled"
                assert await async_cancel(session, uuid4()) is None
            await async_cancel(session, second)
            await session.rollback()
            with pytest.raises(TypeError, match=r"asyncio\.cancel\(session, job_id\)"):
                manage.cancel(session, second)  # type: ignore[arg-type]
        await loop_engine.dispose()

    asyncio.run(main())
    assert (only_archived(engine).job_id, only_archived(engine).error) == (first, "in a loop")
    assert only_queued(engine).job_id == second


# Running jobs.


def blocking_handlers(
    seen: list[str], *, coroutine: bool, release: Event | None = None
) -> Handlers:
    """Return handlers that sleep for a long time, or until ``release`` is set."""
    handlers = Handlers()

    if coroutine:

        @handlers("write")
        async def write(payload: Any, session: AsyncSession) -> None:
            session.add(Note(text="half done"))
            await session.flush()
            seen.append("started")
            try:
                await asyncio.sleep(20)
            finally:
                seen.append("ended")

        @handlers("send")
        async def send(payload: Any) -> None:
            seen.append("started")
            try:
                await asyncio.sleep(20)
            finally:
                seen.append("ended")

    else:
        assert release is not None

        @handlers("write")
        def write_plainly(payload: Any, session: Session) -> None:
            session.add(Note(text="half done"))
            session.flush()
            seen.append("started")
            assert release.wait(20)
            seen.append("ended")
            if payload == "raises":
                raise ValueError

        @handlers("send")
        def send_plainly(payload: Any) -> None:
            seen.append("started")
            assert release.wait(20)
            seen.append("ended")
            if payload == "raises":
                raise ValueError

    return handlers


@event_loops
@pytest.mark.parametrize("job_type", ["write", "send"])
def test_a_running_coroutine_is_cancelled(shop: Engine, kind: Kind, job_type: str) -> None:
    """A running coroutine is cancelled without waiting for a poll; its writes are rolled back."""
    seen: list[str] = []
    log = Log()
    job_id = put(shop, job_type)
    before = only_queued(shop)
    other = put(shop, job_type, "other")
    handlers = blocking_handlers(seen, coroutine=True)
    with kind.worker(
        shop, handlers, threads=2, log=log, polling_interval=MINUTE, shutdown_timeout=SECOND / 10
    ):
        eventually(lambda: seen == ["started", "started"])
        started = monotonic()
        result = cancel(shop, job_id, reason="not needed")
        assert result == ("cancelled" if kind.leased else "requested")
        eventually(lambda: "ended" in seen)
        assert monotonic() - started < 8
        eventually(lambda: archived(shop) and "job-cancelled" in log.events())
        assert seen.count("ended") == 1
        job = only_archived(shop)
        assert (job.job_id, job.status, job.attempts) == (job_id, "cancelled", 1)
        assert job.error.endswith("not needed")
        if not kind.leased:  # a lease changes the due time
            assert job.process_at == before.process_at
        assert notes(shop) == []
    assert log.events().count("job-cancelled") == 1
    assert "lease-lost" not in log.events()
    assert "handle-job-exception" not in log.events()
    assert (only_queued(shop).job_id, only_queued(shop).attempts) == (other, 0)
    assert rows(shop, RunningJob) == []


@leases
@pytest.mark.parametrize("job_type", ["write", "send"])
@pytest.mark.parametrize("how", ["returns", "raises"])
def test_a_leased_job_of_a_running_function_is_cancelled(
    shop: Engine, kind: Kind, job_type: str, how: str
) -> None:
    """A plain function cannot be stopped, but the writes of a leased job are rolled back."""
    seen: list[str] = []
    release = Event()
    log = Log()
    job_id = put(shop, job_type, how)
    handlers = blocking_handlers(seen, coroutine=False, release=release)
    with kind.worker(shop, handlers, log=log):
        eventually(lambda: seen == ["started"])
        assert cancel(shop, job_id, reason="not needed") == "cancelled"
        sleep(0.1)
        assert seen == ["started"]
        release.set()
        eventually(lambda: "job-cancelled" in log.events())
    assert notes(shop) == []
    assert (only_archived(shop).status, only_archived(shop).error) == ("cancelled", "not needed")
    assert log.events().count("job-cancelled") == 1
    for event in ("lease-lost", "job-finished", "handle-job-exception", "retrying"):
        assert event not in log.events()
    assert queued(shop) == rows(shop, RunningJob) == []


@transactions_in_threads
@pytest.mark.parametrize(("how", "status"), [("returns", "success"), ("raises", "cancelled")])
def test_a_running_function_in_transaction_mode(
    shop: Engine, kind: Kind, how: str, status: str
) -> None:
    """In transaction mode, a job of a plain function is cancelled only if the function raises."""
    seen: list[str] = []
    release = Event()
    log = Log()
    job_id = put(shop, "write", how)
    handlers = blocking_handlers(seen, coroutine=False, release=release)
    with kind.worker(shop, handlers, log=log, retry_strategy={"retries": 5}):
        eventually(lambda: seen == ["started"])
        assert cancel(shop, job_id, reason="not needed") == "requested"
        sleep(0.2)
        release.set()
        eventually(lambda: archived(shop))
    job = only_archived(shop)
    assert (job.status, job.attempts) == (status, 1)
    assert notes(shop) == (["half done"] if status == "success" else [])
    assert ("not needed" in (job.error or "")) == (status == "cancelled")
    assert log.events().count("job-cancelled") == (status == "cancelled")
    assert rows(shop, RunningJob) == []


@transactions
def test_a_job_waiting_in_a_batch_is_cancelled(shop: Engine, kind: Kind) -> None:
    """A job that waits for another job in a worker's transaction is cancelled without running."""
    seen: list[str] = []
    running, release = Event(), Event()
    handlers = Handlers()

    @handlers("write")
    def write(payload: dict[str, str], session: Session) -> None:
        session.add(Note(text=payload["text"]))
        seen.append(payload["text"])
        if payload["text"] == "first":
            running.set()
            assert release.wait(20)

    enqueue_batch(shop, [])
    with kind.worker(shop, handlers):
        eventually(lambda: len(archived(shop)) == FAST)
        with Session(shop) as session, session.begin():
            texts = ["first", "second", "third"]
            ids = [enqueue(session, "write", {"text": text}).job_id for text in texts]
        assert running.wait(25)
        assert cancel(shop, ids[1], reason="not needed") == "requested"
        sleep(0.3)  # the worker receives the request
        release.set()
        eventually(lambda: not queued(shop))
    assert seen[FAST:] == notes(shop)[FAST:] == ["first", "third"]
    (job,) = [job for job in archived(shop) if job.status != "success"]
    assert (job.job_id, job.status, job.attempts) == (ids[1], "cancelled", 1)
    assert "not needed" in job.error


@leases
def test_a_worker_that_does_not_listen_loses_the_lease(shop: Engine, kind: Kind) -> None:
    """A worker that does not listen detects the cancellation when it extends the lease."""
    seen: list[str] = []
    release, log = Event(), Log()
    job_id = put(shop, "write", "returns")
    coroutine = kind.driver is not None
    handlers = blocking_handlers(seen, coroutine=coroutine, release=release)
    with kind.worker(shop, handlers, log=log, notify=False, lease=0.6 * SECOND):
        eventually(lambda: seen == ["started"])
        assert cancel(shop, job_id) == "cancelled"
        eventually(lambda: "lease-lost" in log.events())
        release.set()
        eventually(lambda: "ended" in seen)
    assert log.events().count("lease-lost") == 1
    assert notes(shop) == []
    assert only_archived(shop).status == "cancelled"
    assert rows(shop, RunningJob) == []


@leases_in_a_loop
def test_a_job_cancelled_during_its_claim(shop: Engine, kind: Kind) -> None:
    """A job cancelled at any moment of its claim ends as cancelled, without effects."""
    seen: list[str] = []
    with kind.worker(shop, blocking_handlers(seen, coroutine=True), threads=10):
        for _ in range(10):
            job_id = put(shop, "write")
            assert cancel(shop, job_id) == "cancelled"
        eventually(lambda: seen.count("started") == seen.count("ended"))
    assert notes(shop) == []
    assert {job.status for job in archived(shop)} == {"cancelled"}
    assert len(archived(shop)) == 10
    assert queued(shop) == rows(shop, RunningJob) == []


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_a_handler_that_removes_its_own_job_fails(shop: Engine, kind: Kind, how: str) -> None:
    """A job fails if its handler cancels or deletes it in the handler's session."""
    handlers = writers()

    @handlers("own")
    def own(payload: Any, session: Session, job: Job) -> None:
        session.add(Note(text="half done"))
        if how == "cancel":
            manage.cancel(session, job.job_id)
        else:
            session.delete(job)

    enqueue_batch(shop, [{"text": "kept"}])
    put(shop, "own")
    kind.run_batch(shop, handlers)
    (failed,) = [job for job in archived(shop) if job.status != "success"]
    assert (failed.job_type, failed.status, failed.attempts) == ("own", "failure", 1)
    assert "removed its own job" in failed.error
    assert notes(shop) == ["warm"] * FAST + ["kept"]
    assert queued(shop) == []
    assert rows(shop, RunningJob) == []
