"""The migration steps between the versions of the job tables.

A released step is never changed, and does not use the models: it must create the same tables after
the models have changed. A new version adds a pair of functions to ``STEPS``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

from sqlalchemy_proletarian.database.dialects import features_of

from .names import DEFAULT_SCHEMA, TableNames
from .partitions import create_partitions


def _v1_up(names: TableNames) -> None:
    names = _as_the_database_has_them(names)
    partitioned = _v1_partitioned(names)
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
        sa.Column("unique_while", _v1_name()),
        sa.Column("headers", _v1_headers()),
        sa.Column("waits_for", _v1_name()),
        sa.Column("due_at", _v1_time()),
        schema=names.schema,
        # Vacuum after 1 % of the rows, not 20 %, of which most may be scheduled for later.
        postgresql_with={
            "autovacuum_vacuum_scale_factor": "0.01",
            "autovacuum_vacuum_threshold": "1000",
        },
        **_V1_OPTIONS,
    )
    _create_index(
        op.f(f"ix_{names.table}_claim"),  # op.f: the name is shortened if it is too long
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
    # Only jobs that wait for a limit: other jobs do not pay for it, except on MySQL and MariaDB,
    # which have no partial indexes.
    waits = sa.text("waits_for IS NOT NULL")
    _create_index(
        op.f(f"ix_{names.table}_waits_for"),
        names.table,
        ["waits_for", "priority", "due_at"],
        schema=names.schema,
        postgresql_where=waits,
        sqlite_where=waits,
    )
    _create_table(
        names.archived,
        *_v1_job_columns(),
        sa.Column("status", _v1_name(), nullable=False),
        # PostgreSQL requires the time in the key of an archive that is partitioned by it.
        sa.Column(
            "finished_at",
            _v1_time(),
            primary_key=names.partition_archive is not None,
            nullable=False,
        ),
        *_v1_added_columns(),
        sa.Column("retried_at", _v1_time()),
        sa.Column("headers", _v1_headers()),
        sa.Column("result", _v1_text()),
        schema=names.schema,
        **_V1_OPTIONS,
        **partitioned,
    )
    if names.partition_archive is not None:
        create_partitions(names.archived, schema=names.schema)
    _create_index(
        op.f(f"ix_{names.archived}_finished_at"),
        names.archived,
        ["finished_at"],
        schema=names.schema,
    )
    # Failures are few and looked for among many: other jobs do not pay for it, except on MySQL and
    # MariaDB.
    failed = sa.text("status = 'failure'")
    _create_index(
        op.f(f"ix_{names.archived}_failed"),
        names.archived,
        ["status", "finished_at"],
        schema=names.schema,
        postgresql_where=failed,
        sqlite_where=failed,
    )
    _create_table(
        names.running,
        sa.Column("job_id", _v1_id(), primary_key=True),
        sa.Column("worker", _v1_name(), nullable=False),
        sa.Column("batch_size", sa.Integer(), nullable=False),
        sa.Column("started_at", _v1_time(), nullable=False),
        schema=names.schema,
        # Markers are advisory and are written for every batch: they need no write-ahead log.
        prefixes=["UNLOGGED"] if features_of(op.get_context().dialect).unlogged else [],
        **_V1_OPTIONS,
    )
    _create_table(
        names.recurring,
        sa.Column("name", _v1_name(), primary_key=True),
        sa.Column("cron", _v1_name()),
        sa.Column("interval_seconds", sa.Integer()),
        sa.Column("time_zone", _v1_name(), nullable=False, server_default=sa.text("'UTC'")),
        sa.Column("queue", _v1_name(), nullable=False, server_default=sa.text("'default'")),
        sa.Column("job_type", _v1_name(), nullable=False),
        sa.Column("payload", _v1_text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False, server_default=sa.text("5")),
        sa.Column("catch_up", _v1_name(), nullable=False, server_default=sa.text("'last'")),
        sa.Column("next_at", _v1_time()),
        sa.Column("last_at", _v1_time()),
        sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.text("'0'")),
        sa.Column("owner", _v1_name()),
        sa.Column("fingerprint", _v1_name()),
        sa.Column("superseded", _v1_text()),
        sa.Column("confirmed_at", _v1_time()),
        schema=names.schema,
        **_V1_OPTIONS,
    )
    _create_index(
        op.f(f"ix_{names.recurring}_next_at"), names.recurring, ["next_at"], schema=names.schema
    )

    _create_table(
        names.paused,
        sa.Column("queue", _v1_name(), primary_key=True),
        sa.Column("paused_at", _v1_time(), nullable=False),
        sa.Column("reason", _v1_text()),
        sa.Column("paused_by", _v1_name()),
        schema=names.schema,
        **_V1_OPTIONS,
    )
    _create_table(
        names.places,
        sa.Column("name", _v1_name(), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("job_id", _v1_id()),
        sa.Column("lease_id", _v1_id()),
        sa.Column("starts", _v1_text()),
        sa.Column("created_at", _v1_time(), nullable=False),
        schema=names.schema,
        **_V1_OPTIONS,
    )


# MySQL and MariaDB cannot index TEXT without a prefix length, and their TEXT is too short for
# payloads. Their default collations are case-insensitive.
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


def _v1_headers() -> sa.JSON:
    # With PostgreSQL's JSON, unlike JSONB, a query of all columns cannot use DISTINCT.
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


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


def _v1_partitioned(names: TableNames) -> dict[str, Any]:
    if names.partition_archive is None:
        return {}
    if not _on("postgresql"):
        msg = (
            f"partition_archive={names.partition_archive!r} is for PostgreSQL only, not for "
            f"{op.get_context().dialect.name}: omit it there"
        )
        raise NotImplementedError(msg)
    return {"postgresql_partition_by": "RANGE (finished_at)"}


def _v1_down(names: TableNames) -> None:
    names = _as_the_database_has_them(names)
    for table in (
        names.places,
        names.recurring,
        names.paused,
        names.running,
        names.archived,
        names.table,
    ):
        op.drop_table(table, schema=names.schema, if_exists=_on(*_MYSQL))
    if names.schema == DEFAULT_SCHEMA:
        _drop_default_schema_if_empty()


STEPS: Final = [(_v1_up, _v1_down)]
"""The upgrade and the downgrade function of each version, starting with version 1."""


def _on(*dialects: str) -> bool:
    return op.get_context().dialect.name in dialects


def _is_there(schema: str) -> bool:
    offline = op.get_context().as_sql
    return not offline and sa.inspect(op.get_bind()).has_schema(schema)


def _as_the_database_has_them(names: TableNames) -> TableNames:
    """Remove the schema on SQLite, unless a database is attached with its name.

    :raises ValueError: if PostgreSQL would truncate a name. It does so without an error, and the
        table could not be found by its name.
    """
    longest = op.get_context().dialect.max_identifier_length
    for name in names.tables if _on("postgresql") else ():
        if len(name.encode()) > longest:
            msg = f"{name!r} is too long: names in PostgreSQL have at most {longest} bytes"
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
    """Return the parts that an interrupted step has already created; MySQL has no DDL rollback."""
    if not _on(*_MYSQL) or op.get_context().as_sql:
        return []
    there = sa.inspect(op.get_bind())
    return getattr(there, what)(table, schema=schema) if there.has_table(table, schema) else []


def _create_schema(schema: str) -> None:
    # Even with IF NOT EXISTS, CREATE SCHEMA requires the privilege to create schemas. A role whose
    # schema was created by an administrator does not have it.
    if _on("postgresql", *_MYSQL) and not _is_there(schema):
        op.execute(sa.schema.CreateSchema(schema, if_not_exists=True))


def _drop_default_schema_if_empty() -> None:
    if _on("postgresql"):
        # The server rejects DROP SCHEMA if the schema contains any object. This is more reliable
        # than a query for all kinds of objects, and it works in an offline script.
        op.execute(
            "DO $$ BEGIN "
            "DROP SCHEMA IF EXISTS proletarian; "
            "EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL; "
            "END $$"
        )
    elif _on(*_MYSQL) and _is_there(DEFAULT_SCHEMA) and _is_empty(DEFAULT_SCHEMA):
        op.execute(sa.schema.DropSchema(DEFAULT_SCHEMA))


def _is_empty(schema: str) -> bool:
    """Return whether a MySQL schema is empty: MySQL drops a schema together with its objects."""
    left = sa.text(
        "SELECT EXISTS (SELECT 1 FROM information_schema.tables WHERE table_schema = :schema)"
        " OR EXISTS (SELECT 1 FROM information_schema.routines WHERE routine_schema = :schema)"
        " OR EXISTS (SELECT 1 FROM information_schema.events WHERE event_schema = :schema)"
    )
    return not op.get_bind().execute(left, {"schema": schema}).scalar_one()
