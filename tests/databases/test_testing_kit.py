"""The test kit on every database and driver, in a transaction that is rolled back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_

from sqlalchemy_proletarian import ArchivedJob, Handlers, RetryStrategy, testing
from sqlalchemy_proletarian.testing import (
    FrozenClock,
    JobRun,
    assert_enqueued,
    assert_not_enqueued,
)
from sqlalchemy_proletarian.testing import asyncio as testing_asyncio
from tests.integration.support import MINUTE, archived, queued, rows

from .places import Note, Place, only

handlers = Handlers()


@handlers("write", queue="post", retry=RetryStrategy(retries=1, delays=[MINUTE]))
def write(text: str, session: Session) -> None:
    """Write a note, enqueue the rest of the text, and fail if it is empty."""
    session.add(Note(text=text))
    session.flush()
    if not text:
        raise ValueError("empty")
    write.enqueue(session, text[1:])


def texts(session: Session) -> list[str]:
    """Return the texts of the notes."""
    return list(session.scalars(select(Note.text).order_by(Note.id)))


def the_life_of_jobs(
    session: Session, drain: Callable[[], list[JobRun]], perform: Callable[[str], None]
) -> None:
    """Assert what the kit does in the session's transaction, and roll back a part of it."""
    with FrozenClock() as clock:
        write.enqueue(session, "ab")
        session.commit()
        assert_enqueued(session, write, payload="ab", process_at=clock(), queue="post", count=1)
        runs = drain()
        assert [(run.payload, run.outcome) for run in runs] == [
            ("ab", "success"),
            ("b", "success"),
            ("", "retried"),
        ]
        assert runs[-1].process_at == clock() + MINUTE
        assert texts(session) == ["ab", "b"]
        assert drain() == []
        clock.advance(MINUTE)
        assert [run.outcome for run in drain()] == ["failure"]
        assert_not_enqueued(session)
        perform("c")
        with pytest.raises(ValueError, match="empty"):
            perform("")
        assert texts(session) == ["ab", "b", "c"]
        assert_enqueued(session, write, payload="", count=1)
        session.rollback()
        assert texts(session) == ["ab", "b"]
        assert len(session.scalars(select(ArchivedJob)).all()) == 3


@contextmanager
def begun_explicitly(engine: Engine) -> Generator[None]:
    """Let Python's sqlite3 begin transactions when SQLAlchemy does."""
    if engine.driver in {"pysqlite", "aiosqlite"}:

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def begun(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN")

    yield


def nothing_is_left(engine: Engine) -> bool:
    """Return whether the tables are empty."""
    return queued(engine) == archived(engine) == rows(engine, Note) == []


def test_in_a_transaction_that_is_rolled_back(producer: Place, engine: Engine) -> None:
    """Jobs are enqueued, run and retried, and nothing is left."""
    with begun_explicitly(engine), engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            the_life_of_jobs(
                session,
                lambda: testing.drain(session, handlers),
                lambda text: testing.perform(write, text, session=session),
            )
        transaction.rollback()
    assert nothing_is_left(engine)


@only(lambda place: place.in_a_loop is not None and not (place.is_mysql and place.leased))
def test_in_an_async_session(place: Place, engine: Engine) -> None:
    """An AsyncSession does the same."""

    async def run() -> None:
        awaited = create_async_engine(
            engine.url.set(drivername=place.in_a_loop),
            execution_options=dict(engine.get_execution_options()),
        )
        with begun_explicitly(awaited.sync_engine):
            async with awaited.connect() as connection:
                transaction = await connection.begin()
                async with AsyncSession(
                    connection, join_transaction_mode="create_savepoint"
                ) as session:
                    await session.run_sync(
                        the_life_of_jobs,
                        lambda: await_(testing_asyncio.drain(session, handlers)),
                        lambda text: await_(testing_asyncio.perform(write, text, session=session)),
                    )
                await transaction.rollback()
        await awaited.dispose()

    asyncio.run(run())
    assert nothing_is_left(engine)
