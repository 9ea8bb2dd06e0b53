"""Where a worker in an event loop gets its connections and the sessions of its handlers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from ..models.job_classes import bind_arguments
from ..models.mixins import JobMixin
from .sessions import SessionSource

_ASYNC_SESSION: Final = "sqlalchemy_proletarian.async_session"


def async_session_source(
    bind: AsyncEngine | async_sessionmaker[Any], job_model: type[JobMixin]
) -> SessionSource:
    """Return where a worker gets its connections and sessions.

    :raises TypeError: if ``bind`` is neither an AsyncEngine nor an async_sessionmaker bound to one.
    """
    maker = async_sessionmaker(bind) if isinstance(bind, AsyncEngine) else bind
    if isinstance(maker, async_sessionmaker):
        with suppress(UnboundExecutionError):
            session = maker()
            inside = session.sync_session
            engine = inside.get_bind(**bind_arguments(job_model))
            if isinstance(engine, Engine):
                return SessionSource(engine, sync_maker(maker), type(inside), type(session))
    msg = f"a worker needs an AsyncEngine, or an async_sessionmaker bound to one, not {bind!r}"
    raise TypeError(msg)


def sync_maker(maker: Callable[..., AsyncSession]) -> Callable[..., Session]:
    """Return a callable that makes the Session inside an AsyncSession, for the worker's code."""

    def make_session(*, bind: Engine | None = None, **options: Any) -> Session:
        if bind is not None:
            options["bind"] = AsyncEngine(bind)
        session = maker(**options)
        # The Session must keep its AsyncSession alive.
        session.sync_session.info[_ASYNC_SESSION] = session
        return session.sync_session

    return make_session
