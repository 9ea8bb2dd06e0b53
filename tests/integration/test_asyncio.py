"""The life of a worker in an event loop, and the sessions it hands to handlers."""

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
async def test_context_manager(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Inside ``async with`` jobs run; afterwards they wait, and nothing of the worker is left."""
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
async def test_run(engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]) -> None:
    """``run`` works until the worker is asked to stop, and returns when its jobs have ended."""
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
async def test_drain(engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]) -> None:
    """``drain`` returns how many runs it took, retries that came due included."""

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
async def test_concurrency(engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]) -> None:
    """As many jobs run at a time as ``concurrency`` says, and no more."""
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
async def test_start_twice(engine: Engine, loop_engine: AsyncEngine) -> None:
    """A running worker is neither started nor drained, and goes on."""
    async with AsyncQueueWorker(loop_engine, succeed, name="w") as worker:
        for start in (worker.start, worker.run):
            with pytest.raises(RuntimeError, match="the worker w is running already"):
                await start()
        with pytest.raises(RuntimeError, match="the worker w is running"):
            await worker.drain()
        put(engine, "a")
        await until(lambda: archived(engine))


@in_a_loop
async def test_two_drains_at_once(engine: Engine, loop_engine: AsyncEngine) -> None:
    """A worker that drains is not drained a second time meanwhile."""
    worker = AsyncQueueWorker(loop_engine, succeed)
    first, second = await asyncio.gather(worker.drain(), worker.drain(), return_exceptions=True)
    assert first == 0
    assert isinstance(second, RuntimeError)
    assert await worker.drain() == 0


@in_a_loop
async def test_stop_without_start_and_twice(engine: Engine, loop_engine: AsyncEngine) -> None:
    """Stopping a worker that does not run does nothing."""
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
async def test_stop_beside_run(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """``stop`` ends ``run`` in another task, and the end is reported once."""
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
async def test_restart(engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]) -> None:
    """A stopped worker starts again, drains, and starts once more."""
    worker = AsyncQueueWorker(loop_engine, succeed, **held)
    for n in (1, 3):
        async with worker:
            put(engine, "a")
            await until(lambda n=n: len(archived(engine)) == n)
        put(engine, "a")
        assert await worker.drain() == 1
    assert len(archived(engine)) == 4
    assert queued(engine) == []


def test_restart_in_another_loop(engine: Engine, url: URL) -> None:
    """One worker serves loop after loop, each with the connections of its own."""
    loop_engine = create_async_engine(url)
    worker = AsyncQueueWorker(loop_engine, succeed)

    async def life() -> None:
        async with worker:
            put(engine, "a")
            await until(lambda: not queued(engine))
        await loop_engine.dispose()

    for _ in range(2):
        asyncio.run(life())
    assert len(archived(engine)) == 2


@in_a_loop
async def test_stop_from_another_thread(engine: Engine, loop_engine: AsyncEngine) -> None:
    """``request_stop`` may be called from any thread, and is heard at once."""
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
async def test_idle_workers_stop_at_once(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """An idle worker stops at once, whatever its polling interval."""
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
async def test_stop_while_starting(engine: Engine, loop_engine: AsyncEngine) -> None:
    """A worker that is asked to stop while it starts runs nothing, and leaves nothing behind."""
    put(engine, "a")
    worker = AsyncQueueWorker(loop_engine, succeed, name="hardly")
    starting = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    worker.request_stop()
    await starting
    assert only_queued(engine).attempts == 0
    await until(lambda: connections(engine, "hardly") == 0)


@in_a_loop
async def test_start_that_is_cancelled(engine: Engine, loop_engine: AsyncEngine) -> None:
    """A start that is cancelled has not happened: the worker may be started again."""
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
async def test_missing_tables(empty_database: URL, loop_engine: AsyncEngine) -> None:
    """Without the tables a worker does not start, and names the command that makes them."""
    elsewhere = create_async_engine(loop_engine.url.set(database=empty_database.database))
    worker = AsyncQueueWorker(elsewhere, succeed)
    for start in (worker.start, worker.run, worker.drain):
        with pytest.raises(TablesMissingError, match="proletarian migrate upgrade --url"):
            await start()
    await worker.stop()
    await elsewhere.dispose()


@in_a_loop
async def test_unreachable_database(loop_engine: AsyncEngine) -> None:
    """A worker may start before its database: it says so, keeps trying, and stops when asked."""
    nowhere = create_async_engine(loop_engine.url.set(host="127.0.0.1", port=1, query={}))
    log = Log()
    async with AsyncQueueWorker(nowhere, succeed, concurrency=2, log=log) as worker:
        await until(lambda: log.events().count("polling-error") >= 4)
        assert log.events().count("listening-lost") == 1
        before = monotonic()
        await worker.stop()
        assert monotonic() - before < 8
    with pytest.raises(Exception, match=r"(?i)connect"):
        await worker.drain()
    await nowhere.dispose()


@in_a_loop
async def test_database_that_does_not_exist_yet(
    engine: Engine, loop_engine: AsyncEngine, empty_database: URL
) -> None:
    """A worker that starts before its database was created says so and keeps trying."""
    late = create_async_engine(loop_engine.url.set(database=f"{empty_database.database}_late"))
    log = Log()
    async with AsyncQueueWorker(late, succeed, log=log):
        await until(lambda: log.events().count("polling-error") >= 3)
    await late.dispose()


@driver_and_hold
@in_a_loop
async def test_lost_connections(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A worker survives the loss of every connection: it says so, and works on."""
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
async def test_eager_tasks(engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]) -> None:
    """A loop whose tasks begin where they are made runs a worker like any other."""
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
    """A Session class of the user's own."""


class ShopSession(AsyncSession):
    """And an AsyncSession class around it."""

    sync_session_class = TracingSession


@driver_and_hold
@in_a_loop
async def test_sessions_of_the_users_own(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Handlers get the classes and options of the ``async_sessionmaker``, and its events fire."""
    maker = async_sessionmaker(
        loop_engine, class_=ShopSession, info={"tenant": 7}, expire_on_commit=False
    )
    seen: list[Any] = []
    flushed: list[Any] = []
    handlers = Handlers()

    @handlers("coroutine")
    async def coroutine(payload: Any, session: ShopSession) -> None:
        seen.append((type(session), type(session.sync_session), session.info["tenant"]))
        seen.append(session.sync_session.expire_on_commit)
        session.add(Note(text="coroutine"))
        await session.flush()

    @handlers("plain")
    def plain(payload: Any, session: TracingSession) -> None:
        seen.append((type(session), session.info["tenant"], session.expire_on_commit))
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
        (ShopSession, TracingSession, 7),
        (TracingSession, 7, False),
        False,
    ]
    assert sorted(flushed) == sorted(notes(shop)) == ["coroutine", "plain"]


@driver_and_hold
@in_a_loop
async def test_the_callers_engine_is_unchanged(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A worker takes no connection from the caller's pool while it runs, and leaves none in use."""
    pool: Any = loop_engine.pool
    async with AsyncQueueWorker(loop_engine, succeed, **held):
        put(engine, "a")
        await until(lambda: archived(engine))
        assert pool.checkedout() == 0
        async with loop_engine.connect() as connection:
            name = await connection.exec_driver_sql("SHOW application_name")
            assert name.scalar() == ""
    assert pool.checkedout() == 0
