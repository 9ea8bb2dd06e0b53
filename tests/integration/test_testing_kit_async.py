"""The test kit for an ``AsyncSession``, on PostgreSQL and SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Base,
    HandlerEndedTransactionError,
    HandlerError,
    Handlers,
    Job,
    RetryStrategy,
    enqueue,
)
from sqlalchemy_proletarian.testing import FrozenClock
from sqlalchemy_proletarian.testing.asyncio import (
    assert_enqueued,
    assert_not_enqueued,
    drain,
    enqueued,
    perform,
)

from .loops import in_a_loop
from .support import MINUTE
from .test_testing_kit import Kit, Letter, Mail

handlers = Handlers()


@handlers("mail", retry=RetryStrategy(retries=1, delays=[MINUTE]))
async def send_mail(mail: Mail, session: AsyncSession, job: Job) -> None:
    """Write a letter, fail if the address says so, and enqueue a copy."""
    session.add(Letter(text=f"to {mail.to}"))
    await session.flush()
    if mail.to.endswith("!") and job.attempts == 1:
        raise ConnectionError(mail.to)
    copy.enqueue(session, mail)


@handlers("copy")
def copy(mail: Mail, session: Session) -> None:
    """Write another letter, in a plain handler."""
    session.add(Letter(text=f"copy to {mail.to}"))


def memory() -> AsyncEngine:
    """Return an engine on SQLite in memory, whose transactions can be rolled back."""
    engine = create_async_engine(
        "sqlite+aiosqlite://",
        execution_options={"schema_translate_map": {"proletarian": None}},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


@pytest.fixture(params=["psycopg", "asyncpg", "aiosqlite"])
def database(request: pytest.FixtureRequest) -> AsyncEngine:
    """Return an engine of each driver; ``in_a_loop`` disposes of it."""
    if request.param == "aiosqlite":
        return memory()
    url = request.getfixturevalue("url")
    request.getfixturevalue("engine")  # empties the tables
    return create_async_engine(url.set(drivername=f"postgresql+{request.param}"))


@asynccontextmanager
async def isolated(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """Yield a session in a transaction that is rolled back; then nothing must be left."""
    async with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(Kit.metadata.create_all)
    async with engine.connect() as connection:
        transaction = await connection.begin()
        async with AsyncSession(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            yield session
        await transaction.rollback()
        for model in (Job, ArchivedJob, Letter):
            assert await connection.scalar(select(func.count()).select_from(model)) == 0


async def letters(session: AsyncSession) -> list[str]:
    """Return the texts of all letters."""
    return list(await session.scalars(select(Letter.text).order_by(Letter.id)))


async def message_of(failing: Callable[[], Awaitable[Any]]) -> str:
    """Return the message of the AssertionError that a coroutine raises."""
    with pytest.raises(AssertionError) as caught:
        await failing()
    return str(caught.value)


@in_a_loop
async def test_what_is_enqueued(database: AsyncEngine) -> None:
    """The assertions compare and describe as those for a Session do."""
    async with isolated(database) as session:
        enqueue(session, "copy", {"to": "eve", "copies": 1}, queue="other")
        send_mail.enqueue(session, Mail("ada"), process_in=MINUTE)
        assert [job.payload for job in await enqueued(session, send_mail)] == [Mail("ada")]
        assert len(await enqueued(session)) == 2
        (job,) = await assert_enqueued(
            session, send_mail, payload=Mail("ada"), process_in=MINUTE, count=1
        )
        assert job.job in session
        await assert_enqueued(session, "copy", queue="other")
        await assert_not_enqueued(session, "copy", queue="default")
        text = await message_of(lambda: assert_enqueued(session, send_mail, payload=Mail("bob")))
        assert "payload.to differs" in text
        text = await message_of(lambda: assert_not_enqueued(session))
        assert text.startswith("2 jobs are enqueued, but must not be")


@in_a_loop
async def test_handlers_of_both_kinds_run(database: AsyncEngine) -> None:
    """Coroutines and plain functions run in the session's transaction, retries when due."""
    async with isolated(database) as session:
        with FrozenClock() as clock:
            send_mail.enqueue(session, Mail("ada"))
            send_mail.enqueue(session, Mail("bob!"))
            runs = await drain(session, handlers)
            assert [(run.job_type, run.payload, run.outcome) for run in runs] == [
                ("mail", Mail("ada"), "success"),
                ("mail", Mail("bob!"), "retried"),
                ("copy", Mail("ada"), "success"),
            ]
            assert repr(runs[1].error) == "ConnectionError('bob!')"
            assert await letters(session) == ["to ada", "copy to ada"]
            clock.advance(MINUTE - timedelta(seconds=1))
            assert await drain(session, handlers) == []
            clock.advance(timedelta(seconds=1))
            assert len(await drain(session, handlers, raise_errors=True)) == 2
        assert len(await letters(session)) == 4
        await assert_not_enqueued(session)
        send_mail.enqueue(session, Mail("eve!"))
        with pytest.raises(ConnectionError, match="eve!"):
            await drain(session, handlers, raise_errors=True)


@in_a_loop
async def test_one_handler_alone(database: AsyncEngine) -> None:
    """Handlers of both kinds get a session and the job, and their errors are raised."""
    alone = Handlers()

    @alone("commit")
    async def commit(payload: Any, session: AsyncSession) -> None:
        await session.commit()

    @alone("payload")
    async def payload_only(payload: list[int]) -> None:
        payload.append(3)

    async with isolated(database) as session:
        await perform(send_mail, Mail("ada"), session=session)
        await perform(copy, Mail("bob"), session=session)
        with pytest.raises(ConnectionError):
            await perform(send_mail, Mail("eve!"), session=session)
        await perform(send_mail, Mail("eve!"), session=session, attempt=2)
        with pytest.raises(HandlerEndedTransactionError):
            await perform(commit, None, session=session)
        assert await letters(session) == ["to ada", "copy to bob", "to eve!"]
        assert [job.job_type for job in await enqueued(session)] == ["copy", "copy"]
        given = [1, 2]
        await perform(payload_only, given)
        assert given == [1, 2]
        with pytest.raises(TypeError, match="takes a session or the job"):
            await perform(send_mail, Mail("ada"))


@in_a_loop
async def test_a_session_of_another_class_is_rejected(database: AsyncEngine) -> None:
    """The error names the function to call with such a session."""

    class Special(AsyncSession):
        """A session class of the user."""

    special = Handlers()

    @special("job")
    async def job(payload: Any, session: Special) -> None: ...

    async with isolated(database) as session:
        with pytest.raises(HandlerError, match="call drain with such a session"):
            await drain(session, special)
        with pytest.raises(HandlerError, match="call perform with such a session"):
            await perform(job, None, session=session)
