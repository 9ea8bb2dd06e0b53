"""Making the store for a database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Dialect

from ..database.dialects import database_of
from .base import Store
from .portable import PortableStore
from .postgresql import PostgreSQLStore


def open_store(dialect: Dialect, *args: Any, **options: Any) -> Store:
    """Return the store for a database; the other arguments are those of :class:`.Store`.

    :raises NotImplementedError: if the database is none of PostgreSQL, MySQL, MariaDB and SQLite.
    """
    database = database_of(dialect)
    kind = PostgreSQLStore if database.arrays else PortableStore
    return kind(*args, **options, database=database)
