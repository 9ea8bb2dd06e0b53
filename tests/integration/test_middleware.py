"""Middleware around each run, in every kind of worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import (
    Discard,
    HandlerError,
    Handlers,
    Job,
    QueueWorker,
    RetryAfter,
    RetryStrategy,
    Snooze,
    enqueue,
    manage,
    process_next_job,
)
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker
from sqlalchemy_proletarian.asyncio import process_next_job as async_process_next_job
from sqlalchemy_proletarian.testing import asyncio as async_kit
from sqlalchemy_proletarian.testing import drain, perform

from .kinds import Kind, either_sort_of_handler, event_loops, transactions
from .support import (
    MINUTE,
    SECOND,
    ManualClock,
    Note,
    archived,
    eventually,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
)
from .test_process_next_job import RunNext, run_next  # noqa: F401 - the fixture


def run_in_a_loop(engine: AsyncEngine, main: Callable[[], Awaitable[None]]) -> None:
    """Run a function in an event loop of its own, and dispose of its engine."""

    async def run() -> None:
        try:
            await main()
        finally:
            await engine.dispose()

    asyncio.run(run())


TENANT: ContextVar[str] = ContextVar("tenant", default="none")


@either_sort_of_handler
def test_middleware_wraps_each_run(engine: Engine, kind: Kind) -> None:
    """It runs around each attempt, with the job; it applies to earlier and later handlers."""
    seen: list[Any] = []
    handlers = Handlers(retry=RetryStrategy(1))

    @handlers("earlier")
    def earlier(payload: Any) -> None:
        seen.append("runs")

    @handlers.middleware
    def outer(job: Job) -> Iterator[None]:
        seen.append((job.job_type, job.attempts))
        try:
            yield
        except ValueError as error:
            seen.append(str(error))
            raise
        seen.append("done")

    @handlers.middleware
    def inner() -> Iterator[None]:
        seen.append("inner")
        yield

    @handlers("later")
    def later(payload: Any) -> None:
        raise ValueError("no")

    put(engine, "earlier")
    put(engine, "later")
    kind.run_all(engine, handlers)
    assert seen == [
        *[("earlier", 1), "inner", "runs", "done"],
        *[("later", 1), "inner", "no"],
        *[("later", 2), "inner", "no"],
    ]
    assert [job.status for job in archived(engine)] == ["success", "failure"]


@either_sort_of_handler
def test_writes_of_middleware_commit_with_the_job(shop: Engine, kind: Kind) -> None:
    """They are undone with the job's attempt; the handler takes no session itself."""
    handlers = Handlers()

    @handlers.middleware
    def audit(session: Session, job: Job) -> Iterator[None]:
        session.add(Note(text=f"begin {job.payload}"))
        session.flush()
        yield
        session.execute(
            text("INSERT INTO note (text, transaction) VALUES (:text, txid_current())"),
            {"text": f"end {job.payload}"},
        )

    @handlers("job")
    def work(payload: str) -> None:
        if payload == "bad":
            raise ValueError(payload)

    for payload in ("one", "bad", "two"):
        put(shop, "job", payload)
    kind.run_batch(shop, handlers)
    assert notes(shop) == ['begin "one"', 'end "one"', 'begin "two"', 'end "two"']
    assert [job.status for job in archived(shop)] == ["success", "failure", "success"]


@either_sort_of_handler
def test_the_handler_and_middleware_share_the_session(shop: Engine, kind: Kind) -> None:
    """What a middleware sets up in the transaction applies to the handler, and to no other job."""
    handlers = Handlers()

    @handlers.middleware
    def tenant(session: Session, job: Job) -> Iterator[None]:
        if job.priority == 1:
            session.execute(text("SET LOCAL app.tenant = 'acme'"))
        yield

    @handlers("job")
    def work(payload: Any, session: Session) -> None:
        setting = session.scalar(text("SELECT current_setting('app.tenant', true)"))
        session.add(Note(text=f"{payload} {setting or 'none'}"))

    put(shop, "job", "first", priority=1)
    put(shop, "job", "second", priority=2)
    kind.run_batch(shop, handlers)
    assert notes(shop) == ["first acme", "second none"]


