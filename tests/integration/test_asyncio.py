"""Start, stop and restart of a worker in an event loop, and the sessions of its handlers."""

from __future__ import annotations

import asyncio
from threading import Thread
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import URL, Engine, event
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, TablesMissingError
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

from .loops import connections, drained, driver_and_hold, in_a_loop, others, until
from .support import (
    MINUTE,
    Log,
    Note,
    archived,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    succeed,
)

# Starting and stopping.


@driver_and_hold
@in_a_loop
async def test_jobs_run_inside_async_with(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """After the block no job runs, and no task or connection of the worker is left."""
    async with AsyncQueueWorker(loop_engine, succeed, name="inside", **held) as worker:
        put(engine, "a")
        await until(lambda: archived(engine))
        assert not worker.stopping
    assert worker.stopping
    assert not others()
    await until(lambda: connections(engine, "inside") == 0)
    put(engine, "b")
    await asyncio.sleep(0.05)
    assert only_queued(engine).job_type == "b"


@driver_and_hold
@in_a_loop
async def test_run_returns_after_a_stop_request(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """``run`` processes jobs until it is asked to stop, then waits for the running ones."""
    handlers = Handlers()

    @handlers("last")
    async def last(payload: Any) -> None:
        worker.request_stop()
        await asyncio.sleep(0.1)

    put(engine, "last")
    put(engine, "last", priority=9)
    worker = AsyncQueueWorker(loop_engine, handlers, concurrency=1, **held)
    await worker.run()
    assert only_archived(engine).status == "success"
    assert only_queued(engine).attempts == 0


@driver_and_hold
@in_a_loop
async def test_drain_returns_the_number_of_runs(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """The number includes retries that are due immediately."""

    async def handler(job_type: str, payload: Any) -> None:
        if job_type == "bad":
            raise ValueError

    worker = AsyncQueueWorker(loop_engine, handler, retry_strategy={"retries": 2}, **held)
    assert await worker.drain() == 0
    put(engine, "good")
    put(engine, "bad")
    put(engine, "later", process_in=MINUTE)
    assert await worker.drain() == 4
    assert await worker.drain() == 0
    assert only_queued(engine).job_type == "later"


@driver_and_hold
@in_a_loop
async def test_concurrency_limits_the_running_jobs(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    handlers = Handlers()
    running = most = 0

    @handlers("job")
    async def job(payload: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.1)
        running -= 1

    for _ in range(9):
        put(engine, "job")
    assert await drained(loop_engine, handlers, concurrency=3, **held) == 9
    assert most == 3


@in_a_loop
async def test_a_running_worker_cannot_be_started_or_drained(
    engine: Engine, loop_engine: AsyncEngine
) -> None:
    """The attempt raises RuntimeError, and the worker keeps running."""
    async with AsyncQueueWorker(loop_engine, succeed, name="w") as worker:
        for start in (worker.start, worker.run):
            with pytest.raises(RuntimeError, match="the worker w is running already"):
                await start()
        with pytest.raises(RuntimeError, match="the worker w is running"):
            await worker.drain()
        put(engine, "a")
        await until(lambda: archived(engine))


@in_a_loop
async def test_a_draining_worker_cannot_be_drained_again(
    engine: Engine, loop_engine: AsyncEngine
) -> None:
    worker = AsyncQueueWorker(loop_engine, succeed)
    first, second = await asyncio.gather(worker.drain(), worker.drain(), return_exceptions=True)
    assert first == 0
    assert isinstance(second, RuntimeError)
    assert await worker.drain() == 0


@in_a_loop
async def test_stop_does_nothing_when_the_worker_is_not_running(
    engine: Engine, loop_engine: AsyncEngine
) -> None:
    calls: list[int] = []
    worker = AsyncQueueWorker(loop_engine, succeed, on_shutdown=lambda: calls.append(1))
    await worker.stop()
    worker.request_stop()
    assert calls == []
    await worker.start()
    await worker.stop()
    await worker.stop()
    assert calls == [1]


@driver_and_hold
@in_a_loop
async def test_stop_ends_run_in_another_task(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """``on_shutdown`` is called once and "worker-stopped" is logged once."""
    log = Log()
    calls: list[int] = []
    worker = AsyncQueueWorker(
        loop_engine, succeed, on_shutdown=lambda: calls.append(1), log=log, **held
    )
    running = asyncio.create_task(worker.run())
    await until(lambda: "polling-for-jobs" in log.events())
    await asyncio.gather(worker.stop(), worker.stop(), running)
    assert calls == [1]
    assert log.events().count("worker-stopped") == 1
    put(engine, "a")
    assert await worker.drain() == 1


@driver_and_hold
@in_a_loop
async def test_a_stopped_worker_can_be_restarted(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A worker can be started, stopped and drained repeatedly."""
    worker = AsyncQueueWorker(loop_engine, succeed, **held)
    for n in (1, 3):
        async with worker:
            put(engine, "a")
            await until(lambda n=n: len(archived(engine)) == n)
        put(engine, "a")
        assert await worker.drain() == 1
    assert len(archived(engine)) == 4
    assert queued(engine) == []


def test_a_worker_can_be_restarted_in_another_event_loop(engine: Engine, url: URL) -> None:
    """In each loop the worker opens new connections."""
    loop_engine = create_async_engine(url)
    worker = AsyncQueueWorker(loop_engine, succeed)

    async def run_a_job() -> None:
        async with worker:
            put(engine, "a")
            await until(lambda: not queued(engine))
        await loop_engine.dispose()

    for _ in range(2):
        asyncio.run(run_a_job())
    assert len(archived(engine)) == 2


@in_a_loop
async def test_request_stop_works_from_another_thread(
    engine: Engine, loop_engine: AsyncEngine
) -> None:
    """The worker stops without waiting for its next poll."""
    log = Log()
    worker = AsyncQueueWorker(loop_engine, succeed, polling_interval=10 * MINUTE, log=log)
    running = asyncio.create_task(worker.run())
    await until(lambda: log.events().count("polling-for-jobs") >= 2)
    before = monotonic()
    Thread(target=worker.request_stop).start()
    await running
    assert monotonic() - before < 8


@driver_and_hold
@in_a_loop
async def test_an_idle_worker_stops_immediately(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """The worker does not wait for its polling interval."""
    log = Log()
    worker = AsyncQueueWorker(
        loop_engine, succeed, concurrency=4, polling_interval=10 * MINUTE, log=log, **held
    )
    await worker.start()
    await until(lambda: log.events().count("polling-for-jobs") >= 2)
    before = monotonic()
    await worker.stop()
    assert monotonic() - before < 8


@in_a_loop
async def test_a_worker_stopped_during_startup_runs_no_job(
    engine: Engine, loop_engine: AsyncEngine
) -> None:
    """No connection of the worker is left."""
    put(engine, "a")
    worker = AsyncQueueWorker(loop_engine, succeed, name="hardly")
    starting = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    worker.request_stop()
    await starting
    assert only_queued(engine).attempts == 0
    await until(lambda: connections(engine, "hardly") == 0)


@in_a_loop
async def test_a_worker_can_be_started_after_a_cancelled_start(
    engine: Engine, loop_engine: AsyncEngine
) -> None:
    worker = AsyncQueueWorker(loop_engine, succeed)
    starting = asyncio.create_task(worker.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: not others())
    async with worker:
        put(engine, "a")
        await until(lambda: archived(engine))


@in_a_loop
async def test_starting_without_tables_names_the_migrate_command(
    empty_database: URL, loop_engine: AsyncEngine
) -> None:
    without_tables = create_async_engine(loop_engine.url.set(database=empty_database.database))
    worker = AsyncQueueWorker(without_tables, succeed)
    for start in (worker.start, worker.run, worker.drain):
        with pytest.raises(TablesMissingError, match="proletarian migrate upgrade --url"):
            await start()
    await worker.stop()
    await without_tables.dispose()


@in_a_loop
async def test_a_worker_keeps_trying_to_reach_its_database(loop_engine: AsyncEngine) -> None:
    """The worker logs the errors, and stops when it is asked to."""
    unreachable = create_async_engine(loop_engine.url.set(host="127.0.0.1", port=1, query={}))
    log = Log()
    async with AsyncQueueWorker(unreachable, succeed, concurrency=2, log=log) as worker:
        await until(lambda: log.events().count("polling-error") >= 4)
        assert log.events().count("listening-lost") == 1
        before = monotonic()
        await worker.stop()
        assert monotonic() - before < 8
    with pytest.raises(Exception, match=r"(?i)connect"):
        await worker.drain()
    await unreachable.dispose()


@in_a_loop
async def test_a_worker_waits_for_its_database_to_be_created(
    engine: Engine, loop_engine: AsyncEngine, empty_database: URL
) -> None:
    """The worker logs the errors and keeps trying."""
    missing = create_async_engine(loop_engine.url.set(database=f"{empty_database.database}_late"))
    log = Log()
    async with AsyncQueueWorker(missing, succeed, log=log):
        await until(lambda: log.events().count("polling-error") >= 3)
    await missing.dispose()


@driver_and_hold
@in_a_loop
async def test_a_worker_recovers_from_lost_connections(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A worker whose connections are all terminated keeps running jobs."""
    log = Log()
    options: Any = {"name": "loses", "log": log, "concurrency": 2, **held}
    async with AsyncQueueWorker(loop_engine, succeed, **options):
        await until(lambda: connections(engine, "loses % listening") == 1)
        for n in range(1, 4):
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'loses%%'"
                )
            put(engine, "a")
            await until(lambda n=n: len(archived(engine)) == n)
    assert {job.attempts for job in archived(engine)} == {1}


@driver_and_hold
@in_a_loop
async def test_a_worker_runs_with_eager_tasks(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """The worker supports ``asyncio.eager_task_factory``."""
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        pytest.skip("Python 3.12")
    asyncio.get_running_loop().set_task_factory(factory)
    handlers = Handlers()

    @handlers("coroutine")
    async def coroutine(payload: Any, session: AsyncSession) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0.01))
        assert await session.get(Job, "0" * 32) is None

    @handlers("plain")
    def plain(payload: Any, session: Session) -> None:
        assert session.get(Job, "0" * 32) is None

    for _ in range(3):
        put(engine, "coroutine")
        put(engine, "plain")
    async with AsyncQueueWorker(loop_engine, handlers, concurrency=2, **held):
        await until(lambda: len(archived(engine)) == 6)
    assert {job.status for job in archived(engine)} == {"success"}


# Sessions.


class TracingSession(Session):
    """A custom Session class."""


class ShopAsyncSession(AsyncSession):
    """A custom AsyncSession class that uses it."""

    sync_session_class = TracingSession


@driver_and_hold
@in_a_loop
async def test_handlers_get_the_sessions_of_the_async_sessionmaker(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Sessions have the classes and options of the sessionmaker, and their events fire."""
    maker = async_sessionmaker(
        loop_engine, class_=ShopAsyncSession, info={"tenant": 7}, expire_on_commit=False
    )
    seen: list[Any] = []
    flushed: list[Any] = []
    handlers = Handlers()

    @handlers("coroutine")
    async def coroutine(payload: Any, session: ShopAsyncSession) -> None:
        inside = isinstance(session.sync_session, TracingSession)
        seen.append((type(session), inside, session.info["tenant"]))
        seen.append(session.sync_session.expire_on_commit)
        session.add(Note(text="coroutine"))
        await session.flush()

    @handlers("plain")
    def plain(payload: Any, session: TracingSession) -> None:
        is_own = isinstance(session, TracingSession)
        seen.append((is_own, session.info["tenant"], session.expire_on_commit))
        session.add(Note(text="plain"))

    event.listen(
        TracingSession,
        "after_flush",
        lambda session, _: flushed.extend(thing.text for thing in session.new),
    )
    put(shop, "coroutine")
    put(shop, "plain")
    assert await drained(maker, handlers, concurrency=1, **held) == 2
    assert sorted(seen, key=str) == [
        (ShopAsyncSession, True, 7),
        (True, 7, False),
        False,
    ]
    assert sorted(flushed) == sorted(notes(shop)) == ["coroutine", "plain"]


@driver_and_hold
@in_a_loop
async def test_a_worker_does_not_use_the_pool_of_the_callers_engine(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A running worker checks out no connection of that pool, and leaves none checked out."""
    pool: Any = loop_engine.pool
    async with AsyncQueueWorker(loop_engine, succeed, **held):
        put(engine, "a")
        await until(lambda: archived(engine))
        assert pool.checkedout() == 0
        async with loop_engine.connect() as connection:
            name = await connection.exec_driver_sql("SHOW application_name")
            assert name.scalar() == ""
    assert pool.checkedout() == 0
