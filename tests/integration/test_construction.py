"""Arguments that the constructors of workers reject."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import Handlers, QueueWorker
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

from .kinds import Kind, only
from .support import SECOND, succeed

with_threads_and_in_a_loop = only(Kind(), Kind("asyncpg"))


@pytest.fixture
def async_engine(engine: Engine) -> AsyncEngine:
    """Return an engine for event loops that never connects."""
    return create_async_engine(engine.url.set(drivername="postgresql+asyncpg"))


@with_threads_and_in_a_loop
@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"queues": []}, ValueError, "queues must name at least one queue"),
        ({"queues": ""}, ValueError, "queues must have 1 to 255 characters"),
        ({"queues": ["a", 1]}, TypeError, "queues must be a string, not 1"),
        ({"threads": 0}, ValueError, "(threads|concurrency) must be at least 1, not 0"),
        ({"threads": 1.5}, TypeError, "(threads|concurrency) must be an int, not 1.5"),
        ({"threads": True}, TypeError, "(threads|concurrency) must be an int, not True"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, not 0"),
        ({"batch_window": timedelta(0)}, ValueError, "batch_window must be positive"),
        ({"lease": timedelta(0)}, ValueError, "lease must be positive"),
        ({"lease": "30 s"}, TypeError, "lease must be a timedelta or whole milliseconds"),
        ({"polling_interval": 0}, ValueError, "polling_interval must be positive, not 0"),
        ({"polling_interval": 0.5}, TypeError, "polling_interval must be a timedelta or whole"),
        ({"shutdown_timeout": -SECOND}, ValueError, "shutdown_timeout must not be negative"),
        ({"retry_strategy": 3}, TypeError, "a retry strategy must be a RetryStrategy"),
        ({"retry_strategy": {"retries": -1}}, ValueError, "retries must not be negative"),
    ],
)
def test_invalid_options_are_rejected(
    engine: Engine, kind: Kind, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """The constructor raises an error that gives the reason."""
    with pytest.raises(error, match=reason):
        kind.worker(engine, succeed, **options)


@with_threads_and_in_a_loop
def test_invalid_handlers_are_rejected(engine: Engine, kind: Kind) -> None:
    """Handlers must be a Handlers object or a callable."""
    with pytest.raises(TypeError, match="must be Handlers or a callable"):
        kind.worker(engine, {"mail": succeed})


def test_only_an_engine_or_a_bound_sessionmaker_is_accepted(
    engine: Engine, async_engine: AsyncEngine
) -> None:
    """A connection or a session is rejected, because a worker needs its own connections."""
    with engine.connect() as connection, Session(engine) as session:
        rejected = (connection, session, sessionmaker(connection), "postgresql://", None)
        for bind in (*rejected, async_engine, async_sessionmaker(async_engine)):
            with pytest.raises(TypeError, match="needs an Engine, or a sessionmaker bound to one"):
                QueueWorker(bind, succeed)  # type: ignore[arg-type]


def test_only_an_async_engine_or_a_bound_async_sessionmaker_is_accepted(
    engine: Engine, async_engine: AsyncEngine
) -> None:
    rejected = (async_engine.connect(), AsyncSession(async_engine), async_engine.sync_engine, None)
    for bind in (*rejected, engine, sessionmaker(engine), "postgresql+asyncpg://"):
        with pytest.raises(TypeError, match="needs an AsyncEngine, or an async_sessionmaker bound"):
            AsyncQueueWorker(bind, succeed)  # type: ignore[arg-type]


def test_unbound_sessionmakers_are_rejected() -> None:
    with pytest.raises(TypeError, match="bound to one"):
        QueueWorker(sessionmaker(), succeed)
    with pytest.raises(TypeError, match="bound to one"):
        AsyncQueueWorker(async_sessionmaker(), succeed)


def test_a_threaded_worker_rejects_async_handlers(engine: Engine) -> None:
    """The error names AsyncQueueWorker."""
    handlers = Handlers()

    @handlers("mail")
    async def mail(payload: Any) -> None: ...

    with pytest.raises(TypeError, match=r"'mail' is async: run it with .*AsyncQueueWorker"):
        QueueWorker(engine, handlers)


def test_a_threaded_worker_rejects_async_callables(engine: Engine) -> None:
    """Otherwise their jobs would be archived without having run."""

    async def handler(job_type: str, payload: Any) -> None: ...

    class Callable:
        async def __call__(self, job_type: str, payload: Any) -> None: ...

    for function in (handler, Callable()):
        with pytest.raises(TypeError, match="async"):
            QueueWorker(engine, function)


def test_unsupported_databases_are_rejected() -> None:
    engine = create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with pytest.raises(NotImplementedError, match="not oracle"):
        QueueWorker(engine, succeed)
    engine.dispose()
