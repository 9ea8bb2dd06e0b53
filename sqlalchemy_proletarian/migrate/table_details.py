"""Checks of ``migrate check`` that Alembic's comparison does not make.

They compare the condition of a partial index, and on PostgreSQL whether a table is UNLOGGED.
Without its condition, the unique index on ``unique_key`` would apply to more rows than it should.
An UNLOGGED job table is empty after a crash of the server; a logged table of running markers makes
up a large part of the worker's writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, Index, Inspector, MetaData, Table, bindparam, inspect, text

from ..models.job_tables import is_unlogged

_WITH_PARTIAL_INDEXES: Final = ("postgresql", "sqlite")

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
    for table in wanted.sorted_tables:
        if not inspector.has_table(table.name, schema=table.schema):
            continue
        if connection.dialect.name in _WITH_PARTIAL_INDEXES:
            yield from _conditions(connection, inspector, table)
        if connection.dialect.name == "postgresql":
            name = connection.dialect.identifier_preparer.format_table(table)
            should = is_unlogged(table)
            if connection.execute(_PERSISTENCE, {"name": name}).scalar_one() != should:
                yield f"table {table.fullname} {_LOGGING[should]}"


def _conditions(connection: Connection, inspector: Inspector, table: Table) -> Iterator[str]:
    option = f"{connection.dialect.name}_where"
    there = {
        index["name"]: _plain(index.get("dialect_options", {}).get(option))
        for index in inspector.get_indexes(table.name, schema=table.schema)
    }
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        should = _plain(_condition(connection, index))
        found = there.get(index.name, should)
        if found != should:
            yield (
                f"index {index.name} on {table.fullname}: "
                f"condition is {found or 'none'}, should be {should or 'none'}"
            )


def _condition(connection: Connection, index: Index) -> str | None:
    where = index.dialect_options[connection.dialect.name].get("where")
    if where is None:
        return None
    compiler: Any = connection.dialect.statement_compiler(connection.dialect, None)
    return str(compiler.process(where, include_table=False, literal_binds=True))


def _plain(condition: Any) -> str:
    """Return a condition without the parentheses that the database adds."""
    if condition is None:
        return ""
    return " ".join(str(condition).replace("(", " ").replace(")", " ").split())
