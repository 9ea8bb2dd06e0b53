"""Checks of the foreign keys in a database, before jobs are deleted from their table.

When a job ends, its row is deleted. The rows of joined tables must then be deleted with it, and no
foreign key may prevent it.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, inspect, text

from ..database.dialects import database_of
from ..errors import DatabaseNotReadyError, SchemaMismatchError
from .job_classes import child_tables, job_table, key_of

_PREVENTING: Final = text(
    "SELECT CAST(CAST(k.conrelid AS regclass) AS text), CAST(k.conname AS text)"
    " FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class t ON t.oid = k.confrelid"
    " JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace"
    " WHERE k.contype = 'f' AND k.confdeltype IN ('a', 'r') AND t.relname = CAST(:name AS text)"
    " AND CASE WHEN CAST(:schema AS text) IS NULL THEN pg_table_is_visible(t.oid)"
    " ELSE n.nspname = CAST(:schema AS text) END ORDER BY 1, 2"
)
"""Selects the foreign keys that refer to a table and prevent the deletion of its rows."""


def check_cascades(connection: Connection, job: type[Any]) -> None:
    """Raise :class:`DatabaseNotReadyError` unless the database deletes child rows with parents."""
    require_foreign_keys(connection, job)
    for child in child_tables(job):
        schema = connection.schema_for_object(child)
        found = inspect(connection).get_foreign_keys(child.name, schema=schema)
        key = key_of(child).name
        if not any(
            there["constrained_columns"] == [key]
            and there.get("options", {}).get("ondelete") == "CASCADE"
            for there in found
        ):
            msg = (
                f"{child}.{key} is a foreign key with ON DELETE CASCADE in the models, but not in "
                f"the database, so finished jobs cannot be archived: change it in an Alembic "
                f"revision"
            )
            raise SchemaMismatchError(msg)


def check_references(connection: Connection, job: type[Any]) -> None:
    """Raise :class:`SchemaMismatchError` if a foreign key prevents the deletion of ended jobs.

    Checked on PostgreSQL only. The check of the models, :func:`.check_tables`, sees the foreign
    keys of one metadata only.
    """
    if not database_of(connection.dialect).catalogs:
        return
    table = job_table(job)
    named = {"name": table.name, "schema": connection.schema_for_object(table)}
    if found := connection.execute(_PREVENTING, named).all():
        names = ", ".join(f"{constraint} of {of}" for of, constraint in found)
        msg = (
            f"the foreign key {names} refers to {table} and would prevent finished jobs from being "
            f"deleted: change it to ON DELETE CASCADE or SET NULL in an Alembic revision, or drop "
            f"it"
        )
        raise SchemaMismatchError(msg)


def require_foreign_keys(connection: Connection, job: type[Any]) -> None:
    """Raise :class:`DatabaseNotReadyError` unless a connection deletes child rows with parents."""
    children = child_tables(job)
    if children and not database_of(connection.dialect).enforces_foreign_keys(connection):
        names = ", ".join(map(str, children))
        msg = (
            f"rows of {names} must be deleted with their job in {job_table(job)}, but SQLite "
            f"enforces foreign keys only on connections that enable them: execute PRAGMA "
            f'foreign_keys = ON on each connection, in a "connect" event of the engine'
        )
        raise DatabaseNotReadyError(msg)
