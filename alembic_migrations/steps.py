"""The steps from version to version.

A step that was released is never edited, and reads nothing from the models: it must build the same
tables when the models have moved on. A new version is a new pair of functions in ``STEPS``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from .names import DEFAULT_SCHEMA, TableNames


def _v1_up(names: TableNames) -> None:
    names = _as_the_database_has_them(names)
    if names.schema is not None:
        _create_schema(names.schema)
    _create_table(
        names.table,
        *_v1_job_columns(),
        *_v1_added_columns(),
        sa.Column("lease_id", _v1_id()),
        sa.Column("ended_as", _v1_name()),
        sa.Column("ended_at", _v1_time()),
        sa.Column("refusal", _v1_text()),
        schema=names.schema,
        **_V1_OPTIONS,
    )
    _create_index(
        op.f(f"ix_{names.table}_claim"),  # op.f: shortened where it would be too long
        names.table,
        ["queue", "priority", "process_at"],
        schema=names.schema,
    )
    keyed = sa.text("unique_key IS NOT NULL")
    _create_index(
        op.f(f"ux_{names.table}_unique_key"),
        names.table,
        ["queue", "unique_key"],
        unique=True,
        schema=names.schema,
        postgresql_where=keyed,
        sqlite_where=keyed,
    )
    _create_table(
        names.archived,
        *_v1_job_columns(),
        sa.Column("status", _v1_name(), nullable=False),
        sa.Column("finished_at", _v1_time(), nullable=False),
        *_v1_added_columns(),
        schema=names.schema,
        **_V1_OPTIONS,
    )
    _create_index(
        op.f(f"ix_{names.archived}_finished_at"),
        names.archived,
        ["finished_at"],
        schema=names.schema,
    )
    _create_table(
        names.running,
        sa.Column("job_id", _v1_id(), primary_key=True),
        sa.Column("worker", _v1_name(), nullable=False),
        sa.Column("batch_size", sa.Integer(), nullable=False),
        sa.Column("started_at", _v1_time(), nullable=False),
        schema=names.schema,
        # The markers are advisory and written for every batch: they need no write-ahead log.
        prefixes=["UNLOGGED"] if _on("postgresql") else [],
        **_V1_OPTIONS,
    )


# MySQL and MariaDB cannot index a text without an end, nor is one of theirs long enough; and they
# take "Mail" for "mail" where they are not told otherwise.
_V1_EXACT: Final = {"charset": "utf8mb4", "collation": "utf8mb4_bin"}
_V1_OPTIONS: Final[dict[str, Any]] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
_MYSQL: Final = ("mysql", "mariadb")


def _v1_id() -> sa.Uuid[Any]:
    return sa.Uuid().with_variant(sa.BINARY(16), *_MYSQL)


def _v1_name() -> sa.Text:
    return sa.Text().with_variant(mysql.VARCHAR(255, **_V1_EXACT), *_MYSQL)


def _v1_text() -> sa.Text:
    return sa.Text().with_variant(mysql.LONGTEXT(**_V1_EXACT), *_MYSQL)


def _v1_time() -> sa.DateTime:
    return sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), *_MYSQL)


def _v1_job_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("job_id", _v1_id(), primary_key=True),
        sa.Column("queue", _v1_name(), nullable=False),
        sa.Column("job_type", _v1_name(), nullable=False),
        sa.Column("payload", _v1_text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("enqueued_at", _v1_time(), nullable=False),
        sa.Column("process_at", _v1_time(), nullable=False),
    ]


def _v1_added_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("priority", sa.SmallInteger(), nullable=False, server_default=sa.text("5")),
        sa.Column("unique_key", _v1_name()),
        sa.Column("error", _v1_text()),
        sa.Column("deaths", sa.Integer(), nullable=False, server_default=sa.text("0")),
    ]


def _v1_down(names: TableNames) -> None:
    names = _as_the_database_has_them(names)
    for table in (names.running, names.archived, names.table):
        op.drop_table(table, schema=names.schema, if_exists=_on(*_MYSQL))
    if names.schema == DEFAULT_SCHEMA:
        _drop_default_schema_if_empty()


STEPS: Final = [(_v1_up, _v1_down)]
"""For each version, from the first, how to get to it and how to leave it."""


def _on(*dialects: str) -> bool:
    return op.get_context().dialect.name in dialects


def _is_there(schema: str) -> bool:
    offline = op.get_context().as_sql
    return not offline and sa.inspect(op.get_bind()).has_schema(schema)


def _as_the_database_has_them(names: TableNames) -> TableNames:
    """Leave out the schema on SQLite, which has none, unless a database is attached as it.

    :raises ValueError: if PostgreSQL would cut a name off, without an error: nothing would find the
        table then.
    """
    longest = op.get_context().dialect.max_identifier_length
    for name in names.tables if _on("postgresql") else ():
        if len(name.encode()) > longest:
            msg = f"{name!r} is too long: PostgreSQL has names of {longest} bytes at most"
            raise ValueError(msg)
    if _on("sqlite") and names.schema is not None and not _is_there(names.schema):
        return replace(names, schema=None)
    return names


def _create_table(name: str, *columns: sa.Column[Any], schema: str | None, **options: Any) -> None:
    made = (column["name"] for column in _made("get_columns", name, schema))
    if set(made) != {column.name for column in columns}:
        op.create_table(name, *columns, schema=schema, **options)


def _create_index(
    name: str, table: str, columns: list[str], *, schema: str | None, **options: Any
) -> None:
    if name not in (index["name"] for index in _made("get_indexes", table, schema)):
        op.create_index(name, table, columns, schema=schema, **options)


def _made(what: str, table: str, schema: str | None) -> list[Any]:
    """Return what there is of a table where a step may have been interrupted: MySQL cannot undo."""
    if not _on(*_MYSQL) or op.get_context().as_sql:
        return []
    there = sa.inspect(op.get_bind())
    return getattr(there, what)(table, schema=schema) if there.has_table(table, schema) else []


def _create_schema(schema: str) -> None:
    # IF NOT EXISTS asks for the right to create schemas even where there is nothing to create: a
    # role that was given its schema by an administrator does not have it.
    if _on("postgresql", *_MYSQL) and not _is_there(schema):
        op.execute(sa.schema.CreateSchema(schema, if_not_exists=True))


def _drop_default_schema_if_empty() -> None:
    if _on("postgresql"):
        # The server is asked to drop it and refuses when anything is left in it: unlike a list of
        # what could be left this misses nothing, and it works in an offline script.
        op.execute(
            "DO $$ BEGIN "
            "DROP SCHEMA IF EXISTS proletarian; "
            "EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL; "
            "END $$"
        )
    elif _on(*_MYSQL) and _is_there(DEFAULT_SCHEMA) and _is_empty(DEFAULT_SCHEMA):
        op.execute(sa.schema.DropSchema(DEFAULT_SCHEMA))


def _is_empty(schema: str) -> bool:
    """Tell whether nothing is left in a schema of MySQL, which would drop it with all there is."""
    left = sa.text(
        "SELECT EXISTS (SELECT 1 FROM information_schema.tables WHERE table_schema = :schema)"
        " OR EXISTS (SELECT 1 FROM information_schema.routines WHERE routine_schema = :schema)"
        " OR EXISTS (SELECT 1 FROM information_schema.events WHERE event_schema = :schema)"
    )
    return not op.get_bind().execute(left, {"schema": schema}).scalar_one()
