"""The steps from version to version.

A step that was released is never edited, and reads nothing from the models: it must build the same
tables when the models have moved on. A new version is a new pair of functions in ``STEPS``.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

from .names import DEFAULT_SCHEMA, TableNames


def _v1_up(names: TableNames) -> None:
    if names.schema is not None:
        _create_schema(names.schema)
    op.create_table(
        names.table,
        *_v1_job_columns(),
        *_v1_added_columns(),
        schema=names.schema,
    )
    op.create_index(
        op.f(f"ix_{names.table}_claim"),  # op.f: shortened where it would be too long
        names.table,
        ["queue", "priority", "process_at"],
        schema=names.schema,
    )
    keyed = sa.text("unique_key IS NOT NULL")
    op.create_index(
        op.f(f"ux_{names.table}_unique_key"),
        names.table,
        ["queue", "unique_key"],
        unique=True,
        schema=names.schema,
        postgresql_where=keyed,
        sqlite_where=keyed,
    )
    op.create_table(
        names.archived,
        *_v1_job_columns(),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        *_v1_added_columns(),
        schema=names.schema,
    )
    op.create_index(
        op.f(f"ix_{names.archived}_finished_at"),
        names.archived,
        ["finished_at"],
        schema=names.schema,
    )
    op.create_table(
        names.running,
        sa.Column("job_id", sa.Uuid(), primary_key=True),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("batch_size", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        schema=names.schema,
        # The markers are advisory and written for every batch: they need no write-ahead log.
        prefixes=["UNLOGGED"] if _on_postgresql() else [],
    )


def _v1_job_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("job_id", sa.Uuid(), primary_key=True),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("job_type", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("enqueued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("process_at", sa.DateTime(timezone=True), nullable=False),
    ]


def _v1_added_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("priority", sa.SmallInteger(), nullable=False, server_default=sa.text("5")),
        sa.Column("unique_key", sa.Text()),
        sa.Column("error", sa.Text()),
    ]


def _v1_down(names: TableNames) -> None:
    for table in (names.running, names.archived, names.table):
        op.drop_table(table, schema=names.schema)
    if names.schema == DEFAULT_SCHEMA and _on_postgresql():
        _drop_default_schema_if_empty()


STEPS: Final = [(_v1_up, _v1_down)]
"""For each version, from the first, how to get to it and how to leave it."""


def _on_postgresql() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _create_schema(schema: str) -> None:
    if not _on_postgresql():
        return
    # IF NOT EXISTS asks for the right to create schemas even where there is nothing to create: a
    # role that was given its schema by an administrator does not have it.
    offline = op.get_context().as_sql
    if offline or not sa.inspect(op.get_bind()).has_schema(schema):
        op.execute(sa.schema.CreateSchema(schema, if_not_exists=True))


def _drop_default_schema_if_empty() -> None:
    # The server is asked to drop it and refuses when anything is left in it: unlike a list of what
    # could be left this misses nothing, and it works in an offline script.
    op.execute(
        "DO $$ BEGIN "
        "DROP SCHEMA IF EXISTS proletarian; "
        "EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL; "
        "END $$"
    )
