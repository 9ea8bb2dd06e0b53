"""Handlers in an event loop: coroutines run concurrently, plain functions run in threads."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import HandlerError, Handlers, QueueWorker, enqueue
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

from .loops import drained, driver_and_hold, in_a_loop, until
from .support import (
    PATIENCE,
    ArchivedEmailJob,
    Customer,
    EmailJob,
    Log,
    Note,
    archived,
    notes,
    only_archived,
    put,
    queued,
    rows,
)

# Rejected handlers.


def test_a_handler_with_the_wrong_session_class_is_rejected() -> None:
    """Registration fails with the name of the parameter that has the wrong annotation."""
    handlers = Handlers()
    with pytest.raises(HandlerError, match=r"'wrong' is annotated as Session, but .* AsyncSession"):

        @handlers("coroutine")
        async def coroutine(payload: Any, wrong: Session) -> None: ...

    with pytest.raises(HandlerError, match="'wrong' is annotated as AsyncSession"):

        @handlers("plain")
        def plain(payload: Any, wrong: AsyncSession) -> None: ...


def test_a_threaded_worker_rejects_async_handlers(engine: Engine) -> None:
    """The error names the worker class to use instead."""
    handlers = Handlers()

    @handlers("coroutine")
    async def coroutine(payload: Any) -> None: ...

    with pytest.raises(HandlerError, match="'coroutine' is async: run it with"):
        QueueWorker(engine, handlers)


@driver_and_hold
@pytest.mark.parametrize("worker", ["threads", "loop"])
@in_a_loop
async def test_a_plain_function_that_returns_a_coroutine_or_generator_fails(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any], worker: str
) -> None:
    """The job fails, and its error says how to change the handler."""
    handlers = Handlers()

    async def work() -> None: ...

    def generator() -> Any:
        yield

    async def async_generator() -> Any:
        yield

    handlers("coroutine")(lambda payload: work())
    handlers("generator")(lambda payload: generator())
    handlers("async generator")(lambda payload: async_generator())

    for job_type in ("coroutine", "generator", "async generator"):
        put(engine, job_type)
    if worker == "loop":
        await drained(loop_engine, handlers, **held)
    else:
        QueueWorker(engine, handlers, **held).drain()
    for job in archived(engine):
        assert job.status == "failure"
        hint = "make it one" if job.job_type == "coroutine" else "take the 'yield' out of it"
        assert "HandlerError: the handler of" in job.error
        assert hint in job.error


# Coroutines.


@in_a_loop
async def test_a_coroutine_writes_with_an_async_session(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """What the coroutine writes is committed together with the completion of its job."""
    handlers = Handlers()

    @handlers("write")
    async def write(payload: str, session: AsyncSession) -> None:
        session.add(Note(text=payload))
        if payload != "left to the worker":
            await session.flush()
        if payload == "undone":
            raise ValueError

    for payload in ("done", "undone", "left to the worker"):
        put(shop, "write", payload)
    assert await drained(loop_engine, handlers, **held) == 3
    assert sorted(notes(shop)) == ["done", "left to the worker"]
    assert [job.status for job in archived(shop)] == ["success", "failure", "success"]


@driver_and_hold
@in_a_loop
async def test_a_handler_loads_the_relationships_of_its_job(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A plain function loads them lazily; a coroutine awaits ``session.refresh``."""
    handlers = Handlers()
    seen: list[str] = []

    @handlers("plain")
    def plain(payload: Any, session: Session, job: EmailJob) -> None:
        assert job.customer is not None
        seen.append(f"plain {job.customer.name}")
        job.customer.name += "!"

    @handlers("coroutine")
    async def coroutine(payload: Any, session: AsyncSession, job: EmailJob) -> None:
        await session.refresh(job, ["customer"])
        assert job.customer is not None
        seen.append(f"coroutine {job.customer.name}")
        job.customer.name += "?"

    with Session(shop) as session, session.begin():
        session.add_all([Customer(id=1, name="Ada"), Customer(id=2, name="Bob")])
        session.flush()
        enqueue(session, "plain", job_model=EmailJob, customer_id=1)
        enqueue(session, "coroutine", job_model=EmailJob, customer_id=2)
    options: Any = {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob, **held}
    assert await drained(loop_engine, handlers, **options) == 2
    assert sorted(seen) == ["coroutine Bob", "plain Ada"]
    assert [customer.name for customer in rows(shop, Customer, Customer.id)] == ["Ada!", "Bob?"]


