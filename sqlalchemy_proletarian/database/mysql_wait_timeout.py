"""How long nothing may be said on a connection of the worker's own, on MySQL and MariaDB.

Their sessions cannot set keepalives. But the server ends a connection that is silent for longer
than its ``wait_timeout``, be it in a transaction: so one whose host vanishes between two statements
holds nothing for long. While handlers run, and between transactions, there may be silence.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from sqlalchemy import Connection

LIMIT: Final = 10
"""Seconds."""

UNLIMITED: Final = "SESSION wait_timeout = 31536000"
"""What to SET for silence without limit: a year is the most that it takes."""

_LIMITED: Final = "proletarian_limited"


def limit(connection: Connection) -> None:
    """Let there be no long silence on a connection, in its open transaction."""
    connection.exec_driver_sql(f"SET SESSION wait_timeout = {LIMIT}")
    connection.info[_LIMITED] = True


def lift(connection: Connection) -> None:
    """Lift the limit, if there is one, on a connection whose transaction has ended."""
    if connection.invalidated or connection.closed:  # to ask it anything would connect again
        return
    if connection.info.pop(_LIMITED, False):
        with suppress(Exception):  # one that is lost says so when it is needed
            # By the driver: else it would begin a transaction, which takes one more to end.
            cursor = connection.connection.cursor()
            cursor.execute(f"SET {UNLIMITED}")
            cursor.close()


def lifted(connection: Connection) -> None:
    """Note that the limit was lifted by a statement with :data:`UNLIMITED`."""
    connection.info.pop(_LIMITED, None)
