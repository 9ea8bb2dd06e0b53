"""The partitions of an archive by month: making those of the next months, and dropping old ones.

Every change waits a short time for its locks and then gives up, because other sessions wait behind
it. It is then made at the next time.

A partition is made as a table and attached to the archive. This locks the default partition only,
in which no jobs finish as long as the month has a partition. Dropping one locks the whole archive
for a moment.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table, TextClause, text
from sqlalchemy.exc import DBAPIError

from ..database.dialects import database_of
from ..database.error_codes import is_lock_timeout
from ..database.named_locks import exclusive_lock
from ..database.partitions import (
    BY_FINISHED_AT,
    MONTHS_AHEAD,
    Month,
    for_values,
    month_name,
    months,
    quoted,
    run_ddl,
)

LOCK_TIMEOUT: Final = 1000
"""Milliseconds for which a change of partitions waits for a lock."""

_ABOUT: Final = text("""
    SELECT c.relkind = 'p' AND pg_get_partkeydef(c.oid) = :key AS is_partitioned,
           pg_has_role(c.relowner, 'USAGE') AS is_owner,
           has_schema_privilege(c.relnamespace, 'CREATE') AS may_create,
           pg_get_userbyid(c.relowner) AS owner
    FROM pg_catalog.pg_class AS c WHERE c.oid = to_regclass(:name)
""")

# pg_get_expr() writes the bounds in the time zone of the session, with its offset.
_PARTITIONS: Final = text(r"""
    SELECT name, schema, rows, is_default,
           CAST((regexp_match(bounds, 'FROM \(''([^'']+)''\)'))[1] AS timestamptz) AS begin,
           CAST((regexp_match(bounds, 'TO \(''([^'']+)''\)'))[1] AS timestamptz) AS "end",
           bounds LIKE '%FROM (MINVALUE)%' AS from_the_start,
           bounds LIKE '%TO (MAXVALUE)%' AS to_the_end
    FROM (
        SELECT c.relname AS name, n.nspname AS schema, c.reltuples AS rows,
               pg_get_expr(c.relpartbound, c.oid) AS bounds,
               pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' AS is_default
        FROM pg_catalog.pg_inherits AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE i.inhparent = to_regclass(:name)
    ) AS children
""")


class PartitionedArchive(NamedTuple):
    """An archive that is partitioned, and what the role may do with it."""

    table: Table
    name: str
    """The name as it is written in SQL."""
    schema: str | None
    owner: str
    may_make: bool
    may_drop: bool


def partitioned_archive(connection: Connection, archived: Table) -> PartitionedArchive | None:
    """Return what is to be known about an archive; None if it is not partitioned by month."""
    if not database_of(connection.dialect).partitions:
        return None
    schema = connection.schema_for_object(archived)
    name = quoted(archived.name, schema)
    row = connection.execute(_ABOUT, {"name": name, "key": BY_FINISHED_AT}).one_or_none()
    if row is None or not row.is_partitioned:
        return None
    may_make = row.is_owner and row.may_create
    return PartitionedArchive(archived, name, schema, row.owner, may_make, row.is_owner)


def make_partitions(
    connection: Connection, archive: PartitionedArchive, now: datetime, ahead: int = MONTHS_AHEAD
) -> list[str]:
    """Make the partitions of this month and the next ones that do not exist; return their names.

    A month gets none if its locks are not free, or if the default partition has rows of it, which
    would have to be moved. They stay there, and are pruned there.

    :param connection: is not in a transaction.
    """
    with connection.begin():
        missing = list(_missing(connection, archive, now, ahead))
    made = []
    for begin, end in missing:
        with connection.begin():
            name = _make(connection, archive, begin, end)
        if name is not None:
            made.append(name)
    return made


def is_prepared(connection: Connection, archive: PartitionedArchive, now: datetime) -> bool:
    """Return whether the next month has a partition, in the caller's transaction."""
    *_, (begin, end) = months(now, 1)
    there = _partitions(connection, archive)
    return any(_overlaps(row, begin, end) for row in there)


def remedy(archive: PartitionedArchive) -> str:
    """Return what to do if the partition of the next month is missing."""
    if not archive.may_make:
        return (
            f"run 'proletarian partitions' as {archive.owner}, which owns the table, every month; "
            f"or let the worker do it: GRANT {archive.owner} TO its role, which also needs CREATE "
            f"on the schema"
        )
    return (
        "the default partition has jobs of that month, or its locks were not free: see "
        "'proletarian partitions'"
    )


