"""Named locks, with which workers on MySQL and MariaDB show that they are alive.

PostgreSQL shows every role the names of all connections. MySQL and MariaDB do not, but any session
may ask whether a named lock is held, and the server releases it when the connection of its holder
ends.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, func

PREFIX: Final = "proletarian:"

_MAX_NAME: Final = 64
"""The longest name of a lock, in characters; see :data:`.MAX_IDENTITY`."""


def worker_lock(worker: ColumnElement[str]) -> ColumnElement[str]:
    """Return the name of the lock that a worker holds while it is alive."""
    return func.left(func.concat(PREFIX, worker), _MAX_NAME)


def is_alive(worker: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition that a worker is alive."""
    return func.is_used_lock(worker_lock(worker)).is_not(None)
