"""The worker's own connections, which are created with the caller's engine.

They are detached from the engine's pool, so that the settings made here do not affect the caller,
and closed when the worker no longer needs them.
"""

from __future__ import annotations

import socket
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, Pool, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..runtime.base import GRACE_PERIOD
from . import keepalive
from .dialects import HELD, database_of, driver_connection
from .error_codes import causes_of, is_unreachable
from .poolers import (
    PER_TRANSACTION,
    client_pid,
    is_per_transaction,
    pools_transactions,
    prepared_explained,
)
from .urls import has_several_hosts

LISTENING = " listening"
"""The suffix of the name of a worker's listening connection."""

_CONNECT_TIMEOUT = 10.0
"""Seconds. Without a timeout, TCP retries at growing intervals when a host does not answer, and the
host may be back long before the next retry."""


def own_connection(engine: Engine, name: str, *, isolation_level: str | None = None) -> Connection:
    """Open one of the worker's own connections.

    :param name: the name of the connection on the server (``application_name``).
    :param isolation_level: by default READ COMMITTED, if the database has isolation levels. The
        isolation level of the engine is not used: AUTOCOMMIT, for example, would release every lock
        at once.
    """
    database = database_of(engine.dialect)
    connection = _beside_the_pool(engine)
    try:
        first_level = database.isolation_level if database.notifies else isolation_level
        if level := first_level or database.isolation_level:
            connection = connection.execution_options(isolation_level=level)
        held = connection.connection.dbapi_connection
        connection = connection.execution_options(**{HELD: held})
        keepalive.set_client_keepalive(driver_connection(connection))
        with prepared_explained(engine.dialect):
            has_session = database.set_up(connection, name, client_pid(connection))
        if not has_session:
            if pools_transactions(connection, partial(_another, engine)):
                connection = connection.execution_options(**{PER_TRANSACTION: True})
            else:
                database.set_up(connection, name)
        # Behind transaction pooling, the two messages in which some drivers send a statement must
        # be in one transaction.
        if isolation_level not in (None, level) and not is_per_transaction(connection):
            connection = connection.execution_options(isolation_level=isolation_level)
        connection.detach()
    except BaseException:
        with suppress(Exception):
            connection.detach()  # else it stays open in a pool that is not used again
        close_own_connection(connection)
        raise
    return connection


@contextmanager
def _another(engine: Engine) -> Generator[Connection]:
    """Open one more connection, which is not set up."""
    connection = _beside_the_pool(engine)
    try:
        held = connection.connection.dbapi_connection
        connection = connection.execution_options(
            **{HELD: held}, isolation_level=database_of(engine.dialect).isolation_level
        )
        connection.detach()
        yield connection
    finally:
        close_own_connection(connection)


def is_behind_transaction_pooling(connection: Connection, pid: int | None) -> bool:
    """Return whether each transaction of a connection may run in another session of the server.

    :param connection: a connection of the engine's pool, which is rolled back.
    :param pid: the id of the server's process in which its last transaction ran.
    """
    if pid is None or client_pid(connection) in (None, pid):
        return False
    connection.rollback()
    return pools_transactions(connection, partial(_another, connection.engine))


def _beside_the_pool(engine: Engine) -> Connection:
    """Connect as the engine does, but outside of its pool.

    Handlers' sessions may have checked out every connection of the pool, while a worker that lost
    its connection must reconnect before the leases of their jobs expire.
    """
    driver: Any = engine.dialect.loaded_dbapi
    try:
        return Connection(engine, _in_time(engine.pool.recreate(), engine.dialect))
    except TimeoutError as error:
        msg = f"the database did not answer within {_CONNECT_TIMEOUT:g} s"
        if has_several_hosts(engine.url):
            msg += (
                "; the next host of the URL is only tried in this time with connect_timeout=3, "
                "which asyncpg does not have"
            )
        raise TimeoutError(msg) from error
    except driver.Error as error:
        raise DBAPIError.instance(None, None, error, driver.Error) from error


def _in_time(pool: Pool, dialect: Dialect) -> PoolProxiedConnection:
    """Connect, or raise TimeoutError: the timeout of the engine may be too long."""
    if dialect.is_async:
        import asyncio

        from sqlalchemy.util import await_, greenlet_spawn

        async def connect() -> PoolProxiedConnection:
            async with asyncio.timeout(GRACE_PERIOD if _is_being_cancelled() else _CONNECT_TIMEOUT):
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


def commit_now(connection: Connection) -> None:
    """Commit what a connection has written; SQLAlchemy's transaction stays open.

    :raises sqlalchemy.exc.DBAPIError: if the database rejects it.
    """
    driver: Any = connection.dialect.loaded_dbapi
    try:
        connection.dialect.do_commit(connection.connection)
    except driver.Error as error:
        raise DBAPIError.instance(None, None, error, driver.Error) from error


def close_own_connection(connection: Connection) -> None:
    """Close one of the worker's own connections, whether or not it is lost."""
    if connection.dialect.is_async and _is_being_cancelled():
        sever(connection, busy=False)
    try:
        with suppress(DBAPIError):
            connection.close()
    finally:
        # SQLAlchemy leaves a detached connection to the garbage collector when it is invalidated,
        # for example because a task was cancelled during a query, and when an async driver cannot
        # terminate it. While the connection is open, the server keeps its locks.
        held = connection.get_execution_options().get(HELD)
        if held is not None:
            with suppress(Exception):
                getattr(held, "terminate", held.close)()


def cannot_connect(error: BaseException) -> bool:
    """Return whether an error of any driver means that the database cannot be reached."""
    if isinstance(error, OSError | PoolTimeoutError | OperationalError):
        return True
    return isinstance(error, DBAPIError) and (error.statement is None or is_lost(error))


def _is_being_cancelled() -> bool:
    """Return whether the task is being cancelled, and must not wait for an unreachable server."""
    import asyncio

    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_due_to_loss(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes means that a connection was lost."""
    return any(
        isinstance(cause, DBAPIError) and cause.connection_invalidated for cause in causes_of(error)
    )


def is_lost(error: BaseException) -> bool:
    """Return whether an error means that the connection is lost or cannot be established."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or _is_broken(error):
        return True
    return is_unreachable(error)


def _is_broken(error: BaseException) -> bool:
    """Return whether an error is asyncpg's for a connection that the server is about to close.

    The server has sent its final error but has not closed the connection yet, so SQLAlchemy does
    not invalidate it.
    """
    return isinstance(error, DBAPIError) and type(error.orig).__name__ == "InternalClientError"


def sever(connection: Connection, *, busy: bool = True) -> None:
    """Terminate a connection that another thread is using, so that the server releases its locks.

    To close the driver's connection is not safe while another thread uses it. Shutting down its
    socket raises an error in that thread instead.

    :param busy: whether a query may be running. It is cancelled, because the server checks the
        connection only at intervals until the query ends.
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
        with keepalive.socket_of(driver) as line:
            if line is not None:
                line.shutdown(socket.SHUT_RDWR)


def _cancel_query(dialect: Dialect, driver: Any) -> None:
    from psycopg import capabilities

    # If the server is unreachable, libpq before version 17 blocks for minutes, and the interpreter
    # with it. Without a cancel request the query runs until the server checks the connection.
    if not capabilities.has_cancel_safe():
        return
    with suppress(Exception):
        if dialect.is_async:
            from sqlalchemy.util import await_

            await_(driver.cancel_safe(timeout=GRACE_PERIOD))
        else:
            driver.cancel_safe(timeout=GRACE_PERIOD)
