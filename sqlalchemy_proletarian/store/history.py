"""The SQL on what has ended: counts over time, and the failures of the last days.

Each statement reads a bounded number of rows, by the index on the time when jobs ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import ColumnElement, CompoundSelect, Select, Table, case, func, literal, select
from sqlalchemy import union_all as union

from ..models.values import Status

_TAIL: Final = 500
"""How many characters of an error are read, from its end."""


def ended_by_time(
    archived: Table, times: Sequence[datetime], queue: str | None, most: int
) -> CompoundSelect[*tuple[Any, ...]]:
    """Count the jobs that ended between each two times, by status.

    The columns are the number of the interval, from 0, ``status`` and ``jobs``.

    :param queue: only jobs of this queue; None for all.
    :param most: how many jobs of an interval are read.
    """
    arms = []
    for n, (begin, end) in enumerate(pairwise(times)):
        at = archived.c.finished_at
        some = (
            select(archived.c.status, archived.c.queue)
            .where(at >= begin, at < end)
            .limit(most)
            .subquery(f"interval_{n}")
        )
        counts = select(literal(n).label("n"), some.c.status, func.count().label("jobs"))
        if queue is not None:
            counts = counts.where(some.c.queue == queue)
        arms.append(counts.group_by(some.c.status))
    return union(*arms)


def last_failures(
    archived: Table, since: datetime, most: int, window: int
) -> Select[*tuple[Any, ...]]:
    """Return the failures since a time that were not retried, the last one first.

    The columns are ``job_id``, ``queue``, ``job_type``, ``finished_at``, and ``error``, the end of
    the error.

    :param most: how many failures are returned.
    :param window: among how many of the last failures, with those that were retried.
    """
    columns = [archived.c[name] for name in ("job_id", "queue", "job_type", "finished_at")]
    failed = (
        select(*columns, archived.c.retried_at, archived.c.error)
        .where(is_failure(archived), archived.c.finished_at > since)
        .order_by(archived.c.finished_at.desc())
        .limit(window)
        .subquery("failed")
    )
    names = [failed.c[column.name] for column in columns]
    return (
        select(*names, _end_of(failed.c.error).label("error"))
        .where(failed.c.retried_at.is_(None))
        .order_by(failed.c.finished_at.desc())
        .limit(most)
    )


def failed_by_queue(archived: Table, since: datetime, most: int) -> Select[*tuple[Any, ...]]:
    """Count the failures since a time by queue.

    :param most: how many failures are read.
    """
    failed = (
        select(archived.c.queue)
        .where(is_failure(archived), archived.c.finished_at > since)
        .limit(most)
        .subquery("failed")
    )
    return select(failed.c.queue, func.count().label("jobs")).group_by(failed.c.queue)


def is_failure(archived: Table) -> ColumnElement[bool]:
    """Return the condition of the index of failures, as it is written there."""
    status = literal(Status.FAILURE.value, archived.c.status.type, literal_execute=True)
    condition: ColumnElement[bool] = archived.c.status == status
    return condition


def _end_of(text: ColumnElement[Any]) -> ColumnElement[Any]:
    length = func.char_length(text)
    return case((length > _TAIL, func.substr(text, length - _TAIL + 1)), else_=text)
