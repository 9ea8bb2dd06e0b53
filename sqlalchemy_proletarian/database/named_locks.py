"""Named locks: of workers on MySQL and MariaDB, and of migrations.

A worker shows that it is alive: on PostgreSQL by the names of its connections, which every role
can read. MySQL and MariaDB have no such names, so a worker holds a named lock. Any session may ask
whether the lock is held, and the server releases it when the connection of its holder ends.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

from sqlalchemy import ColumnElement, Dialect, Executable, func, select, text

from .column_types import MYSQL
from .dialects import features_of

PREFIX: Final = "proletarian:"

_MAX_NAME: Final = 64
"""The longest name of a lock, in characters; see :data:`.MAX_IDENTITY`."""

_PATIENCE: Final = 600
"""Seconds that a statement of :func:`exclusive_lock` waits on MySQL and MariaDB."""


def worker_lock(worker: ColumnElement[str]) -> ColumnElement[str]:
    """Return the name of the lock that a worker holds while it is alive."""
    return func.left(func.concat(PREFIX, worker), _MAX_NAME)


def is_alive(worker: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition that a worker is alive."""
    return func.is_used_lock(worker_lock(worker)).is_not(None)


def exclusive_lock(dialect: Dialect, name: str) -> Executable | None:
    """Return a statement that takes a lock until the transaction, or the connection, ends.

    SQLite has no named locks: the statement begins a write transaction. None for a database that
    is not supported.
    """
    if features_of(dialect).advisory_locks:
        return select(func.pg_advisory_xact_lock(func.hashtext(name)))
    if dialect.name in MYSQL:
        return select(func.get_lock(name, _PATIENCE))
    return text("BEGIN IMMEDIATE") if dialect.name == "sqlite" else None


def free_lock(dialect: Dialect, name: str) -> Executable | None:
    """Return a statement that takes a lock if it is free, and says whether it did.

    On PostgreSQL the lock is held until the transaction ends, also behind PgBouncer. On MySQL and
    MariaDB it is held until the connection ends, and concerns the whole server. None if the
    database has no named locks.
    """
    if features_of(dialect).advisory_locks:
        return select(func.pg_try_advisory_xact_lock(func.hashtext(name)))
    if dialect.name in MYSQL:
        short = sha1(name.encode(), usedforsecurity=False).hexdigest()
        return select(func.get_lock(f"{PREFIX}{short}", 0) == 1)
    return None
