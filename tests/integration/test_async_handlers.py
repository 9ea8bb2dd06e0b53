"""Handlers in an event loop: coroutines beside each other, and plain functions in threads."""

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

# What is refused.


def test_the_kind_of_session_is_checked_at_registration() -> None:
    """A function that asks for the wrong kind of session is refused, by the parameter's name."""
    handlers = Handlers()
    with pytest.raises(HandlerError, match=r"'wrong' is annotated as Session, but .* AsyncSession"):

        @handlers("coroutine")
        async def coroutine(payload: Any, wrong: Session) -> None: ...

    with pytest.raises(HandlerError, match="'wrong' is annotated as AsyncSession"):

        @handlers("plain")
        def plain(payload: Any, wrong: AsyncSession) -> None: ...


def test_worker_with_threads_refuses_coroutines(engine: Engine) -> None:
    """A worker with threads refuses ``async`` handlers, and names the worker that takes them."""
    handlers = Handlers()

    @handlers("coroutine")
    async def coroutine(payload: Any) -> None: ...

    with pytest.raises(HandlerError, match="'coroutine' is async: run it with"):
        QueueWorker(engine, handlers)


@driver_and_hold
@pytest.mark.parametrize("worker", ["threads", "loop"])
@in_a_loop
async def test_plain_function_that_only_returns_its_work(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any], worker: str
) -> None:
    """What returns a coroutine or a generator has done nothing, which is a clear failure."""
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
async def test_coroutine_with_a_session(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A coroutine gets an AsyncSession, and what it writes is written with the job's completion."""
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
async def test_relationships_of_the_job(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A handler loads what its job refers to: lazily in a thread, awaiting it in a coroutine."""
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
async def test_tools_of_asyncio(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Task groups, timeouts and tasks work in a handler as anywhere, again and again."""
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
async def test_context_variables(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A handler sees the context variables of who started the worker; its own stay its own."""
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
    """While plain functions sleep and query in their threads, the loop goes on."""
    handlers = Handlers()
    threads: set[int] = set()
    all_of_them = threading.Barrier(4, timeout=PATIENCE)

    @handlers("plain")
    def plain(payload: Any, session: Session) -> None:
        threads.add(threading.get_ident())
        all_of_them.wait()
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
async def test_session_of_a_plain_function(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A plain function's session does what sessions do: queries, savepoints, streams, jobs."""
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
async def test_database_errors_in_a_plain_function(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A database error is raised in the function that caused it, which may go on after it."""
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
async def test_connection_lost_in_a_handler(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], form: str
) -> None:
    """A handler whose connection is lost gets the error; its attempt is not counted."""
    handlers = Handlers()
    errors: list[DBAPIError] = []
    suicide = select(func.pg_terminate_backend(func.pg_backend_pid()))

    def lose(session: Session) -> None:
        session.add(Note(text=f"run {len(errors)}"))
        session.flush()
        if not errors:
            try:
                session.execute(suicide)
            except DBAPIError as error:
                errors.append(error)
                raise

    async def coroutine(payload: Any, session: AsyncSession) -> None:
        await session.run_sync(lose)

    def plain(payload: Any, session: Session) -> None:
        lose(session)

    handlers("job")({"plain": plain, "coroutine": coroutine}[form])
    put(shop, "job")
    log = Log()
    async with AsyncQueueWorker(loop_engine, handlers, log=log, **held):
        await until(lambda: archived(shop))
    assert errors[0].connection_invalidated
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
    assert notes(shop) == ["run 1"]


@in_a_loop
async def test_many_plain_functions_and_one_pool(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Threads take connections from the pool in the loop, where pools are safe."""
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
async def test_system_without_threads(
    engine: Engine,
    loop_engine: AsyncEngine,
    held: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plain function for which the system has no thread is put off, its attempt not counted."""
    monkeypatch.setattr("sqlalchemy_proletarian.runtime.tasks.Thread", _NoThread)
    put(engine, "plain")
    log = Log()
    assert await drained(loop_engine, lambda job_type, payload: None, log=log, **held) == 1
    (job,) = queued(engine)
    assert (job.attempts, job.error) == (0, None)
    assert "polling-error" in log.events()


class _NoThread:
    def __init__(self, **_: Any) -> None: ...

    def start(self) -> None:
        raise RuntimeError("can't start new thread")