@driver_and_hold
@in_a_loop
async def test_asyncio_tools_work_in_a_coroutine(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Task groups, timeouts and background tasks work in each of several jobs."""
    handlers = Handlers()
    background: set[asyncio.Task[Any]] = set()

    async def fail_in(group: asyncio.TaskGroup) -> None:
        async with group:
            group.create_task(asyncio.sleep(60))
            raise ValueError

    cancelling: list[int] = []

    @handlers("job")
    async def job(payload: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        cancelling.append(task.cancelling())
        background.add(asyncio.create_task(asyncio.sleep(0.01)))
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0.001))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        group = asyncio.TaskGroup()
        with pytest.raises(ExceptionGroup):
            await fail_in(group)

    for _ in range(4):
        put(engine, "job")
    assert await drained(loop_engine, handlers, concurrency=1, **held) == 4
    assert {job.status for job in archived(engine)} == {"success"}
    assert cancelling == [0, 0, 0, 0]
    await asyncio.gather(*background)


variable: ContextVar[str] = ContextVar("variable", default="unset")


@in_a_loop
async def test_handlers_see_the_context_variables_of_the_caller(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A handler's own changes to context variables do not reach the worker or other jobs."""
    handlers = Handlers()
    seen: list[str] = []

    @handlers("coroutine")
    async def coroutine(payload: Any) -> None:
        seen.append(variable.get())
        variable.set("leaked from a coroutine")
        await asyncio.sleep(0.001)
        assert variable.get() == "leaked from a coroutine"

    @handlers("plain")
    def plain(payload: Any) -> None:
        seen.append(variable.get())
        variable.set("leaked from a thread")

    variable.set("the application's")
    for _ in range(3):
        put(engine, "coroutine")
        put(engine, "plain")
    assert await drained(loop_engine, handlers, concurrency=1, **held) == 6
    assert {job.status for job in archived(engine)} == {"success"}
    assert seen == ["the application's"] * 6
    assert variable.get() == "the application's"


# Plain functions.


@driver_and_hold
@in_a_loop
async def test_plain_functions_do_not_block_the_loop(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """The event loop keeps running while plain functions wait and query in their threads."""
    handlers = Handlers()
    threads: set[int] = set()
    barrier = threading.Barrier(4, timeout=PATIENCE)

    @handlers("plain")
    def plain(payload: Any, session: Session) -> None:
        threads.add(threading.get_ident())
        barrier.wait()
        session.execute(select(func.pg_advisory_xact_lock_shared(7)))
        session.add(Note(text="done"))

    def waiting() -> int:
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        with shop.connect() as connection:
            return connection.scalar(text(query))

    for _ in range(4):
        put(shop, "plain")
    async with loop_engine.connect() as holder:
        await holder.execute(select(func.pg_advisory_lock(7)))
        draining = asyncio.create_task(drained(loop_engine, handlers, concurrency=4, **held))
        await until(lambda: waiting() == 4)
        await holder.execute(select(func.pg_advisory_unlock(7)))
        assert await draining == 4
    assert len(threads) == 4
    assert threading.get_ident() not in threads
    assert notes(shop) == ["done"] * 4


@in_a_loop
async def test_a_plain_function_uses_its_session(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Queries, savepoints, streamed results and ``enqueue`` work in the session."""
    handlers = Handlers()

    @handlers("plain")
    def plain(payload: Any, session: Session) -> None:
        session.add_all([Note(text=f"note {n}") for n in range(3)])
        with session.begin_nested() as savepoint:
            session.add(Note(text="undone"))
            session.flush()
            savepoint.rollback()
        query = select(Note.text).order_by(Note.id).execution_options(yield_per=1)
        assert [*session.scalars(query)] == ["note 0", "note 1", "note 2"]
        assert session.connection().exec_driver_sql("SELECT 1").scalar() == 1
        enqueue(session, "next")

    handlers("next")(lambda payload: None)
    put(shop, "plain")
    assert await drained(loop_engine, handlers, **held) == 2
    assert {job.status for job in archived(shop)} == {"success"}
    assert len(notes(shop)) == 3


@in_a_loop
async def test_a_database_error_is_raised_in_the_plain_function(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """The function that caused the error may catch it and continue."""
    handlers = Handlers()

    @handlers("caught")
    def caught(payload: Any, session: Session) -> None:
        for statement in ("SELECT 1 / 0", "SELECT * FROM nowhere"):
            with pytest.raises(DBAPIError), session.begin_nested():
                session.execute(text(statement))
        session.add(Note(text="went on"))

    @handlers("not caught")
    def not_caught(payload: Any, session: Session) -> None:
        session.add(Note(text="undone"))
        session.flush()
        session.execute(text("INSERT INTO note (text) VALUES (NULL)"))

    @handlers("at the end")
    def at_the_end(payload: Any, session: Session) -> None:
        session.add(Note(text=None))

    for job_type in ("caught", "not caught", "at the end"):
        put(shop, job_type)
    assert await drained(loop_engine, handlers, **held) == 3
    first, second, third = archived(shop)
    assert first.status == "success"
    for failed in (second, third):
        assert failed.status == "failure"
        assert IntegrityError.__name__ in failed.error
    assert "in not_caught" in second.error
    assert notes(shop) == ["went on"]


@pytest.mark.parametrize("form", ["plain", "coroutine"])
@in_a_loop
async def test_a_lost_connection_does_not_count_as_an_attempt(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], form: str
) -> None:
    """The handler gets the error, and the job runs again."""
    handlers = Handlers()
    errors: list[DBAPIError] = []
    terminate = select(func.pg_terminate_backend(func.pg_backend_pid()))

    def lose_connection(session: Session) -> None:
        session.add(Note(text=f"run {len(errors)}"))
        session.flush()
        if not errors:
            try:
                session.execute(terminate)
            except DBAPIError as error:
                errors.append(error)
                raise

    async def coroutine(payload: Any, session: AsyncSession) -> None:
        await session.run_sync(lose_connection)

    def plain(payload: Any, session: Session) -> None:
        lose_connection(session)

    handlers("job")({"plain": plain, "coroutine": coroutine}[form])
    put(shop, "job")
    log = Log()
    async with AsyncQueueWorker(loop_engine, handlers, log=log, **held):
        await until(lambda: archived(shop))
    assert errors[0].connection_invalidated
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
    assert notes(shop) == ["run 1"]


@in_a_loop
async def test_connections_are_checked_out_in_the_event_loop(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Plain functions in threads share one pool, used only from the thread of the event loop."""
    handlers = Handlers()
    checkouts: set[int] = set()

    @event.listens_for(loop_engine.sync_engine, "checkout")
    def on_checkout(*_: Any) -> None:
        checkouts.add(threading.get_ident())

    @handlers("plain")
    def plain(payload: int, session: Session) -> None:
        session.add(Note(text="done"))
        session.flush()

    for n in range(40):
        put(shop, "plain", n)
    assert await drained(loop_engine, handlers, concurrency=12, **held) == 40
    assert notes(shop) == ["done"] * 40
    assert checkouts == {threading.get_ident()}


@driver_and_hold
@in_a_loop
async def test_a_job_is_rescheduled_when_no_thread_can_start(
    engine: Engine,
    loop_engine: AsyncEngine,
    held: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attempt is not counted."""
    monkeypatch.setattr(
        "sqlalchemy_proletarian.execution.invoke_async.Thread", _ThreadThatCannotStart
    )
    put(engine, "plain")
    log = Log()
    assert await drained(loop_engine, lambda job_type, payload: None, log=log, **held) == 1
    (job,) = queued(engine)
    assert (job.attempts, job.error) == (0, None)
    assert "polling-error" in log.events()


class _ThreadThatCannotStart:
    def __init__(self, **_: Any) -> None: ...

    def start(self) -> None:
        raise RuntimeError("can't start new thread")
