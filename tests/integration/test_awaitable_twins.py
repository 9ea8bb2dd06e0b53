"""The async counterparts of the functions that execute SQL immediately."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    JobInterruptedError,
    JobTimeoutError,
    enqueue,
)
from sqlalchemy_proletarian.asyncio import cancel, enqueue_many, enqueue_unique, process_next_job

from .loops import in_a_loop
from .support import Log, Note, archived, notes, only_archived, only_queued, put, queued, succeed

AnySession = AsyncSession | async_scoped_session[Any]


@asynccontextmanager
async def session_on(engine: AsyncEngine, scoped: str = "") -> AsyncIterator[AnySession]:
    """Yield an AsyncSession, or an async_scoped_session."""
    session: AnySession = AsyncSession(engine)
    if scoped:
        maker = async_sessionmaker(engine)
        session = async_scoped_session(maker, scopefunc=asyncio.current_task)
    try:
        yield session
    finally:
        await session.close()


each_session = pytest.mark.parametrize("scoped", ["", "scoped"], ids=["session", "scoped"])


@each_session
@in_a_loop
async def test_await_enqueue_many(engine: Engine, loop_engine: AsyncEngine, scoped: str) -> None:
    """``await enqueue_many`` inserts in the session's transaction and returns the count."""
    async with session_on(loop_engine, scoped) as session:
        assert await enqueue_many(session, [("a", 1), ("b", {"x": "ü"})], priority=3) == 2
        assert queued(engine) == []
        await session.commit()
        await enqueue_many(session, [("c", 1)])
        await session.rollback()
    jobs = [(job.job_type, job.payload, job.priority) for job in queued(engine)]
    assert sorted(jobs) == [("a", "1", 3), ("b", '{"x":"ü"}', 3)]


@each_session
@in_a_loop
async def test_await_enqueue_unique(engine: Engine, loop_engine: AsyncEngine, scoped: str) -> None:
    """``await enqueue_unique`` returns the job that has the key, new or not."""
    async with session_on(loop_engine, scoped) as session:
        one = await enqueue_unique(session, "a", 1, unique_key="one", priority=2)
        assert isinstance(one.job, Job)
        again = await enqueue_unique(session, "a", 2, unique_key="one")
        assert not again.created
        assert again.job is one.job
        assert (await enqueue_unique(session, "a", unique_key="two")).created
        await session.commit()
    assert [(job.unique_key, job.payload) for job in queued(engine)] == [
        ("one", "1"),
        ("two", "null"),
    ]


@each_session
@in_a_loop
async def test_await_cancel(engine: Engine, loop_engine: AsyncEngine, scoped: str) -> None:
    """``await cancel`` archives a queued job in the session's transaction."""
    job_id, other = put(engine, "a"), put(engine, "a")
    async with session_on(loop_engine, scoped) as session:
        assert await cancel(session, job_id, reason="not needed") == "cancelled"
        assert archived(engine) == []
        await session.commit()
        assert await cancel(session, job_id) is None
        await cancel(session, other)
        await session.rollback()
    assert (only_archived(engine).status, only_archived(engine).error) == (
        "cancelled",
        "not needed",
    )
    assert only_queued(engine).job_id == other


@in_a_loop
async def test_enqueue_takes_an_async_session(engine: Engine, loop_engine: AsyncEngine) -> None:
    """``enqueue`` accepts an AsyncSession and is not awaited."""
    async with AsyncSession(loop_engine) as session, session.begin():
        assert isinstance(enqueue(session, "a"), Job)
    assert only_queued(engine).job_type == "a"


def test_async_counterparts_are_documented_coroutine_functions() -> None:
    for function in (enqueue_many, enqueue_unique, cancel, process_next_job):
        assert inspect.iscoroutinefunction(function)
        assert function.__doc__


def handlers_of_both_kinds() -> Handlers:
    handlers = Handlers()

    @handlers("coroutine")
    async def coroutine(payload: Any, session: AsyncSession, job: Job) -> None:
        session.add(Note(text=f"{job.job_type} {payload}"))
        await session.flush()
        if payload == "fails":
            raise ValueError

    @handlers("plain")
    def plain(payload: Any, session: Session, job: Job) -> None:
        session.add(Note(text=f"{job.job_type} {payload}"))
        session.flush()
        if payload == "fails":
            raise ValueError

    return handlers


