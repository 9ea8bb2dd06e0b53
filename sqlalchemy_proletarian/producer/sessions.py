"""The sessions in which jobs are enqueued: which kinds there are, and what a call needs of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from ..errors import UnboundSessionError
from ..models.job_classes import bind_arguments

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    AnySession: TypeAlias = Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any]


def sync_session(session: Any) -> Session:
    """Return the Session behind a scoped_session, an AsyncSession or an async_scoped_session.

    A Session is returned unchanged.

    :raises TypeError: if ``session`` is none of these.
    """
    if isinstance(session, Session):
        return session
    registry = getattr(session, "registry", None)
    one = registry() if registry is not None else session
    unit = getattr(one, "sync_session", one)
    if isinstance(unit, Session):
        return unit
    msg = (
        f"session must be a Session, scoped_session, AsyncSession or async_scoped_session, "
        f"not {type(session).__qualname__}: {_remedy(session)}"
    )
    raise TypeError(msg)


def _remedy(given: Any) -> str:
    if hasattr(given, "sync_connection"):
        return (
            "to enqueue with an AsyncConnection, use `await "
            "sqlalchemy_proletarian.asyncio.enqueue(connection, ...)`"
        )
    if hasattr(given, "connect"):
        return (
            "from an engine, use Session(engine), or `with engine.begin() as connection` and the "
            "connection"
        )
    return "for a Connection, use Session(bind=connection)"


def immediate_session(
    session: Any,
    function_name: str,
    arguments: str = "...",
    *,
    module: str = "sqlalchemy_proletarian.asyncio",
) -> Session:
    """Return the Session behind a Session or scoped_session, which can execute statements directly.

    :param function_name: the name of the calling function, which is also the name of its async
        variant; for the error message.
    :param arguments: the arguments of the async variant after the session; for the error message.
    :param module: the module of the async variant; for the error message.
    :raises TypeError: if ``session`` is an AsyncSession or async_scoped_session, or no session.
    """
    unit = sync_session(session)
    if isinstance(session, Session | scoped_session):
        return unit
    msg = (
        f"{function_name} executes its statement immediately, which needs a synchronous session, "
        f"not {type(session).__qualname__}: in asyncio, use "
        f"`await {module}.{function_name}(session, {arguments})`"
    )
    raise TypeError(msg)


def require_bind(session: Session, job_model: type[Any]) -> None:
    """Check that the session has a bind for the model.

    :raises UnboundSessionError: if it has none.
    """
    if session.bind is not None and not overrides_get_bind(session):
        return
    try:
        # A horizontally sharded session chooses by the object, which is known only at flush.
        if session.connection_callable is None:
            session.get_bind(**bind_arguments(job_model))
    except UnboundExecutionError as error:
        msg = (
            f"the session has no database for {job_model.__qualname__} "
            f"(table {job_model.__table__}): give it a bind, as in Session(engine), or bind the "
            f"model in binds="
        )
        raise UnboundSessionError(msg) from error


def overrides_get_bind(session: Session) -> bool:
    """Return whether the session's class or the session itself overrides ``get_bind``."""
    return getattr(session.get_bind, "__func__", None) is not Session.get_bind
