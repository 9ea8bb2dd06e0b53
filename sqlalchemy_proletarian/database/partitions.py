"""Partitions of an archive by month on PostgreSQL: their names, their bounds, and their DDL.

A partition has the jobs that finished in a month, in UTC. The default partition has all others: no
job is rejected because the partition of its month does not exist.

Do not import models here: the migrations use this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha1
from typing import Final, TypeAlias

from sqlalchemy import Connection, Table

BY_FINISHED_AT: Final = "RANGE (finished_at)"
"""The ``postgresql_partition_by`` of an archive; also what the server says of its key."""

MONTHS_AHEAD: Final = 3
"""How many months after the current one have partitions."""

Month: TypeAlias = tuple[datetime, datetime]
"""The first moment of a month, and that of the next one."""

_MAX_NAME: Final = 63
"""The longest name on PostgreSQL, in bytes."""
_LONGEST_SUFFIX: Final = len("_default")
_MONTH: Final = re.compile(r"_\d{4}_(0[1-9]|1[0-2])")


def is_partitioned(table: Table) -> bool:
    """Return whether a table is mapped as one that is partitioned by month."""
    given = table.dialect_options["postgresql"]["partition_by"]
    return given is not None and _plain(str(given)) == _plain(BY_FINISHED_AT)


def _plain(text: str) -> str:
    return re.sub(r'[\s"]', "", text).lower()


def months(now: datetime, ahead: int = MONTHS_AHEAD) -> Iterator[Month]:
    """Yield the month of a time, and the months after it."""
    now = now.astimezone(UTC)
    first = now.year * 12 + now.month - 1
    for n in range(first, first + ahead + 1):
        yield _first_moment(n), _first_moment(n + 1)


def _first_moment(month: int) -> datetime:
    return datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)


def month_name(table: str, begin: datetime) -> str:
    """Return the name of the partition of a month."""
    return f"{_stem(table)}_{begin:%Y_%m}"


def default_name(table: str) -> str:
    """Return the name of the default partition."""
    return f"{_stem(table)}_default"


def _stem(table: str) -> str:
    whole = table.encode()
    if len(whole) + _LONGEST_SUFFIX <= _MAX_NAME:
        return table
    digest = sha1(whole, usedforsecurity=False).hexdigest()[:8]
    kept = whole[: _MAX_NAME - _LONGEST_SUFFIX - len(digest) - 1].decode(errors="ignore")
    return f"{kept}_{digest}"


def is_partition_name(name: str | None, table: str) -> bool:
    """Return whether a table has the name of a partition of an archive."""
    stem = _stem(table)
    if name is None or not name.startswith(stem):
        return False
    suffix = name.removeprefix(stem)
    return suffix == "_default" or _MONTH.fullmatch(suffix) is not None


def first_partitions(table: str, schema: str | None, now: datetime) -> Iterator[str]:
    """Yield the statements that create the first partitions of a new archive."""
    whole = quoted(table, schema)
    default = quoted(default_name(table), schema)
    yield f"CREATE TABLE {default} PARTITION OF {whole} DEFAULT"
    for begin, end in months(now):
        name = quoted(month_name(table, begin), schema)
        yield f"CREATE TABLE {name} PARTITION OF {whole} {for_values(begin, end)}"


def for_values(begin: datetime, end: datetime) -> str:
    """Return the bounds of a partition as SQL."""
    return f"FOR VALUES FROM ('{begin:%Y-%m-%d} 00:00:00+00') TO ('{end:%Y-%m-%d} 00:00:00+00')"


def quoted(name: str, schema: str | None) -> str:
    """Return the name of a table as it is written in SQL.

    (SQLAlchemy would double a percent sign, which is right for some drivers only.)
    """
    parts = [name] if schema is None else [schema, name]
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def run_ddl(connection: Connection, ddl: str) -> None:
    """Run a statement as it is: in text(), a colon in a name would be a parameter."""
    connection.exec_driver_sql(ddl.replace("%", "%%"))
