"""How running handlers end in an event loop: by timeout, cancellation, shutdown or loop exit."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from contextlib import suppress
from threading import Event
from typing import Any

import pytest
from sqlalchemy import URL, Engine, NullPool, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, ShutdownTimeoutError
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker, cancel
from sqlalchemy_proletarian.execution.transaction.recovery import TransactionRecovery

from .loops import (
    SOON,
    all_is_due_again,
    connections,
    drained,
    driver_and_hold,
    in_a_loop,
    others,
    until,
)
from .support import (
    MINUTE,
    SECOND,
    Log,
    Note,
    archived,
    eventually,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    succeed,
)

HOURS = 3600.0
TWICE = {"retries": 1, "delays": [60_000]}


class Sleepers:
    """Handlers that sleep in different ways, and counters of how they ended."""

    def __init__(self, **options: Any) -> None:
        self.handlers = Handlers()
        self.started = 0
        self.cancelled = 0
        self.ended = 0
        self.release = Event()
        for handler in (
            self.sleeps,
            self.writes,
            self.queries,
            self.wraps,
            self.finishes,
            self.ignores,
            self.blocks,
        ):
            self.handlers(handler.__name__, **options)(handler)

    async def sleeps(self, _: Any) -> None:
        self.started += 1
        try:
            await asyncio.sleep(HOURS)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            await asyncio.sleep(0.05)  # cleanup may await
            self.ended += 1

    async def writes(self, _: Any, session: AsyncSession) -> None:
        session.add(Note(text="half done"))
        await session.flush()
        await self.sleeps(_)

    async def queries(self, _: Any, session: AsyncSession) -> None:
        session.add(Note(text="half done"))
        await session.flush()
        self.started += 1
        await session.execute(select(func.pg_sleep(HOURS)))

    async def wraps(self, _: Any, session: AsyncSession) -> None:
        try:
            await self.queries(_, session)
        except asyncio.CancelledError:
            raise LookupError("cut off") from None

    async def finishes(self, _: Any, session: AsyncSession) -> None:
        session.add(Note(text="done"))
        with suppress(asyncio.CancelledError):
            await self.sleeps(_)

    async def ignores(self, _: Any, session: AsyncSession) -> None:
        session.add(Note(text="half done"))
        await session.flush()
        self.started += 1
        while not self.release.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.cancelled += 1

    def blocks(self, _: Any, session: Session) -> None:
        session.add(Note(text="half done"))
        session.flush()
        self.started += 1
        assert self.release.wait(30)


# Timeouts.


@pytest.mark.parametrize("concurrency", [1, 4])
@in_a_loop
async def test_a_coroutine_is_cancelled_at_its_timeout(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], concurrency: int
) -> None:
    """The attempt fails, its writes are undone and the job waits for its retry."""
    sleepers = Sleepers(timeout=SOON, retry=TWICE)
    job_types = ["sleeps", "writes", "queries", "wraps"]
    for job_type in job_types:
        put(shop, job_type)
    log = Log()
    before = time.monotonic()
    options: Any = {"log": log, "concurrency": concurrency, **held}
    assert await drained(loop_engine, sleepers.handlers, **options) == 4
    assert time.monotonic() - before < 10
    jobs = queued(shop)
    assert [job.job_type for job in jobs] == job_types
    for job in jobs:
        assert job.attempts == 1
        assert "JobTimeoutError: the handler ran longer than its timeout of 0.2 s" in job.error
        assert f"in {job.job_type}" in job.error  # where it was interrupted
    assert notes(shop) == []
    assert sleepers.ended == sleepers.cancelled == 2
    assert log.events().count("handle-job-exception") == log.events().count("retrying") == 4
    assert not {"polling-error", "batch-undone"} & set(log.events())


@in_a_loop
async def test_a_job_that_always_times_out_is_archived_as_a_failure(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Timeouts during a sleep and during a query both count as attempts."""
    sleepers = Sleepers(timeout=SOON / 2, retry={"retries": 2})
    put(shop, "sleeps")
    put(shop, "queries")
    assert await drained(loop_engine, sleepers.handlers, **held) == 6
    assert [(job.status, job.attempts) for job in archived(shop)] == [("failure", 3)] * 2