@each_session
@in_a_loop
async def test_await_process_next_job(shop: Engine, loop_engine: AsyncEngine, scoped: str) -> None:
    """``await process_next_job`` runs one due job, async or not, and commits it."""
    handlers = handlers_of_both_kinds()
    async with session_on(loop_engine, scoped) as session:
        assert await process_next_job(session, handlers) is None
        for job_type in ("coroutine", "plain"):
            for payload in ("works", "fails"):
                put(shop, job_type, payload)
        for n in range(1, 5):
            assert await process_next_job(session, handlers) is True
            assert len(archived(shop)) == n
        assert await process_next_job(session, handlers) is None
    assert notes(shop) == ["coroutine works", "plain works"]
    assert [job.status for job in archived(shop)] == ["success", "failure"] * 2


@in_a_loop
async def test_process_next_job_in_an_outer_transaction_is_undone_with_it(
    shop: Engine, loop_engine: AsyncEngine
) -> None:
    async with loop_engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            enqueue(session, "coroutine", "works")
            await session.commit()
            enqueue(session, "plain", "works")  # visible before the commit
            for _ in range(2):
                assert await process_next_job(session, handlers_of_both_kinds()) is True
            assert await process_next_job(session, handlers_of_both_kinds()) is None
            texts = await session.scalars(select(Note.text).order_by(Note.id))
            assert texts.all() == ["coroutine works", "plain works"]
            assert await session.scalar(select(func.count()).select_from(ArchivedJob)) == 2
        await outer.rollback()
    assert notes(shop) == archived(shop) == queued(shop) == []


@in_a_loop
async def test_process_next_job_takes_the_options_of_a_worker(
    engine: Engine, loop_engine: AsyncEngine
) -> None:
    put(engine, "a", queue="mail")
    log = Log()
    failed: list[str] = []

    async def fails(job_type: str, payload: Any) -> None:
        raise ValueError

    async with AsyncSession(loop_engine) as session:
        assert await process_next_job(session, fails) is None
        options: Any = {"queues": "mail", "log": log, "retry_strategy": {"retries": 1}}
        options["on_failed"] = lambda job, error: failed.append(job.job_type)
        assert await process_next_job(session, fails, **options) is True
        assert only_queued(engine).attempts == 1
        assert await process_next_job(session, fails, **options) is True
    assert only_archived(engine).attempts == 2
    assert failed == ["a"]
    assert "not-retrying" in log.events()


@in_a_loop
async def test_process_next_job_returns_false_for_an_interrupted_job(
    engine: Engine, loop_engine: AsyncEngine
) -> None:
    """After JobInterruptedError the job is due again and the attempt is not counted."""

    async def interrupt(job_type: str, payload: Any) -> None:
        raise JobInterruptedError

    put(engine, "a")
    async with AsyncSession(loop_engine) as session:
        assert await process_next_job(session, interrupt) is False
        assert await process_next_job(session, succeed) is True
    assert only_archived(engine).attempts == 1


@in_a_loop
async def test_process_next_job_applies_handler_timeouts(
    shop: Engine, loop_engine: AsyncEngine
) -> None:
    """A timeout during a query closes the caller's connection and raises JobTimeoutError."""
    handlers = Handlers()

    @handlers("sleeps", timeout=50)
    async def sleeps(payload: Any) -> None:
        await asyncio.sleep(60)

    @handlers("queries", timeout=50)
    async def queries(payload: Any, session: AsyncSession) -> None:
        await session.execute(select(func.pg_sleep(60)))

    put(shop, "sleeps")
    async with AsyncSession(loop_engine) as session:
        assert await process_next_job(session, handlers) is True
        assert "JobTimeoutError" in only_archived(shop).error
        put(shop, "queries")
        with pytest.raises(JobTimeoutError):
            await process_next_job(session, handlers)
        await session.rollback()
        assert only_queued(shop).attempts == 0


@in_a_loop
async def test_cancelling_process_next_job_cancels_the_handler(
    shop: Engine, loop_engine: AsyncEngine
) -> None:
    """The handler may use its session to clean up, and nothing that it wrote is kept."""
    handlers = Handlers()
    counts: list[int | None] = []
    half_done = asyncio.Event()

    @handlers("sleeps")
    async def sleeps(payload: Any, session: AsyncSession) -> None:
        session.add(Note(text="half done"))
        await session.flush()
        half_done.set()
        try:
            await asyncio.sleep(60)
        finally:
            counts.append(await session.scalar(select(func.count()).select_from(Note)))

    put(shop, "sleeps")
    async with AsyncSession(loop_engine) as session:
        processing = asyncio.create_task(process_next_job(session, handlers))
        await half_done.wait()
        processing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await processing
    assert counts == [1]
    assert notes(shop) == []
    assert only_queued(shop).attempts == 0
