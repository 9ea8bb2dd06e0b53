"""What has ended: how many jobs over time, and which failures are alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, scoped_session

from ..arguments import at_least_one
from ..clock import Clock, as_timedelta, require_aware, utcnow
from ..models.defaults import ArchivedJob
from ..models.job_classes import bind_arguments
from ..models.mixins import ArchivedJobMixin
from ..models.requirements import TableUse, explained
from ..models.values import Status
from ..producer.sessions import immediate_session
from ..store.history import ended_by_time, last_failures

_MOST_INTERVALS: Final = 200
_PER_INTERVAL: Final = 2_000
_DIFFERENT: Final = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|[0-9]+", re.IGNORECASE
)
"""What differs between errors that are alike: ids, addresses and numbers."""


@dataclass(frozen=True)
class EndedJobs:
    """How many jobs ended in an interval; see :func:`history`.

    .. versionadded:: 0.1
    """

    begin: datetime
    """When the interval begins, an aware datetime."""
    end: datetime
    """When the interval ends."""
    succeeded: int = 0
    """How many jobs succeeded."""
    failed: int = 0
    """How many jobs failed."""
    cancelled: int = 0
    """How many jobs were cancelled."""
    complete: bool = True
    """False if more jobs ended than were counted."""


@dataclass(frozen=True)
class FailureGroup:
    """Failed jobs of one type whose errors are alike; see :func:`failures`.

    .. versionadded:: 0.1
    """

    job_type: str
    """The type of the jobs."""
    error: str
    """The last line of the last job's error."""
    queues: frozenset[str]
    """The queues of the jobs."""
    job_ids: Sequence[Any]
    """The ids of the archived jobs, the last one first."""
    first: datetime
    """When the first of them failed."""
    last: datetime
    """When the last of them failed."""


@dataclass(frozen=True)
class Failures:
    """The result of :func:`failures`.

    .. versionadded:: 0.1
    """

    groups: Sequence[FailureGroup]
    """The groups, the largest first."""
    since: datetime
    """The failures since this time were read."""


def history(
    session: Session | scoped_session[Any],
    *,
    window: timedelta = timedelta(hours=1),
    intervals: int = 60,
    queue: str | None = None,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> list[EndedJobs]:
    """Return how many jobs ended in each part of the last hour, or of another time.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.history``.
    :param window: how far back the intervals reach; 1 hour by default.
    :param intervals: how many intervals the time is divided into, at most 200; 60 by default. Of
        each interval, at most 2,000 jobs are counted.
    :param queue: only jobs of this queue; None, the default, for all.
    :param archived_job_model: the mapped class of the archive.
    :param clock: returns the time as an aware datetime.
    :return: the intervals, the first one first.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession, or an argument is of the wrong type.
    :raises ValueError: if ``window`` is not positive, or ``intervals`` is out of range.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "history", arguments="")
    if at_least_one("intervals", intervals) > _MOST_INTERVALS:
        msg = f"intervals must be at most {_MOST_INTERVALS}, not {intervals}"
        raise ValueError(msg)
    length = as_timedelta("window", window, zero=False) / intervals
    now = require_aware("clock()", clock())
    times = [now - length * (intervals - n) for n in range(intervals + 1)]
    archived = sa_inspect(archived_job_model).local_table
    bind = bind_arguments(archived_job_model)
    with explained(unit.get_bind(**bind), TableUse(archived, ("SELECT",))):
        statement = ended_by_time(archived, times, queue, _PER_INTERVAL)
        rows = unit.execute(statement, bind_arguments=bind).all()
    counts: list[dict[str, int]] = [{} for _ in range(intervals)]
    for n, status, jobs in rows:
        counts[n][status] = jobs
    return [
        EndedJobs(
            begin,
            end,
            count.get(Status.SUCCESS, 0),
            count.get(Status.FAILURE, 0),
            count.get(Status.CANCELLED, 0),
            complete=sum(count.values()) < _PER_INTERVAL,
        )
        for begin, end, count in zip(times, times[1:], counts, strict=False)
    ]


def failures(
    session: Session | scoped_session[Any],
    *,
    window: timedelta = timedelta(days=1),
    max_rows: int = 2_000,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> Failures:
    """Return the failures that were not retried, grouped by type and error.

    Errors are alike if their last lines differ only in numbers and ids.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.failures``.
    :param window: how far back; 1 day by default.
    :param max_rows: how many failures are read, those that failed last; 2,000 by default. If there
        are more, the result's ``since`` is later.
    :param archived_job_model: the mapped class of the archive.
    :param clock: returns the time as an aware datetime.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession, or an argument is of the wrong type.
    :raises ValueError: if ``window`` is not positive, or ``max_rows`` is less than 1.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "failures", arguments="")
    at_least_one("max_rows", max_rows)
    since = require_aware("clock()", clock()) - as_timedelta("window", window, zero=False)
    archived = sa_inspect(archived_job_model).local_table
    bind = bind_arguments(archived_job_model)
    with explained(unit.get_bind(**bind), TableUse(archived, ("SELECT",))):
        statement = last_failures(archived, since, max_rows, 10 * max_rows)
        rows = unit.execute(statement, bind_arguments=bind).all()
    if len(rows) >= max_rows:
        since = rows[-1].finished_at
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        alike = _DIFFERENT.sub("…", last_line(row.error))
        found.setdefault((row.job_type, alike), []).append(row)
    groups = [
        FailureGroup(
            job_type,
            last_line(group[0].error),
            frozenset(row.queue for row in group),
            [row.job_id for row in group],
            group[-1].finished_at,
            group[0].finished_at,
        )
        for (job_type, _), group in found.items()
    ]
    groups.sort(key=lambda group: len(group.job_ids), reverse=True)
    return Failures(groups, since)


def last_line(error: str | None) -> str:
    """Return the last line of an error; an empty text if there is none."""
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else ""
