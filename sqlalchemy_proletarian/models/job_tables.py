"""What the job tables have beside their columns: indexes, table options, UNLOGGED.

It is added to the complete table of a mapped class. In the ``__table_args__`` of a mixin, a
subclass that has its own would override it; in ``__table_cls__``, so would a base that defines it,
as the one of Flask-SQLAlchemy does.

Index names are derived from the table name, so one metadata can hold any number of job tables with
their archives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Index, PrimaryKeyConstraint, Table, event
from sqlalchemy.schema import conv

from ..clock import utcnow
from ..database.column_types import TABLE_OPTIONS
from ..database.dialects import features_of
from ..database.partitions import first_partitions, is_partitioned, run_ddl
from .values import Status

_VACUUM: Final = {"autovacuum_vacuum_scale_factor": "0.01", "autovacuum_vacuum_threshold": "1000"}
"""When PostgreSQL vacuums a job table. By default, it waits until a fifth of the rows are dead: two
million if ten million jobs are scheduled for later. (No fillfactor: each update writes
``process_at``, which is in an index, so it is never a HOT update.)"""


def complete_job_table(table: Table) -> None:
    """Add the options and the indexes of a table of queued jobs."""
    _set_options(table, {**TABLE_OPTIONS, "postgresql_with": _VACUUM})
    if table.autoincrement_column is not None:
        # Otherwise SQLite reuses the highest number after its job has moved to the archive.
        _set_options(table, {"sqlite_autoincrement": True})
    name = table.name
    _add_index(table, f"ix_{name}_claim", table.c.queue, table.c.priority, table.c.process_at)
    keyed = table.c.unique_key.is_not(None)
    _add_index(
        table,
        f"ux_{name}_unique_key",
        table.c.queue,
        table.c.unique_key,
        unique=True,
        postgresql_where=keyed,
        sqlite_where=keyed,
    )
    waits = table.c.waits_for.is_not(None)
    _add_index(
        table,
        f"ix_{name}_waits_for",
        table.c.waits_for,
        table.c.priority,
        table.c.due_at,
        postgresql_where=waits,
        sqlite_where=waits,
    )


def complete_archive(table: Table) -> None:
    """Add the options and the indexes of a table of finished jobs."""
    _set_options(table, TABLE_OPTIONS)
    if is_partitioned(table):
        _partition_by_month(table)
    _add_index(table, f"ix_{table.name}_finished_at", table.c.finished_at)
    failed = table.c.status == Status.FAILURE.value
    _add_index(
        table,
        f"ix_{table.name}_failed",
        table.c.status,
        table.c.finished_at,
        postgresql_where=failed,
        sqlite_where=failed,
    )


def _partition_by_month(table: Table) -> None:
    """Extend the key by the time, which PostgreSQL requires; the mapper's is the id alone."""
    table.c.finished_at.primary_key = True
    key = PrimaryKeyConstraint(
        table.c.job_id,
        table.c.finished_at,
        name=table.primary_key.name,  # type: ignore[arg-type]
    )
    table.append_constraint(key)
    event.listen(table, "after_create", _create_partitions)


def _create_partitions(table: Table, connection: Connection, **_: Any) -> None:
    if features_of(connection.dialect).partitions and isinstance(connection, Connection):
        schema = connection.schema_for_object(table)
        for ddl in first_partitions(table.name, schema, utcnow()):
            run_ddl(connection, ddl)


def complete_running(table: Table) -> None:
    """Add the options of a table of running markers."""
    _set_options(table, TABLE_OPTIONS)
    event.listen(table, "after_create", _set_unlogged)


def complete_paused(table: Table) -> None:
    """Add the options of a table of paused queues."""
    _set_options(table, TABLE_OPTIONS)


def complete_places(table: Table) -> None:
    """Add the options of a table of places."""
    _set_options(table, TABLE_OPTIONS)


def complete_recurring(table: Table) -> None:
    """Add the options and the index of a table of recurring jobs."""
    _set_options(table, TABLE_OPTIONS)
    _add_index(table, f"ix_{table.name}_next_at", table.c.next_at)


def is_unlogged(table: Table) -> bool:
    """Return whether a table contains running markers, which need no write-ahead log."""
    return event.contains(table, "after_create", _set_unlogged)


def _set_options(table: Table, options: Mapping[str, Any]) -> None:
    given = set(table.dialect_kwargs)  # a lookup by name would find defaults as well
    table.dialect_kwargs.update({k: v for k, v in options.items() if k not in given})


def _add_index(table: Table, name: str, *columns: Any, **options: Any) -> None:
    if name not in {index.name for index in table.indexes}:
        # conv: the name is shortened if it is too long.
        Index(conv(name), *columns, **options)


def _set_unlogged(table: Table, connection: Connection, **_: Any) -> None:
    # A mock connection of SQLAlchemy only prints the statements of create_all().
    if features_of(connection.dialect).unlogged and isinstance(connection, Connection):
        # Not with DDL(), which doubles a percent sign in a name once too often.
        preparer = connection.dialect.identifier_preparer
        name = preparer.format_table(table, use_schema=False)
        if schema := connection.schema_for_object(table):
            name = f"{preparer.quote_schema(schema)}.{name}"
        connection.exec_driver_sql(f"ALTER TABLE {name} SET UNLOGGED")