def drop_partitions(
    connection: Connection, archive: PartitionedArchive, before: datetime
) -> tuple[int, bool]:
    """Drop the partitions all of whose jobs finished before a time, except the default partition.

    :param connection: is not in a transaction.
    :return: how many rows they had, by the server's statistics if there are any; and whether some
        are left, because their locks are not free.
    """
    with connection.begin():
        old = list(_old(connection, archive, before))
    deleted, is_busy = 0, False
    for name in old:
        with connection.begin():
            rows = _drop(connection, archive, name, before)
        deleted += rows or 0
        is_busy = is_busy or rows is None
    return deleted, is_busy


def _missing(
    connection: Connection, archive: PartitionedArchive, now: datetime, ahead: int
) -> Iterator[Month]:
    there = _partitions(connection, archive)
    default = next((row for row in there if row.is_default), None)
    for begin, end in months(now, ahead):
        if any(_overlaps(row, begin, end) for row in there):
            continue
        if default is None or not _has_rows(connection, default, begin, end):
            yield begin, end


def _make(
    connection: Connection, archive: PartitionedArchive, begin: datetime, end: datetime
) -> str | None:
    """Return None if another session has made the partition, or if the locks are not free."""
    with _patience(connection):
        _lock(connection, archive)
        if any(_overlaps(row, begin, end) for row in _partitions(connection, archive)):
            return None
        title = month_name(archive.table.name, begin)
        name = quoted(title, archive.schema)
        # Not CREATE TABLE … PARTITION OF, which locks the whole archive.
        like = f"(LIKE {archive.name} INCLUDING ALL EXCLUDING IDENTITY)"
        run_ddl(connection, f"CREATE TABLE {name} {like}")
        attach = f"ATTACH PARTITION {name} {for_values(begin, end)}"
        run_ddl(connection, f"ALTER TABLE {archive.name} {attach}")
        return title
    return None


def _drop(
    connection: Connection, archive: PartitionedArchive, name: str, before: datetime
) -> int | None:
    """Return how many rows the partition had; None if the locks are not free."""
    with _patience(connection):
        _lock(connection, archive)
        rows = _old(connection, archive, before).get(name)
        if rows is None:  # another session has dropped it
            return 0
        if rows <= 0:  # never analyzed, so it is not large
            rows = connection.scalar(_count(name))
        run_ddl(connection, f"DROP TABLE {name}")
        return int(rows)
    return None


def _old(connection: Connection, archive: PartitionedArchive, before: datetime) -> dict[str, float]:
    return {
        quoted(row.name, row.schema): row.rows
        for row in _partitions(connection, archive)
        if row.end is not None and row.end <= before
    }


def _partitions(connection: Connection, archive: PartitionedArchive) -> Sequence[Any]:
    return connection.execute(_PARTITIONS, {"name": archive.name}).all()


def _overlaps(row: Any, begin: datetime, end: datetime) -> bool:
    if row.is_default:
        return False
    starts_before = row.from_the_start or row.begin is None or row.begin < end
    ends_after = row.to_the_end or row.end is None or row.end > begin
    return bool(starts_before and ends_after)


def _has_rows(connection: Connection, default: Any, begin: datetime, end: datetime) -> bool:
    name = quoted(default.name, default.schema).replace(":", r"\:")
    found = text(
        f"SELECT EXISTS (SELECT FROM {name} WHERE finished_at >= :begin AND finished_at < :end)"  # noqa: S608
    )
    return bool(connection.scalar(found, {"begin": begin, "end": end}))


def _count(partition: str) -> TextClause:
    name = partition.replace(":", r"\:")
    return text(f"SELECT count(*) FROM {name}")  # noqa: S608


def _lock(connection: Connection, archive: PartitionedArchive) -> None:
    """Let one session at a time change the partitions of an archive."""
    lock: Any = exclusive_lock(connection.dialect, f"proletarian partitions {archive.name}")
    connection.execute(lock)


@contextmanager
def _patience(connection: Connection) -> Generator[None]:
    """Undo the statements of a block, without an error, if they wait too long for a lock."""
    try:
        with connection.begin_nested():
            run_ddl(connection, f"SET LOCAL lock_timeout = {LOCK_TIMEOUT}")
            yield
    except DBAPIError as error:
        if not is_lock_timeout(error):
            raise
