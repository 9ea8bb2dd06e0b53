"""Checks of ``migrate check`` that Alembic's comparison does not make.

They compare the condition of a partial index, and on PostgreSQL whether a table is UNLOGGED.
Without its condition, the unique index on ``unique_key`` would apply to more rows than it should.
An UNLOGGED job table is empty after a crash of the server; a logged table of running markers makes
up a large part of the worker's writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, Inspector, MetaData, Table, bindparam, inspect, text

from ..database.dialects import features_of
from ..database.partial_indexes import found_conditions, wanted_condition
from ..models.job_tables import is_unlogged

_PERSISTENCE: Final = text(
    "SELECT relpersistence = 'u' FROM pg_catalog.pg_class WHERE oid = CAST(:name AS regclass)"
).bindparams(bindparam("name"))

_LOGGING: Final = {
    True: "is logged, should be UNLOGGED: writing the markers costs more than necessary",
    False: "is UNLOGGED, should be logged: a crash of the server would empty it",
}
"""The message of a difference, by whether the table should be UNLOGGED."""


def detailed_differences(connection: Connection, wanted: MetaData) -> Iterator[str]:
    """Yield one line for each difference in the tables that exist."""
    inspector = inspect(connection)
    database = features_of(connection.dialect)
    for table in wanted.sorted_tables:
        if not inspector.has_table(table.name, schema=table.schema):
            continue
        if database.partial_indexes:
            yield from _conditions(connection, inspector, table)
        if database.unlogged:
            name = connection.dialect.identifier_preparer.format_table(table)
            should = is_unlogged(table)
            if connection.execute(_PERSISTENCE, {"name": name}).scalar_one() != should:
                yield f"table {table.fullname} {_LOGGING[should]}"


def _conditions(connection: Connection, inspector: Inspector, table: Table) -> Iterator[str]:
    there = found_conditions(inspector, table)
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        should = wanted_condition(connection.dialect, index)
        found = there.get(index.name, should)
        if found != should:
            yield (
                f"index {index.name} on {table.fullname}: "
                f"condition is {found or 'none'}, should be {should or 'none'}"
            )
