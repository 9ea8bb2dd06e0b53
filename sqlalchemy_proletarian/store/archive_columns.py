"""The values of an archived row: from the job's row, from child tables, and from defaults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Table,
    bindparam,
    func,
    literal,
    null,
)

from ..models.job_classes import key_of


def archived_columns(job: Table, archived: Table, children: Sequence[Table] = ()) -> frozenset[str]:
    """Return the columns that get a value when a row moves to the archive."""
    given = {
        c.name
        for c in archived.c
        if c.computed is None and (c.name in job.c or c.default is not None)
    }
    return frozenset(
        given | _of_children(job, archived, children).keys() | {"status", "finished_at"}
    )


def _of_children(
    job: Table, archived: Table, children: Sequence[Table]
) -> dict[str, list[Column[Any]]]:
    """Return the archive's columns that only child tables have, by name."""
    return {
        c.name: found
        for c in archived.c
        if c.name not in job.c
        and c.computed is None
        and (found := [t.c[c.name] for t in children if c.name in t.c])
    }


def joined_children(
    source: FromClause, job_id: Any, job: Table, archived: Table, children: Sequence[Table]
) -> tuple[FromClause, dict[str, ColumnElement[Any]]]:
    """Join the child tables that have columns of the archive; return the join and those columns.

    :param job_id: the column of ``source`` that is the job's id.
    """
    columns = _of_children(job, archived, children)
    for child in dict.fromkeys(c.table for found in columns.values() for c in found):
        source = source.outerjoin(child, key_of(child) == job_id)
    # The extra NULL is for SQLite, whose coalesce() takes at least two arguments.
    return source, {name: func.coalesce(*found, null()) for name, found in columns.items()}


def carried_values(
    job: Table, archived: Table, changed: dict[str, ColumnElement[Any]]
) -> dict[str, ColumnElement[Any]]:
    """Return the values that a job's row takes to the archive, by column.

    :param changed: values that replace those of the row.
    """
    carried: dict[str, ColumnElement[Any]] = {
        c.name: c for c in job.c if c.name in archived.c and archived.c[c.name].computed is None
    }
    carried |= changed
    # An empty text stands for "keep no error".
    carried["error"] = func.nullif(carried["error"], "")
    return carried


def own_defaults(archived: Table, carried: Iterable[str]) -> dict[str, ColumnElement[Any]]:
    """Return the defaults of the archive's columns that no job's row fills, by name."""
    return {
        c.name: _default(c)
        for c in archived.c
        if c.default is not None and c.name not in (*carried, "finished_at")
    }


def _default(of: Column[Any]) -> ColumnElement[Any]:
    default: Any = of.default
    if default.is_callable:
        return bindparam(f"default_{of.name}", callable_=lambda: default.arg(None), type_=of.type)
    if default.is_scalar:
        return literal(default.arg, of.type)
    expression: ColumnElement[Any] = (
        default.arg if default.is_clause_element else default.next_value()
    )
    return expression
