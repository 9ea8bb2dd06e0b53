"""The connections that a worker owns: taken from the caller's engine, set up for what it does.

They are detached from the engine's pool, so that nothing set here reaches the caller, and closed
when the worker lets go of them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from os import dup
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, func, select
from sqlalchemy.exc import DBAPIError, OperationalError, UnboundExecutionError
from sqlalchemy.orm import Session, sessionmaker

from .models import JobMixin

MAX_APPLICATION_NAME = 63

_CANCEL_TIMEOUT = 1.0

_SERVER_IS_GONE = ("08", "57P")
"""Classes of SQLSTATE: connection exceptions, and the server's shutdown."""

_SETTINGS = {
    # It is the server that must notice when this host vanishes, and free its locks: after 13 to 15
    # seconds with these, after two hours with the defaults.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "14s",
    # A job's transaction is idle while its handler computes.
    "idle_in_transaction_session_timeout": "0",
}


def engine_and_maker(
    bind: Engine | sessionmaker[Any], job_model: type[JobMixin]
) -> tuple[Engine, Callable[..., Session]]:
    """Return the engine that has the job table, and what makes the handlers' sessions.

    :raises TypeError: if ``bind`` is neither an Engine nor a sessionmaker bound to one.
    """
    if isinstance(bind, Engine):
        return bind, Session
    if isinstance(bind, sessionmaker):
        with bind() as session, suppress(UnboundExecutionError):
            engine = session.get_bind(job_model)
            if isinstance(engine, Engine):
                return engine, bind
    msg = f"a worker needs an Engine, or a sessionmaker bound to one, not {bind!r}"
    raise TypeError(msg)


def own_connection(
    engine: Engine, name: str, *, isolation_level: str = "READ COMMITTED"
) -> Connection:
    """Open a connection of the worker's own.

    :param name: what the server calls it (``application_name``).
    :param isolation_level: an engine's own, such as AUTOCOMMIT, would let go of every lock at once.
    """
    connection = engine.connect()
    try:
        connection = connection.execution_options(isolation_level=isolation_level)
        connection.detach()
        settings = _SETTINGS | {"application_name": name[:MAX_APPLICATION_NAME]}
        connection.execute(
            select(*(func.set_config(key, value, False) for key, value in settings.items()))  # noqa: FBT003
        )
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection


def is_lost(error: BaseException) -> bool:
    """Tell whether an error says that the connection is gone, or cannot be made."""
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    unreachable = state is None and isinstance(error, OperationalError)
    return error.connection_invalidated or unreachable or (state or "").startswith(_SERVER_IS_GONE)


def driver_connection(connection: Connection) -> Any:
    """Return the driver's own connection, which SQLAlchemy's accessor forgets with detaching."""
    adapted = connection.connection.dbapi_connection
    return getattr(adapted, "driver_connection", adapted)


def sever(connection: Connection) -> None:
    """Cut a connection that somebody else is using, so that the server frees its locks.

    Closing it here would pull it from under that thread; a shut socket is an error there, no crash.
    A query that is running must be cancelled: until it ends, the server does not look at the line.
    """
    with suppress(Exception):
        driver = driver_connection(connection)
        if connection.dialect.driver == "asyncpg":
            driver.terminate()
            return
        _cancel_query(connection.dialect, driver)
        with socket.socket(fileno=dup(driver.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)


def _cancel_query(dialect: Dialect, driver: Any) -> None:
    with suppress(Exception):
        if dialect.is_async:
            from sqlalchemy.util import await_

            await_(driver.cancel_safe(timeout=_CANCEL_TIMEOUT))
        else:
            driver.cancel()
