"""Making the store for a database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Dialect

from ..database.dialects import database_of
from .base import Store


def open_store(dialect: Dialect, *args: Any, **options: Any) -> Store:
    """Return the store for a database; the other arguments are those of :class:`.Store`.

    :raises NotImplementedError: if the database is none of PostgreSQL, MySQL, MariaDB and SQLite.
    """
    database = database_of(dialect)
    # A worker uses one of the two; the other does not need to be in memory.
    if database.arrays:
        from .postgresql import PostgreSQLStore

        return PostgreSQLStore(*args, **options, database=database)
    from .portable import PortableStore

    return PortableStore(*args, **options, database=database)
