"""Where a worker's sessions come from: an engine, or a session maker of the application."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from sqlalchemy import Engine
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, sessionmaker

from ..models.job_classes import bind_arguments
from ..models.mixins import JobMixin


class SessionSource(NamedTuple):
    """The engine and the sessions of a worker."""

    engine: Engine
    """The engine of the job table."""
    make: Callable[..., Session]
    """Creates the handlers' sessions; for an AsyncSession, its ``sync_session``."""
    plain_class: type[Any]
    """The session class for plain handlers."""
    async_class: type[Any] | None = None
    """The session class for ``async`` handlers."""


def session_source(bind: Engine | sessionmaker[Any], job_model: type[JobMixin]) -> SessionSource:
    """Return the session source of a worker with threads.

    :raises TypeError: if ``bind`` is neither an Engine nor a sessionmaker bound to one.
    """
    if isinstance(bind, Engine):
        return SessionSource(bind, sessionmaker(bind), Session)
    if isinstance(bind, sessionmaker):
        with bind() as session, suppress(UnboundExecutionError):
            engine = session.get_bind(**bind_arguments(job_model))
            if isinstance(engine, Engine):
                return SessionSource(engine, bind, type(session))
    msg = f"a worker needs an Engine, or a sessionmaker bound to one, not {bind!r}"
    raise TypeError(msg)
