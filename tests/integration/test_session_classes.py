"""Handlers with a parameter of a custom session class."""

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
    """A custom Session class."""


class OwnAsync(AsyncSession):
    """A custom AsyncSession class."""


@pytest.mark.parametrize(
    "annotation",
    [Session | None, Optional[Session], Annotated[Session, "custom"]],  # noqa: UP045
    ids=str,
)
def test_optional_and_annotated_sessions(shop: Engine, kind: Kind, annotation: Any) -> None:
    """A parameter annotated with an optional or Annotated session receives the session."""
    handlers = Handlers()

    def write(payload: Any, session: Any = None) -> None:
        session.add(Note(text="written"))

    write.__annotations__["session"] = annotation
    handlers("write")(write)
    put(shop, "write")
    kind.run_all(shop, handlers)
    assert notes(shop) == ["written"]


def test_the_session_class_of_the_worker(shop: Engine, kind: Kind) -> None:
    """A handler receives a session of the class of the worker's sessionmaker."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Own) -> None:
        assert isinstance(session, Own)

    put(shop, "write")
    kind.run_all(sessionmaker(shop, class_=Own), handlers)
    assert [job.status for job in archived(shop)] == ["success"]


def test_a_session_class_that_the_worker_cannot_create() -> None:
    """The constructor of the worker raises an error that shows the sessionmaker to pass."""
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


def test_process_next_job_passes_its_session_class(shop: Engine) -> None:
    """A handler receives a session of the class that was passed to ``process_next_job``."""
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
