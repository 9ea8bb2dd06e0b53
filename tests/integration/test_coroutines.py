"""How ``async def`` handlers use their session, and the outcome of their jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from sqlalchemy_proletarian import Handlers, Job, RetryAfter, RetryStrategy, enqueue
from sqlalchemy_proletarian.asyncio import enqueue_many, enqueue_unique

from .kinds import Kind, event_loops
from .support import (
    MINUTE,
    ManualClock,
    Note,
    archived,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
)


@event_loops
def test_a_coroutine_uses_its_session_and_job(shop: Engine, kind: Kind) -> None:
    """The coroutine awaits its statements; they are committed with the completion of its job."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("write")
    async def write(payload: str, session: AsyncSession, job: Job) -> None:
        assert job in session
        assert await session.get(Job, job.job_id) is job
        session.add(Note(text=payload))
        await session.flush()
        seen.append((job.attempts, (await session.scalars(select(Note.text))).all()))
        await asyncio.sleep(0)
        if payload == "lost":
            raise ValueError(payload)

    put(shop, "write", "lost")
    put(shop, "write", "kept")
    assert kind.run_all(shop, handlers) == 2
    assert seen == [(1, ["lost"]), (1, ["kept"])]
    assert notes(shop) == ["kept"]
    assert [job.status for job in archived(shop)] == ["failure", "success"]


@event_loops
def test_a_failed_coroutine_is_retried(engine: Engine, kind: Kind, clock: ManualClock) -> None:
    """An exception is handled as in a plain function, and its traceback is stored."""
    handlers = Handlers()

    @handlers("mail", retry=RetryStrategy(2, [MINUTE]))
    async def mail(payload: Any, job: Job) -> None:
        await asyncio.sleep(0)
        raise RetryAfter(2 * MINUTE, "busy") if job.attempts == 1 else ValueError("no mail today")

    put(engine, "mail", clock=clock)
    for attempts, delay in ((1, 2 * MINUTE), (2, MINUTE)):
        assert kind.run_all(engine, handlers, clock=clock) == 1
        job = only_queued(engine)
        assert (job.attempts, job.process_at) == (attempts, clock.now + delay)
        clock.advance(delay)
    kind.run_all(engine, handlers, clock=clock)
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("failure", 3)
    assert "in mail" in job.error
    assert job.error.endswith("ValueError: no mail today")


@event_loops
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_database_error_fails_the_job(shop: Engine, kind: Kind, swallowed: bool) -> None:
    """The job fails even if the coroutine suppresses the error, and its writes are undone."""
    handlers = Handlers()

    @handlers("sql")
    async def sql(payload: Any, session: AsyncSession) -> None:
        session.add(Note(text="lost"))
        await session.flush()
        with suppress(Exception if swallowed else ()):
            await session.execute(text("SELECT 1/0"))

    @handlers("fine")
    async def fine(payload: Any, session: AsyncSession) -> None:
        session.add(Note(text="kept"))

    put(shop, "sql")
    put(shop, "fine")
    assert kind.run_all(shop, handlers) == 2
    assert [job.status for job in archived(shop)] == ["failure", "success"]
    assert notes(shop) == ["kept"]


async def write_after_rollback(session: AsyncSession) -> None:
    """Roll back and write again."""
    await session.rollback()
    session.add(Note(text="after"))
    await session.flush()


@event_loops
@pytest.mark.parametrize(
    "end",
    [AsyncSession.commit, AsyncSession.rollback, AsyncSession.close, write_after_rollback],
)
@pytest.mark.parametrize("used", [True, False])
def test_a_coroutine_that_ends_the_transaction_fails(
    shop: Engine, kind: Kind, end: Callable[[AsyncSession], Awaitable[None]], used: bool
) -> None:
    """A commit, rollback or close of the session fails the job and undoes its writes."""
    handlers = Handlers()

    @handlers("ends")
    async def ends(payload: Any, session: AsyncSession) -> None:
        if used:
            session.add(Note(text="lost"))
            await session.flush()
        await end(session)

    put(shop, "ends")
    kind.run_all(shop, handlers)
    job = only_archived(shop)
    assert job.status == "failure"
    assert "the handler ended the transaction of the session it was handed" in job.error
    assert notes(shop) == []


