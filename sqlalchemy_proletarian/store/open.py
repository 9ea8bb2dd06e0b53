"""Making the store for a database."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect

from ..database.dialects import Database, database_of
from .base import Store


def open_store(dialect: Dialect, *args: Any, **options: Any) -> Store:
    """Return the store for a database; the other arguments are those of :class:`.Store`.

    :raises NotImplementedError: if the database is none of PostgreSQL, MySQL, MariaDB and SQLite.
    """
    return _open(database_of(dialect), *args, **options)


def settling_store(database: Database, job_model: Any, archived_job_model: Any) -> Store:
    """Return the store of a function of the application that ends single jobs, such as cancel.

    It is kept, because building its statements takes longer than executing one.
    """
    return _settling_store(database, job_model, archived_job_model)


@lru_cache(maxsize=8)
def _settling_store(database: Database, *models: Any) -> Store:
    return _open(database, *models, (), leased=True)


def _open(database: Database, *args: Any, **options: Any) -> Store:
    # A worker uses one of the two; the other does not need to be in memory.
    if database.arrays:
        from .postgresql import PostgreSQLStore

        return PostgreSQLStore(*args, **options, database=database)
    from .portable import PortableStore

    return PortableStore(*args, **options, database=database)