@either_sort_of_handler
def test_context_variables_are_seen_by_the_handler_alone(engine: Engine, kind: Kind) -> None:
    """The handler sees what a middleware sets, and the next job does not."""
    seen: list[str] = []
    handlers = Handlers()

    @handlers.middleware
    def tenant(job: Job) -> Iterator[None]:
        seen.append(TENANT.get())
        token = TENANT.set(job.payload)
        yield
        if job.payload == '"second"':
            TENANT.reset(token)

    @handlers("job")
    def work(payload: Any) -> None:
        seen.append(TENANT.get())

    put(engine, "job", "first")
    put(engine, "job", "second")
    kind.run_batch(engine, handlers)
    assert seen == ["none", '"first"', "none", '"second"']
    assert {job.status for job in archived(engine)} == {"success"}


@either_sort_of_handler
@pytest.mark.parametrize("at", ["before", "after", "instead"])
def test_middleware_decides_what_becomes_of_the_job(
    shop: Engine, kind: Kind, clock: ManualClock, at: str
) -> None:
    """What a middleware raises decides, as if the handler had raised it; writes are undone."""
    raised = {
        "snooze": Snooze(MINUTE),
        "discard": Discard("closed"),
        "after": RetryAfter(2 * MINUTE),
        "fail": ValueError("no"),
    }
    handlers = Handlers(retry=RetryStrategy(1, [3 * MINUTE]))
    ran: list[str] = []

    @handlers.middleware
    def scope(job: Job, session: Session) -> Iterator[None]:
        session.add(Note(text="middleware"))
        error = raised[job.payload.strip('"')]
        if at == "before":
            raise error
        try:
            yield
        except KeyError:
            assert at == "instead"
            raise error from None
        assert at == "after"
        raise error

    @handlers("job")
    def work(payload: str, session: Session) -> None:
        ran.append(payload)
        session.add(Note(text="handler"))
        if at == "instead":
            raise KeyError

    ids = {put(shop, "job", name, clock=clock): name for name in raised}
    kind.run_batch(shop, handlers, clock=clock)
    assert sorted(ran) == ([] if at == "before" else sorted(raised))
    assert notes(shop) == []
    waits = {ids[job.job_id]: (job.process_at - clock.now, job.attempts) for job in queued(shop)}
    assert waits == {"snooze": (MINUTE, 0), "after": (2 * MINUTE, 1), "fail": (3 * MINUTE, 1)}
    discarded = only_archived(shop)
    assert (discarded.status, ids[discarded.job_id]) == ("failure", "discard")
    assert discarded.error.endswith("Discard: closed")


@either_sort_of_handler
def test_a_middleware_cannot_hide_an_error(shop: Engine, kind: Kind) -> None:
    """A job whose handler raised has failed, even if a middleware catches the error."""
    handlers = Handlers()

    @handlers.middleware
    def careless() -> Iterator[None]:
        with suppress(ValueError):
            yield

    @handlers("job")
    def work(payload: Any, session: Session) -> None:
        session.add(Note(text="half of it"))
        session.flush()
        raise ValueError("no")

    put(shop, "job")
    kind.run_all(shop, handlers)
    assert notes(shop) == []
    assert only_archived(shop).error.endswith("ValueError: no")


@either_sort_of_handler
def test_an_interrupted_job_is_not_decided_by_middleware(engine: Engine, kind: Kind) -> None:
    """If the worker was requested to stop, an error of a middleware does not count."""
    handlers = Handlers()

    @handlers.middleware
    def scope() -> Iterator[None]:
        yield
        worker.request_stop()
        raise ValueError("stopped")

    @handlers("job")
    def work(payload: Any) -> None: ...

    put(engine, "job")
    worker = kind.worker(engine, handlers)
    worker.drain()
    assert only_queued(engine).attempts == 0


def async_registry(
    seen: list[Any], work: Callable[[], Any], timeout: Any = None
) -> tuple[Handlers, Any]:
    """Return an ``async`` handler in an ``async`` middleware that notes what it sees."""
    handlers = Handlers()

    @handlers.middleware
    async def scope(session: AsyncSession, job: Job) -> AsyncIterator[None]:
        seen.append((await session.execute(text("SELECT 'connected'"))).scalar())
        session.add(Note(text="middleware"))
        TENANT.set("acme")
        try:
            yield
        except BaseException as error:
            seen.append(type(error).__name__)
            await asyncio.sleep(0)
            raise
        seen.append("done")

    @handlers("job", timeout=timeout)
    async def handle(payload: Any) -> None:
        seen.append(TENANT.get())
        await work()

    return handlers, handle