@event_loops
def test_a_coroutine_may_use_savepoints(shop: Engine, kind: Kind) -> None:
    """A coroutine may undo a part of its work with a SAVEPOINT."""
    handlers = Handlers()

    @handlers("mail")
    async def mail(payload: Any, session: AsyncSession) -> None:
        session.add(Note(text="kept"))
        savepoint = await session.begin_nested()
        session.add(Note(text="undone"))
        await savepoint.rollback()
        async with session.begin_nested():
            session.add(Note(text="kept too"))

    put(shop, "mail")
    kind.run_all(shop, handlers)
    assert only_archived(shop).status == "success"
    assert notes(shop) == ["kept", "kept too"]


@event_loops
def test_a_failed_commit_fails_the_job(shop: Engine, kind: Kind) -> None:
    handlers = Handlers(retry={"retries": 1})

    @handlers("write")
    async def write(payload: int, session: AsyncSession) -> None:
        session.add(Note(text=f"note {payload}", code=min(payload, 2)))
        await session.flush()

    for n in (1, 2, 3):
        put(shop, "write", n)
    assert kind.run_all(shop, handlers) == 4
    assert notes(shop) == ["note 1", "note 2"]
    assert [(job.status, job.attempts) for job in archived(shop)] == [
        ("success", 1),
        ("success", 1),
        ("failure", 2),
    ]


@event_loops
def test_a_coroutine_may_enqueue_jobs(engine: Engine, kind: Kind) -> None:
    """Jobs enqueued by any function exist only if the coroutine's own job succeeds."""
    handlers = Handlers()

    @handlers("parent")
    async def parent(payload: str, session: AsyncSession) -> None:
        enqueue(session, "child", payload)
        child.enqueue(session, payload)
        await enqueue_unique(session, "child", payload, unique_key=payload)
        await enqueue_many(session, [("child", payload), ("child", payload)])
        if payload == "fails":
            raise ValueError

    @handlers("child")
    async def child(payload: str) -> None: ...

    put(engine, "parent", "works")
    put(engine, "parent", "fails")
    assert kind.run_all(engine, handlers) == 7
    assert [job.payload for job in archived(engine) if job.job_type == "child"] == ['"works"'] * 5
    assert queued(engine) == []


class Mailer:
    """An object with an async ``__call__``."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def __call__(self, job_type: str, payload: Any) -> None:
        await asyncio.sleep(0)
        self.seen.append((job_type, payload))

    async def handle(self, job_type: str, payload: Any) -> None:
        await self(job_type, payload)


@event_loops
@pytest.mark.parametrize("method", [False, True])
def test_an_async_callable_runs_jobs_of_every_type(
    engine: Engine, kind: Kind, method: bool
) -> None:
    """The callable may be a method or an object."""
    mailer = Mailer()
    put(engine, "a", {"x": [1, None]})
    put(engine, "b")
    assert kind.run_all(engine, mailer.handle if method else mailer) == 2
    assert mailer.seen == [("a", {"x": [1, None]}), ("b", None)]


@event_loops
def test_coroutines_run_concurrently(shop: Engine, kind: Kind) -> None:
    """As many coroutines as the concurrency run at the same time, each with its own session."""
    handlers = Handlers()
    together = asyncio.Barrier(4)
    most = 0

    @handlers("meet")
    async def meet(payload: int, session: AsyncSession) -> None:
        nonlocal most
        session.add(Note(text=f"note {payload}"))
        await session.flush()
        async with asyncio.timeout(10), together:
            most = max(most, together.n_waiting)
            assert (await session.scalars(select(Note.text))).all() == [f"note {payload}"]

    for n in range(4):
        put(shop, "meet", n)
    assert kind.run_all(shop, handlers, threads=4) == 4
    assert [job.status for job in archived(shop)] == ["success"] * 4
    assert sorted(notes(shop)) == [f"note {n}" for n in range(4)]
