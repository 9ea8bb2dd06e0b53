"""The connections that a worker owns: taken from the caller's engine, set up for what it does.

They are detached from the engine's pool, so that nothing set here reaches the caller, and closed
when the worker lets go of them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, Engine, Pool, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError, OperationalError, UnboundExecutionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from ..models.job_classes import bind_arguments
from ..models.mixins import JobMixin
from . import keepalive
from .dialects import HELD, causes_of, database_of, driver_connection, is_unreachable

LISTENING = " listening"
"""What the name of a worker's listening connection ends with."""

_CONNECT_TIMEOUT = 10.0
"""Seconds. A host that has vanished is asked ever less often, and may be back long before that."""

_PARTING = 1.0
"""Seconds for what is done at the end, when the server may have vanished."""


class SessionSource(NamedTuple):
    """Where a worker takes its connections and the handlers' sessions from."""

    engine: Engine
    """The one that has the job table."""
    make: Callable[..., Session]
    """Makes the handlers' sessions; of an AsyncSession, the Session inside."""
    plain_class: type[Any]
    """The class of the sessions that plain functions get."""
    async_class: type[Any] | None = None
    """The class of those that ``async`` handlers get."""


def session_source(bind: Engine | sessionmaker[Any], job_model: type[JobMixin]) -> SessionSource:
    """Return where a worker with threads takes its connections and sessions from.

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


def own_connection(engine: Engine, name: str, *, isolation_level: str | None = None) -> Connection:
    """Open a connection of the worker's own.

    :param name: what the server calls it (``application_name``).
    :param isolation_level: READ COMMITTED by default, where the database knows it. An engine's own,
        such as AUTOCOMMIT, would let go of every lock at once.
    """
    database = database_of(engine.dialect)
    connection = _beside_the_pool(engine)
    try:
        if level := isolation_level or database.isolation_level:
            connection = connection.execution_options(isolation_level=level)
        connection.detach()
        held = connection.connection.dbapi_connection
        connection = connection.execution_options(**{HELD: held})
        keepalive.at_our_end(driver_connection(connection))
        database.set_up(connection, name)
    except BaseException:
        with suppress(Exception):
            connection.detach()  # it would stay open in a pool that nobody has
        let_go(connection)
        raise
    return connection


def _beside_the_pool(engine: Engine) -> Connection:
    """Connect as the engine does, but not in a place of its pool.

    Handlers' sessions may have all of these, while a worker that lost its connection must come
    back before the leases of their jobs run out.
    """
    driver: Any = engine.dialect.loaded_dbapi
    try:
        return Connection(engine, _in_time(engine.pool.recreate(), engine.dialect))
    except TimeoutError as error:
        msg = f"the database did not answer within {_CONNECT_TIMEOUT:g} s"
        raise TimeoutError(msg) from error
    except driver.Error as error:
        raise DBAPIError.instance(None, None, error, driver.Error) from error


def _in_time(pool: Pool, dialect: Dialect) -> PoolProxiedConnection:
    """Connect, or raise TimeoutError: whatever timeout the engine has, it may be a long one."""
    if dialect.is_async:
        import asyncio

        from sqlalchemy.util import await_, greenlet_spawn

        async def connect() -> PoolProxiedConnection:
            async with asyncio.timeout(_PARTING if _is_being_cancelled() else _CONNECT_TIMEOUT):
                return await greenlet_spawn(pool.connect)

        return await_(connect())
    outcome: Future[PoolProxiedConnection] = Future()

    def run() -> None:
        try:
            outcome.set_result(pool.connect())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, name="connecting", daemon=True).start()
    try:
        return outcome.result(_CONNECT_TIMEOUT)
    except TimeoutError:
        outcome.add_done_callback(_close_late)
        raise


def _close_late(outcome: Future[PoolProxiedConnection]) -> None:
    if outcome.exception() is None:
        outcome.result().invalidate()


def let_go(connection: Connection) -> None:
    """Close a connection of the worker's own, lost or not."""
    if connection.dialect.is_async and _is_being_cancelled():
        sever(connection, busy=False)
    try:
        with suppress(DBAPIError):
            connection.close()
    finally:
        # SQLAlchemy leaves a detached connection to the garbage collector when it is invalidated,
        # as by the end of a task in the middle of a query, and where an async driver has no way to
        # cut the line. As long as it is open the server holds its locks.
        held = connection.get_execution_options().get(HELD)
        if held is not None:
            with suppress(Exception):
                getattr(held, "terminate", held.close)()


def cannot_connect(error: BaseException) -> bool:
    """Tell whether an error says that the database cannot be reached, in any driver's words."""
    if isinstance(error, OSError | PoolTimeoutError | OperationalError):
        return True
    return isinstance(error, DBAPIError) and (error.statement is None or is_lost(error))


def _is_being_cancelled() -> bool:
    """Tell whether the event loop ends: it must not wait for a server that may have vanished."""
    import asyncio

    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_due_to_loss(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it was raised for, says that a connection was lost."""
    return any(
        isinstance(cause, DBAPIError) and cause.connection_invalidated for cause in causes_of(error)
    )


def is_lost(error: BaseException) -> bool:
    """Tell whether an error says that the connection is gone, or cannot be made."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or _is_broken(error):
        return True
    return is_unreachable(error)


def _is_broken(error: BaseException) -> bool:
    """Tell whether an error is asyncpg's for a connection that the server is about to close.

    The server has said its last words, and the line's end has not come: SQLAlchemy does not know.
    """
    return isinstance(error, DBAPIError) and type(error.orig).__name__ == "InternalClientError"


def sever(connection: Connection, *, busy: bool = True) -> None:
    """Cut a connection that somebody else is using, so that the server frees its locks.

    Closing it here would pull it from under that thread; a shut socket is an error there, no crash.

    :param busy: whether a query may be running. It must be cancelled: the server looks at the line
        only now and then until it ends.
    """
    with suppress(Exception):
        driver = driver_connection(connection)
        if connection.dialect.driver == "asyncpg":
            driver.terminate()
            return
        if busy and connection.dialect.driver == "psycopg":
            _cancel_query(connection.dialect, driver)
        if busy and connection.dialect.name == "sqlite":
            driver.interrupt()
        with keepalive.line_of(driver) as line:
            if line is not None:
                line.shutdown(socket.SHUT_RDWR)


def _cancel_query(dialect: Dialect, driver: Any) -> None:
    from psycopg import capabilities

    # The server may have vanished. Libpqs before 17 then wait for minutes, and the interpreter with
    # them; without it the query goes on until the server looks at the line.
    if not capabilities.has_cancel_safe():
        return
    with suppress(Exception):
        if dialect.is_async:
            from sqlalchemy.util import await_

            await_(driver.cancel_safe(timeout=_PARTING))
        else:
            driver.cancel_safe(timeout=_PARTING)