@event_loops
def test_async_middleware_wraps_async_handlers(shop: Engine, kind: Kind) -> None:
    """It may await, with an AsyncSession, in whose transaction the job completes."""
    seen: list[Any] = []
    handlers, _ = async_registry(seen, lambda: asyncio.sleep(0))
    put(shop, "job")
    kind.run_all(shop, handlers)
    assert seen == ["connected", "acme", "done"]
    assert notes(shop) == ["middleware"]
    assert only_archived(shop).status == "success"


@event_loops
@pytest.mark.parametrize("is_async", [True, False])
def test_middleware_sees_that_a_handler_is_cancelled(
    shop: Engine, kind: Kind, is_async: bool
) -> None:
    """The middleware sees a CancelledError after a timeout; the attempt fails, and is undone."""
    seen: list[Any] = []
    handlers, _ = async_registry(seen, lambda: asyncio.sleep(60), SECOND)
    if not is_async:
        handlers = Handlers()

        @handlers.middleware
        def scope(session: Session) -> Iterator[None]:
            seen.extend(["connected", "acme"])
            session.add(Note(text="middleware"))
            session.flush()
            try:
                yield
            except BaseException as error:
                session.execute(text("SELECT 1"))
                seen.append(type(error).__name__)

        @handlers("job", timeout=SECOND)
        async def handle(payload: Any) -> None:
            await asyncio.sleep(60)

    put(shop, "job")
    kind.run_all(shop, handlers)
    assert seen == ["connected", "acme", "CancelledError"]
    assert notes(shop) == []
    assert "JobTimeoutError" in only_archived(shop).error


@event_loops
def test_middleware_sees_that_a_job_is_cancelled(shop: Engine, kind: Kind) -> None:
    """``manage.cancel`` cancels the handler; the job is archived as cancelled."""
    seen: list[Any] = []
    handlers, _ = async_registry(seen, lambda: asyncio.sleep(60))
    job_id = put(shop, "job")
    with kind.worker(shop, handlers):
        eventually(lambda: "acme" in seen)
        with Session(shop) as session, session.begin():
            manage.cancel(session, job_id)
        eventually(lambda: archived(shop))
    assert seen == ["connected", "acme", "CancelledError"]
    assert notes(shop) == []
    assert only_archived(shop).status == "cancelled"


def test_async_middleware_needs_async_handlers(session: Session, loop_engine: AsyncEngine) -> None:
    """Workers and the other ways to run jobs reject it for plain handlers, with the reason."""
    handlers = Handlers()

    @handlers("job")
    def work(payload: Any) -> None: ...

    @handlers.middleware
    async def scope() -> AsyncIterator[None]:
        yield

    match = r"scope is async, so it cannot wrap the handler of 'job', which is a plain function"
    with pytest.raises(HandlerError, match=match):
        QueueWorker(session.get_bind(), handlers)
    with pytest.raises(HandlerError, match=match):
        process_next_job(session, handlers)
    with pytest.raises(HandlerError, match=match):
        drain(session, handlers)
    with pytest.raises(HandlerError, match=match):
        perform(work, None)

    async def in_asyncio() -> None:
        with pytest.raises(HandlerError, match=match):
            AsyncQueueWorker(loop_engine, handlers)
        async with AsyncSession(loop_engine) as own:
            with pytest.raises(HandlerError, match=match):
                await async_process_next_job(own, handlers)
            with pytest.raises(HandlerError, match=match):
                await async_kit.drain(own, handlers)
            with pytest.raises(HandlerError, match=match):
                await async_kit.perform(work, None, session=own)

    run_in_a_loop(loop_engine, in_asyncio)


