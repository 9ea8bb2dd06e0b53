"""Servers on which running markers can be read.

They are those on which workers write them. A standby of PostgreSQL does not have the rows of an
UNLOGGED table, and raises an error when they are read.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from .cluster import is_node
from .dialects import database_of


def has_markers(connection: Connection) -> bool:
    """Return whether running markers can be read on a connection, and say something."""
    database = database_of(connection.dialect)
    if database.unlogged:
        return not connection.scalar(select(func.pg_is_in_recovery()))
    return database.liveness_by is not None and not is_node(connection)
