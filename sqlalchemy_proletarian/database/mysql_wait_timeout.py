"""The idle timeout of the worker's own connections on MySQL and MariaDB.

Sessions on these databases cannot set TCP keepalives. But the server closes a connection that is
idle for longer than its ``wait_timeout``, also in a transaction: if a host vanishes between two
statements, its locks are released soon. The timeout is not limited while handlers run and between
transactions.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from sqlalchemy import Connection

LIMIT: Final = 10
"""Seconds."""

UNLIMITED: Final = "SESSION wait_timeout = 31536000"
"""The assignment that removes the limit: one year, the maximum of ``wait_timeout``."""

_LIMITED: Final = "proletarian_limited"


def limit(connection: Connection) -> None:
    """Set a short idle timeout on a connection, in its open transaction."""
    connection.exec_driver_sql(f"SET SESSION wait_timeout = {LIMIT}")
    connection.info[_LIMITED] = True


def lift(connection: Connection) -> None:
    """Remove the idle timeout, if one was set, from a connection whose transaction has ended."""
    if connection.invalidated or connection.closed:  # a statement would reconnect
        return
    if connection.info.pop(_LIMITED, False):
        with suppress(Exception):  # a lost connection raises at its next use
            # With the driver: SQLAlchemy would begin a transaction and need a round trip to end it.
            cursor = connection.connection.cursor()
            cursor.execute(f"SET {UNLIMITED}")
            cursor.close()


def lifted(connection: Connection) -> None:
    """Note that a statement with :data:`UNLIMITED` has removed the idle timeout."""
    connection.info.pop(_LIMITED, None)