def plain_registry() -> tuple[Handlers, Any]:
    """Return a handler in a middleware that writes a note before and after it."""
    handlers = Handlers()

    @handlers.middleware
    def scope(session: Session, job: Job) -> Iterator[None]:
        session.add(Note(text=f"before {job.attempts}"))
        yield
        session.add(Note(text="after"))

    @handlers("job")
    def work(payload: Any) -> None: ...

    return handlers, work


def test_middleware_in_process_next_job(shop: Engine, session: Session, run_next: RunNext) -> None:  # noqa: F811
    """Middleware wraps the job of process_next_job, sync and async."""
    enqueue(session, "job")
    session.commit()
    handlers, _ = plain_registry()
    assert run_next(session, handlers) is True
    assert notes(shop) == ["before 1", "after"]


def test_middleware_in_the_test_kit(shop: Engine) -> None:
    """``drain`` and ``perform`` run the middleware, in the transaction of the test."""
    handlers, work = plain_registry()
    with Session(shop) as session:
        enqueue(session, "job")
        assert [run.outcome for run in drain(session, handlers)] == ["success"]
        perform(work, None, session=session, attempt=3)
        session.commit()
    assert notes(shop) == ["before 1", "after", "before 3", "after"]
    with pytest.raises(TypeError, match="a middleware of the handler of 'job' takes a session or"):
        perform(work, None)


def test_middleware_in_the_test_kit_for_asyncio(shop: Engine, loop_engine: AsyncEngine) -> None:
    seen: list[Any] = []
    handlers, handle = async_registry(seen, lambda: asyncio.sleep(0))
    plain, work = plain_registry()

    async def main() -> None:
        async with AsyncSession(loop_engine) as session:
            enqueue(session, "job")
            assert [run.outcome for run in await async_kit.drain(session, handlers)] == ["success"]
            await async_kit.perform(handle, None, session=session)
            enqueue(session, "job")
            assert [run.outcome for run in await async_kit.drain(session, plain)] == ["success"]
            await async_kit.perform(work, None, session=session)
            await session.commit()

    run_in_a_loop(loop_engine, main)
    assert seen == ["connected", "acme", "done"] * 2
    assert notes(shop) == ["middleware"] * 2 + ["before 1", "after"] * 2


class OwnSession(Session):
    """A session class of an application."""


class OwnAsyncSession(AsyncSession):
    """An AsyncSession class of an application."""

    sync_session_class = OwnSession


def test_middleware_declares_its_session_class(engine: Engine, loop_engine: AsyncEngine) -> None:
    """A worker whose sessions are of another class is not created."""
    handlers = Handlers()
    seen: list[type[Any]] = []

    @handlers.middleware
    def scope(session: OwnSession) -> Iterator[None]:
        seen.append(type(session))
        yield

    @handlers("job")
    async def handle(payload: Any) -> None: ...

    plain = Handlers()
    plain.middleware(scope)
    plain("job")(lambda payload: None)
    match = r"the middleware .*scope declares a .*OwnSession, but gets a sqlalchemy.orm.*class_="
    with pytest.raises(HandlerError, match=f"{match}OwnSession"):
        QueueWorker(engine, plain)
    put(engine, "job")
    QueueWorker(sessionmaker(engine, class_=OwnSession), plain).drain()

    async def main() -> None:
        with pytest.raises(HandlerError, match=match.replace("class_", "sync_session_class")):
            AsyncQueueWorker(loop_engine, handlers)
        put(engine, "job")
        maker = async_sessionmaker(loop_engine, class_=OwnAsyncSession)
        await AsyncQueueWorker(maker, handlers).drain()

    run_in_a_loop(loop_engine, main)
    assert [issubclass(kind, OwnSession) for kind in seen] == [True, True]
    assert {job.status for job in archived(engine)} == {"success"}


@transactions
def test_a_middleware_that_ends_the_transaction_fails_the_attempt(shop: Engine, kind: Kind) -> None:
    """The session of a middleware is as protected as that of a handler."""
    handlers = Handlers()

    @handlers.middleware
    def scope(session: Session) -> Iterator[None]:
        session.add(Note(text="never"))
        session.commit()
        yield

    @handlers("job")
    def work(payload: Any) -> None: ...

    put(shop, "job")
    kind.run_all(shop, handlers)
    assert "HandlerEndedTransactionError" in only_archived(shop).error
    assert notes(shop) == []
