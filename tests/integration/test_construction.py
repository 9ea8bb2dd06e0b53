"""What a worker refuses to be made of."""

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
    """An engine for event loops, which nobody connects."""
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
def test_bad_options(
    engine: Engine, kind: Kind, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """An option that makes no sense is refused when the worker is made, with the reason."""
    with pytest.raises(error, match=reason):
        kind.worker(engine, succeed, **options)


@with_threads_and_in_a_loop
def test_bad_handlers(engine: Engine, kind: Kind) -> None:
    """What is neither Handlers nor callable is refused."""
    with pytest.raises(TypeError, match="must be Handlers or a callable"):
        kind.worker(engine, {"mail": succeed})


def test_bad_binds(engine: Engine, async_engine: AsyncEngine) -> None:
    """A worker needs an engine of its own: a connection or a session is refused."""
    with engine.connect() as connection, Session(engine) as session:
        refused = (connection, session, sessionmaker(connection), "postgresql://", None)
        for bind in (*refused, async_engine, async_sessionmaker(async_engine)):
            with pytest.raises(TypeError, match="needs an Engine, or a sessionmaker bound to one"):
                QueueWorker(bind, succeed)  # type: ignore[arg-type]


def test_bad_binds_in_a_loop(engine: Engine, async_engine: AsyncEngine) -> None:
    """A worker in an event loop needs an AsyncEngine, or what makes sessions on one."""
    refused = (async_engine.connect(), AsyncSession(async_engine), async_engine.sync_engine, None)
    for bind in (*refused, engine, sessionmaker(engine), "postgresql+asyncpg://"):
        with pytest.raises(TypeError, match="needs an AsyncEngine, or an async_sessionmaker bound"):
            AsyncQueueWorker(bind, succeed)  # type: ignore[arg-type]


def test_unbound_sessionmakers() -> None:
    """A sessionmaker without an engine is refused as what is no bind at all."""
    with pytest.raises(TypeError, match="bound to one"):
        QueueWorker(sessionmaker(), succeed)
    with pytest.raises(TypeError, match="bound to one"):
        AsyncQueueWorker(async_sessionmaker(), succeed)


def test_async_handlers_are_refused(engine: Engine) -> None:
    """An async handler would never run in threads: it is refused, and the right worker named."""
    handlers = Handlers()

    @handlers("mail")
    async def mail(payload: Any) -> None: ...

    with pytest.raises(TypeError, match=r"'mail' is async: run it with .*AsyncQueueWorker"):
        QueueWorker(engine, handlers)


def test_async_plain_callables_are_refused(engine: Engine) -> None:
    """An async callable is refused too: its jobs would be archived without having run."""

    async def handler(job_type: str, payload: Any) -> None: ...

    class Callable:
        async def __call__(self, job_type: str, payload: Any) -> None: ...

    for function in (handler, Callable()):
        with pytest.raises(TypeError, match="async"):
            QueueWorker(engine, function)


def test_other_databases_are_refused() -> None:
    """On a database that it does not support there is no worker."""
    engine = create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with pytest.raises(NotImplementedError, match="not oracle"):
        QueueWorker(engine, succeed)
    engine.dispose()