@driver_and_hold
@in_a_loop
async def test_a_timeout_does_not_affect_other_jobs(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A timeout during a query affects neither the worker nor other jobs."""
    sleepers = Sleepers(timeout=SOON)
    sleepers.handlers("fine")(lambda payload: None)
    log = Log()
    async with AsyncQueueWorker(loop_engine, sleepers.handlers, concurrency=2, log=log, **held):
        for _ in range(3):
            put(shop, "queries")
            put(shop, "fine")
        await until(lambda: len(archived(shop)) == 6)
    assert sorted((job.job_type, job.status) for job in archived(shop)) == [
        *[("fine", "success")] * 3,
        *[("queries", "failure")] * 3,
    ]
    assert "polling-error" not in log.events()


@driver_and_hold
@in_a_loop
async def test_a_handler_that_returns_after_its_timeout_succeeds(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """The coroutine catches its cancellation and returns."""
    put(shop, "finishes")
    await drained(loop_engine, Sleepers(timeout=SOON).handlers, **held)
    assert only_archived(shop).status == "success"
    assert notes(shop) == ["done"]


@pytest.mark.parametrize("during", ["sleep", "query"])
@in_a_loop
async def test_a_timeout_error_raised_by_the_handler_is_a_failure(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], during: str
) -> None:
    """A TimeoutError of the handler's own is a normal failure, during a query as well."""
    handlers = Handlers()

    @handlers("own", timeout=MINUTE, retry=TWICE)
    async def own(payload: Any, session: AsyncSession) -> None:
        session.add(Note(text="half done"))
        await session.flush()
        async with asyncio.timeout(0.1):
            if during == "sleep":
                await asyncio.sleep(HOURS)
            await session.execute(select(func.pg_sleep(HOURS)))

    put(shop, "own")
    log = Log()
    assert await drained(loop_engine, handlers, log=log, **held) == 1
    job = only_queued(shop)
    assert job.attempts == 1
    assert "TimeoutError" in job.error
    assert "JobTimeoutError" not in job.error
    assert notes(shop) == []
    assert "polling-error" not in log.events()


@in_a_loop
async def test_a_handler_that_swallows_a_cancelled_query_fails(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A job whose connection was closed has failed, even if its handler returns."""
    handlers = Handlers()

    @handlers("swallows")
    async def swallows(payload: Any, session: AsyncSession) -> None:
        session.add(Note(text="lost"))
        await session.flush()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await session.execute(select(func.pg_sleep(HOURS)))

    put(shop, "swallows")
    assert await drained(loop_engine, handlers, **held) == 1
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("failure", 1)
    assert notes(shop) == []


@driver_and_hold
@in_a_loop
async def test_a_cancelled_error_raised_by_the_handler_is_a_failure(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    handlers = Handlers(retry=TWICE)

    @handlers("plain")
    def plain(payload: Any) -> None:
        raise asyncio.CancelledError("mine")

    @handlers("coroutine", timeout=MINUTE)
    async def coroutine(payload: Any) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel("mine")
        await future

    put(shop, "plain")
    put(shop, "coroutine")
    assert await drained(loop_engine, handlers, **held) == 2
    for job in queued(shop):
        assert job.attempts == 1
        assert "RuntimeError: the handler raised CancelledError('mine')" in job.error
    assert archived(shop) == []


@driver_and_hold
@in_a_loop
async def test_a_handler_that_cancels_its_own_task_fails(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """The cancellation does not affect other jobs."""
    handlers = Handlers()
    counts: list[int] = []

    @handlers("cancels")
    async def cancels(payload: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        counts.append(task.cancelling())
        task.cancel()
        if payload == "and waits":
            await asyncio.sleep(HOURS)

    for payload in ("and waits", "and returns", "and waits"):
        put(shop, "cancels", payload)
    assert await drained(loop_engine, handlers, concurrency=1, **held) == 3
    assert counts == [0, 0, 0]
    assert {job.status for job in archived(shop)} == {"failure"}


@driver_and_hold
@in_a_loop
async def test_a_timeout_of_a_plain_function_is_logged_once(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """The function may still complete after its timeout."""
    handlers = Handlers()

    @handlers("slow", timeout=SOON / 2)
    def slow(payload: Any, session: Session) -> None:
        time.sleep(0.3)
        session.add(Note(text="done"))

    @handlers("fast", timeout=MINUTE)
    def fast(payload: Any) -> None: ...

    put(shop, "slow")
    put(shop, "fast")
    log = Log()
    assert await drained(loop_engine, handlers, log=log, **held) == 2
    (late,) = log.data("job-timed-out")
    assert (late["job_type"], late["timeout"]) == ("slow", 0.1)
    assert {job.status for job in archived(shop)} == {"success"}
    assert notes(shop) == ["done"]


# Exit exceptions.


EXITS = [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration]


@in_a_loop
async def test_exit_exceptions_are_failed_attempts(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """The event loop, the worker and other jobs continue."""
    handlers = Handlers(retry={"retries": 1})

    @handlers("plain")
    def plain(payload: int) -> None:
        raise EXITS[payload]

    @handlers("coroutine")
    async def coroutine(payload: int) -> None:
        await asyncio.sleep(0)
        raise EXITS[payload]

    log = Log()
    async with AsyncQueueWorker(loop_engine, handlers, log=log, **held):
        for n in range(len(EXITS)):
            put(shop, "plain", n)
            put(shop, "coroutine", n)
        await until(lambda: len(archived(shop)) == 2 * len(EXITS))
    for job in archived(shop):
        assert (job.status, job.attempts) == ("failure", 2)
        assert EXITS[int(job.payload)].__name__ in job.error
    assert "polling-error" not in log.events()


# Shutdown.


@in_a_loop
async def test_shutdown_cancels_coroutines_after_its_timeout(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Their jobs are due again, their writes are undone and the attempts are not counted."""
    sleepers = Sleepers(retry={"retries": 3})
    for job_type in ("sleeps", "writes", "queries"):
        put(shop, job_type)
    log = Log()
    worker = AsyncQueueWorker(
        loop_engine,
        sleepers.handlers,
        name="stops",
        concurrency=3,
        shutdown_timeout=SOON,
        log=log,
        **held,
    )
    await worker.start()
    await until(lambda: sleepers.started == 3)
    before = time.monotonic()
    await worker.stop()
    assert 0.2 <= time.monotonic() - before < 8
    assert sleepers.ended == sleepers.cancelled == 2
    assert not others()
    await until(lambda: all_is_due_again(shop))
    await until(lambda: connections(shop, "stops") == 0)
    assert notes(shop) == []
    assert "handle-job-exception" not in log.events()
    assert "polling-error" not in log.events()


@driver_and_hold
@in_a_loop
async def test_shutdown_waits_for_coroutines(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A coroutine that ends within ``shutdown_timeout`` is not cancelled."""
    handlers = Handlers()
    started: list[int] = []

    @handlers("job")
    async def job(payload: Any, session: AsyncSession) -> None:
        started.append(1)
        await asyncio.sleep(0.3)
        session.add(Note(text="done"))

    put(shop, "job")
    async with AsyncQueueWorker(loop_engine, handlers, **held):
        await until(lambda: started)
    assert only_archived(shop).status == "success"
    assert notes(shop) == ["done"]


@driver_and_hold
@in_a_loop
async def test_a_handler_that_returns_after_shutdown_cancelled_it_succeeds(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    sleepers = Sleepers()
    put(shop, "finishes")
    async with AsyncQueueWorker(loop_engine, sleepers.handlers, shutdown_timeout=SOON, **held):
        await until(lambda: sleepers.started)
    assert only_archived(shop).status == "success"
    assert notes(shop) == ["done"]


@driver_and_hold
@pytest.mark.parametrize("job_type", ["ignores", "blocks"])
@in_a_loop
async def test_shutdown_abandons_handlers_that_cannot_be_cancelled(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], job_type: str
) -> None:
    """The job is due again, and nothing that the abandoned handler wrote is kept."""
    sleepers = Sleepers()
    put(shop, job_type)
    worker = AsyncQueueWorker(
        loop_engine, sleepers.handlers, name="gives up", shutdown_timeout=SOON, **held
    )
    await worker.start()
    await until(lambda: sleepers.started)
    with pytest.raises(ShutdownTimeoutError, match=r"1 of 10 handlers .* after 0\.2 s"):
        await worker.stop()
    assert sleepers.cancelled == (job_type == "ignores")
    await until(lambda: all_is_due_again(shop))
    handlers = Handlers()

    @handlers(job_type)
    async def done(payload: Any, session: AsyncSession) -> None:
        session.add(Note(text="done"))

    assert await drained(loop_engine, handlers, **held) == 1
    sleepers.release.set()
    await until(lambda: not others())
    await until(lambda: connections(shop, "gives up") == 0)
    assert notes(shop) == ["done"]
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)


@in_a_loop
async def test_a_cancelled_stop_cancels_the_handlers(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """``stop`` may be called again afterwards."""
    sleepers = Sleepers()
    put(shop, "writes")
    calls: list[int] = []
    worker = AsyncQueueWorker(
        loop_engine, sleepers.handlers, on_shutdown=lambda: calls.append(1), **held
    )
    await worker.start()
    await until(lambda: sleepers.started)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await worker.stop()
    await until(lambda: sleepers.cancelled == sleepers.ended == 1)
    await worker.stop()
    assert calls == [1]
    assert all_is_due_again(shop)
    assert notes(shop) == []


@driver_and_hold
@in_a_loop
async def test_cancelling_run_lets_running_handlers_finish(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    sleepers = Sleepers()
    put(shop, "ignores")
    running = asyncio.create_task(
        AsyncQueueWorker(loop_engine, sleepers.handlers, name="cancelled", **held).run()
    )
    await until(lambda: sleepers.started)
    running.cancel()
    await asyncio.sleep(0.1)
    assert not running.done()
    sleepers.release.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sleepers.cancelled == 0
    assert only_archived(shop).status == "success"
    await until(lambda: connections(shop, "cancelled") == 0)


@pytest.mark.parametrize("job_types", [["queries"], ["sleeps", "writes", "queries"]])
@in_a_loop
async def test_cancelling_drain_cancels_running_handlers(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], job_types: list[str]
) -> None:
    """Each handler is cancelled once, and ``drain`` returns when all have ended."""
    sleepers = Sleepers()
    for job_type in job_types:
        put(shop, job_type)
    options: Any = {"concurrency": len(job_types), **held}
    worker = AsyncQueueWorker(loop_engine, sleepers.handlers, name="drains", **options)
    draining = asyncio.create_task(worker.drain())
    await until(lambda: sleepers.started == len(job_types))
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert sleepers.ended == sleepers.cancelled == len(job_types) - 1
    await until(lambda: not others())
    await until(lambda: all_is_due_again(shop))
    await until(lambda: connections(shop, "drains") == 0)
    assert notes(shop) == []
    assert await drained(loop_engine, succeed) == len(job_types)


@driver_and_hold
@pytest.mark.parametrize("concurrency", [1, 2])
@in_a_loop
async def test_a_cancelled_drain_does_not_wait_for_threads(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], concurrency: int
) -> None:
    """What the threads write afterwards is not committed."""
    sleepers = Sleepers()
    for _ in range(concurrency):
        put(shop, "blocks")
    draining = asyncio.create_task(
        AsyncQueueWorker(loop_engine, sleepers.handlers, concurrency=concurrency, **held).drain()
    )
    await until(lambda: sleepers.started == concurrency)
    before = time.monotonic()
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert time.monotonic() - before < 5
    await until(lambda: all_is_due_again(shop))
    sleepers.release.set()
    await until(lambda: not others())
    assert notes(shop) == []


# manage.cancel, which notifies the worker.


@pytest.mark.parametrize("job_type", ["sleeps", "queries"])
@in_a_loop
async def test_cancel_ends_a_running_coroutine(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], job_type: str
) -> None:
    """The coroutine ends immediately, during a query as well."""
    sleepers = Sleepers(retry={"retries": 3})
    log = Log()
    async with AsyncQueueWorker(loop_engine, sleepers.handlers, log=log, **held) as worker:
        await until(lambda: worker._core.pool.listener.active)
        job_id = put(shop, job_type)
        await until(lambda: sleepers.started)
        async with AsyncSession(loop_engine) as session, session.begin():
            answer = await cancel(session, job_id)
        assert answer == ("cancelled" if held else "requested")
        await until(lambda: archived(shop))
        await until(lambda: not list(worker._core.pool.runners[0].running()) or not held)
    job = only_archived(shop)
    assert job.status == "cancelled"
    assert sleepers.started == 1
    assert notes(shop) == []
    assert "polling-error" not in log.events()


@in_a_loop
async def test_a_cancelled_job_is_not_run_again_by_another_task(
    shop: Engine,
    loop_engine: AsyncEngine,
    held: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cancelled query frees its job at once; a task that claims the job then cancels it too."""
    count = TransactionRecovery.count_pending

    def slowly(recovery: TransactionRecovery, *args: Any) -> None:
        recovery._runtime.flag().wait(2.0)  # about as long as a reconnect may take
        count(recovery, *args)

    monkeypatch.setattr(TransactionRecovery, "count_pending", slowly)
    sleepers = Sleepers(retry={"retries": 3})
    options: Any = {"concurrency": 2, "polling_interval": 0.2 * SECOND, **held}
    async with AsyncQueueWorker(loop_engine, sleepers.handlers, **options) as worker:
        await until(lambda: worker._core.pool.listener.active)
        job_id = put(shop, "queries")
        await until(lambda: sleepers.started)
        async with AsyncSession(loop_engine) as session, session.begin():
            await cancel(session, job_id)
        await until(lambda: archived(shop))
    assert only_archived(shop).status == "cancelled"
    assert sleepers.started == 1
    assert notes(shop) == []


# The end of the event loop.


def run_and_leave(url: URL, sleepers: Sleepers, started: int, **options: Any) -> float:
    """Run a worker in a loop that ends without stopping it; return how long the exit took."""
    left = 0.0

    async def main() -> None:
        nonlocal left
        engine = create_async_engine(url, poolclass=NullPool)
        await AsyncQueueWorker(engine, sleepers.handlers, name="left", **options).start()
        await until(lambda: sleepers.started == started)
        left = time.monotonic()

    with warnings.catch_warnings():
        # Drivers warn about connections that were still being opened: nothing can close them now.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(main())
        ended = time.monotonic()
        gc.collect()
    return ended - left


@pytest.mark.parametrize("job_types", [["sleeps", "writes", "queries"], ["blocks", "writes"]])
def test_a_loop_may_end_before_its_worker(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], job_types: list[str]
) -> None:
    """``asyncio.run`` does not hang, and no job is lost or counted."""
    sleepers = Sleepers()
    for job_type in job_types:
        put(shop, job_type)
    options: Any = {"concurrency": len(job_types), **held}
    assert run_and_leave(loop_engine.url, sleepers, len(job_types), **options) < 8
    assert sleepers.ended == sleepers.cancelled == len(job_types) - 1
    eventually(lambda: all_is_due_again(shop))
    sleepers.release.set()
    time.sleep(0.1)
    assert notes(shop) == []
