"""Handlers that ask for a session of a class of their own."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import HandlerError, Handlers, QueueWorker, process_next_job
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

from .kinds import Kind
from .support import Note, archived, notes, put


class Own(Session):
    """A Session with something of its own."""


class OwnAsync(AsyncSession):
    """An AsyncSession with something of its own."""


@pytest.mark.parametrize(
    "annotation",
    [Session | None, Optional[Session], Annotated[Session, "ours"]],  # noqa: UP045
    ids=str,
)
def test_annotations_around_a_session(shop: Engine, kind: Kind, annotation: Any) -> None:
    """A parameter that may be None, or that is annotated further, gets the session all the same."""
    handlers = Handlers()

    def write(payload: Any, session: Any = None) -> None:
        session.add(Note(text="written"))

    write.__annotations__["session"] = annotation
    handlers("write")(write)
    put(shop, "write")
    kind.run_all(shop, handlers)
    assert notes(shop) == ["written"]


def test_the_class_that_the_worker_makes(shop: Engine, kind: Kind) -> None:
    """A handler gets a session of the class that the worker's session maker makes."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Own) -> None:
        assert isinstance(session, Own)

    put(shop, "write")
    kind.run_all(sessionmaker(shop, class_=Own), handlers)
    assert [job.status for job in archived(shop)] == ["success"]


def test_a_class_that_the_worker_does_not_make() -> None:
    """It is refused when the worker is made, with what to give the worker."""
    handlers, coroutines = Handlers(), Handlers()

    @handlers("plain")
    def plain(payload: Any, session: Own) -> None: ...

    @coroutines("awaited")
    async def awaited(payload: Any, session: OwnAsync | None = None) -> None: ...

    engine = create_engine("postgresql+psycopg://")
    async_engine = create_async_engine("postgresql+psycopg://")
    with pytest.raises(
        HandlerError, match=r"'plain' declares a .*Own.* sessionmaker\(engine, class_=Own"
    ):
        QueueWorker(engine, handlers)
    with pytest.raises(HandlerError, match=r"async_sessionmaker\(engine, sync_session_class=Own\)"):
        AsyncQueueWorker(async_engine, handlers)
    with pytest.raises(HandlerError, match=r"async_sessionmaker\(engine, class_=OwnAsync\)"):
        AsyncQueueWorker(async_engine, coroutines)
    QueueWorker(sessionmaker(engine, class_=Own), handlers)
    AsyncQueueWorker(async_sessionmaker(async_engine, sync_session_class=Own), handlers)
    AsyncQueueWorker(async_sessionmaker(async_engine, class_=OwnAsync), coroutines)


def test_process_next_job_gives_the_class_of_its_session(shop: Engine) -> None:
    """A handler gets a session of the class that ``process_next_job`` was called with."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Own) -> None:
        assert isinstance(session, Own)
        session.add(Note(text="written"))

    put(shop, "write")
    with Session(shop) as session, pytest.raises(HandlerError, match=r"with such a session"):
        process_next_job(session, handlers)
    with Own(shop) as session:
        assert process_next_job(session, handlers) is True
    assert notes(shop) == ["written"]
