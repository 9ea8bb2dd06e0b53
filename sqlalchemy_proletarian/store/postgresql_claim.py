"""The SELECT statements with which PostgreSQL claims jobs and looks for the next due job.

A lane is a queue and a priority. The claim index is (queue, priority, process_at), so each lane is
one index probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    DateTime,
    FromClause,
    Integer,
    ScalarSelect,
    Select,
    SmallInteger,
    Subquery,
    Table,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import TableValuedAlias

from ..database.arrays import array, arrays
from ..models.mixins import JobMixin
from ..models.values import PRIORITIES
from .conditions import MAX_ATTEMPTS, claimed_columns, is_marked
from .statement_cache import built_once

NOW: BindParameter[Any] = bindparam("now", type_=DateTime(timezone=True))
SHARED: BindParameter[Any] = bindparam("shared", type_=DateTime(timezone=True))

_LaneTable: TypeAlias = TableValuedAlias | Subquery

# Rows written by hand may hold times that Python's datetime cannot represent.
EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""What is returned for earlier times."""
_EARLIEST = literal(EARLIEST, DateTime(timezone=True))
_LATEST = literal(datetime(9000, 1, 1, tzinfo=UTC), DateTime(timezone=True))
_MINUS_INFINITY = literal_column("'-infinity'::timestamptz", DateTime(timezone=True))


@built_once
def claim(
    model: type[JobMixin],
    running: Table | None,
    *,
    leased: bool,
    filtered: bool = False,
    detailed: bool = False,
    many: bool = False,
) -> Select[*tuple[Any, ...]]:
    """Lock due rows, the most urgent first.

    Parameters: those of the lanes, ``now`` and ``limit``; with ``leased`` also ``shared``, the time
    by which an earlier lease must have expired; with ``filtered`` also ``known``, the types to
    claim.

    The lanes are in ``queues``, ``priorities`` and ``since``, the due time at which to start in
    each lane (None: at its beginning). With ``many``, ``queues`` has each queue once, and the lanes
    are those that have rows; where to start is in ``since_queues``, ``since_priorities`` and
    ``since``, for the lanes for which that is known.

    The columns are the fields of :class:`.ClaimedJob`, in order. ``process_at`` is among them with
    ``leased``, because the lease overwrites it. With ``detailed``, the columns are all fields, up
    to ``queue``.

    The lateral join probes one lane after the other, and the outer LIMIT stops it: rows of later
    lanes are neither read nor locked. A plain ORDER BY priority, process_at would sort the whole
    backlog, including the jobs that are scheduled for the future.
    """
    lanes = _lanes(model, many=many)
    limit: BindParameter[int] = bindparam("limit", type_=Integer)
    was_leased = model.lease_id.is_not(None)
    read = claimed_columns(model)
    process_at = func.greatest(model.process_at, _EARLIEST).label("process_at")
    times = [process_at] if leased or detailed else []
    not_leased = or_(not_(was_leased), model.process_at <= SHARED) if leased else true()
    due = (
        select(*read, *times)
        .where(
            *_claimable_in_lane(model, lanes, filtered=filtered),
            model.process_at <= NOW,
            not_leased,
            model.attempts < MAX_ATTEMPTS,
        )
        .order_by(model.process_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .lateral("due")
    )
    marked = is_marked(running, due.c.job_id).label("marked")
    claimed = select(
        *(due.c[label.name] for label in read), marked, *(due.c[time.name] for time in times)
    )
    if detailed:
        claimed = claimed.add_columns(null().label("lease_id"), lanes.c.queue)
    return claimed.select_from(lanes.join(due, true())).limit(limit)


@built_once
def first_due(
    model: type[JobMixin], *, filtered: bool, many: bool = False
) -> Select[*tuple[Any, ...]]:
    """Return the due time of the first job in each lane that may be claimed.

    The parameters are those of :func:`claim`, without ``limit``. The result is NULL for
    a lane without such a job, and :data:`EARLIEST` for one that is due since earlier. A job that
    another transaction has locked does not count: it may run for hours.
    """
    lanes = _lanes(model, many=many)
    first = (
        select(model.process_at)
        .where(*_claimable_in_lane(model, lanes, filtered=filtered), model.process_at <= NOW)
        .order_by(model.process_at)
        .limit(1)
        .with_for_update(read=True, key_share=True, skip_locked=True)
        .lateral("first")
    )
    at = func.greatest(first.c.process_at, _EARLIEST)
    return select(
        lanes.c.queue, lanes.c.priority, case((first.c.process_at.is_not(None), at))
    ).select_from(lanes.outerjoin(first, true()))


@built_once
def unknown_types(model: type[JobMixin], *, many: bool = False) -> Select[*tuple[Any, ...]]:
    """Count due jobs per type that is not in ``known``, up to ``most`` jobs.

    The parameters are ``most``, and those of :func:`claim` with ``filtered``, without ``limit``.
    """
    lanes = _lanes(model, many=many)
    most: BindParameter[int] = bindparam("most", type_=Integer)
    of_lane = (
        select(model.job_type)
        .where(*_in_lane(model, lanes), model.process_at <= NOW, not_(is_known(model)))
        .order_by(model.process_at)
        .limit(most)
        .lateral("of_lane")
    )
    some = (
        select(of_lane.c.job_type)
        .select_from(lanes.join(of_lane, true()))
        .limit(most)
        .subquery("some_jobs")
    )
    return select(some.c.job_type, func.count().label("jobs")).group_by(some.c.job_type)


@built_once
def next_due(
    model: type[JobMixin], *, filtered: bool = False, many: bool = False
) -> Select[*tuple[Any, ...]]:
    """Return whether due rows exist, and when the next row comes due.

    The parameters are those of :func:`claim`, without ``limit``.
    """
    lanes = _lanes(model, many=many)

    def first(name: str, conditions: Iterator[ColumnElement[bool]], condition: Any) -> Any:
        return (
            select(model.process_at)
            .where(*conditions, condition)
            .order_by(model.process_at)
            .limit(1)
            .lateral(name)
        )

    due = first("due", _claimable_in_lane(model, lanes, filtered=filtered), model.process_at <= NOW)
    soon = and_(model.process_at > NOW, model.process_at < _LATEST)
    # Jobs of any type: finding one of a known type could mean reading all the others.
    future = first("future", _in_lane(model, lanes), soon)
    first_future = func.min(future.c.process_at, type_=DateTime(timezone=True))
    return select(func.count(due.c.process_at) > 0, first_future).select_from(
        lanes.outerjoin(due, true()).outerjoin(future, true())
    )


def is_known(model: type[JobMixin]) -> ColumnElement[bool]:
    """Return the condition that a job's type is in ``known``."""
    return model.job_type == func.any(array("known", Text()))


def _lanes(model: type[JobMixin], *, many: bool) -> _LaneTable:
    """Return the lanes as a table, the most urgent first."""
    if many:
        return _lanes_with_rows(model)
    return arrays(
        "lane",
        queue=("queues", Text()),
        priority=("priorities", SmallInteger()),
        since=("since", DateTime(timezone=True)),
    )


def _lanes_with_rows(model: type[JobMixin]) -> Subquery:
    """Return the lanes that have rows, with one index probe for each of them and each queue.

    Of a thousand queues most are empty, and the others have one or two priorities: a probe for each
    of ten thousand lanes would take longer than all the rest of the claim.
    """
    queues = arrays("served", queue=("queues", Text()))
    # PostgreSQL has no index scan that skips to the next different value: this is one by hand.
    lowest = _next_priority(model, queues, PRIORITIES.start - 1)
    found = select(lowest.label("priority")).cte("found", recursive=True, nesting=True)
    higher = _next_priority(aliased(model), queues, found.c.priority, found)
    found = found.union_all(select(higher).where(found.c.priority.is_not(None)))
    priorities = select(found.c.priority).where(found.c.priority.is_not(None)).lateral("priorities")
    lanes = select(queues.c.queue, priorities.c.priority)
    starts = arrays(
        "start",
        queue=("since_queues", Text()),
        priority=("since_priorities", SmallInteger()),
        since=("since", DateTime(timezone=True)),
    )
    since = select(starts.c.since).where(
        starts.c.queue == queues.c.queue, starts.c.priority == priorities.c.priority
    )
    lanes = lanes.add_columns(since.scalar_subquery().label("since"))
    return lanes.select_from(queues.join(priorities, true())).subquery("lane")


def _next_priority(
    model: type[JobMixin], queues: TableValuedAlias, after: Any, *correlated: FromClause
) -> ScalarSelect[int]:
    """Return the lowest priority above another one that rows of the queue have, or NULL."""
    statement = (
        select(model.priority)
        .where(
            model.queue == queues.c.queue,
            model.priority > after,
            model.priority < PRIORITIES.stop,
        )
        .order_by(model.priority)
        .limit(1)
    )
    return statement.correlate(queues, *correlated).scalar_subquery()


def _in_lane(model: type[JobMixin], lanes: _LaneTable) -> Iterator[ColumnElement[bool]]:
    yield model.queue == lanes.c.queue
    yield model.priority == lanes.c.priority


def _claimable_in_lane(
    model: type[JobMixin], lanes: _LaneTable, *, filtered: bool
) -> Iterator[ColumnElement[bool]]:
    yield from _in_lane(model, lanes)
    # coalesce() instead of OR: the index can then start its scan at this time.
    yield model.process_at >= func.coalesce(lanes.c.since, _MINUS_INFINITY)
    if filtered:
        yield or_(is_known(model), model.ended_as.is_not(None))
