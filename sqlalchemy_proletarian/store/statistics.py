"""The SQL of statistics: counts that read a bounded number of rows, however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    Table,
    and_,
    bindparam,
    case,
    false,
    func,
    literal,
    select,
    union_all,
)

from ..database.column_types import DateTimeUTC
from ..models.values import PRIORITIES, WAITING_AT

MARKED: Final = "marked"
LEASED: Final = "leased"
_WAITING_AT: Final = literal(WAITING_AT, DateTimeUTC)
REFUSED: Final = "refused"
DUE: Final = "due"
WAITING: Final = "waiting"
RETRYING: Final = "retrying"
SCHEDULED: Final = "scheduled"
_MOST_HELD: Final = 200
"""How many jobs of a priority are read to find one that no worker has."""


def queue_names(job: Table) -> Select[str]:
    """Return the queues that have jobs, with one probe of the claim index for each."""
    first = select(func.min(job.c.queue).label("queue")).cte("queues", recursive=True)
    after = select(func.min(job.c.queue)).where(job.c.queue > first.c.queue).scalar_subquery()
    names = first.union_all(select(after).where(first.c.queue.is_not(None)))
    return select(names.c.queue).where(names.c.queue.is_not(None))


def queued(
    job: Table, running: Table | None, queues: Sequence[str], most: int, now: datetime
) -> Select[*tuple[Any, ...]]:
    """Count the jobs of queues by queue, type and state, and return when the first one is due.

    :param running: the table of running markers, if workers use one; parameter ``workers`` is a
        list of those that are alive.
    :param most: how many jobs of each queue are read, in the order of the claim index.
    """
    columns = (
        job.c[name]
        for name in (
            "job_id",
            "queue",
            "job_type",
            "attempts",
            "process_at",
            "lease_id",
            "ended_as",
            "waits_for",
        )
    )
    wanted = select(*columns).order_by(job.c.priority, job.c.process_at).limit(most)
    arms = [
        select(wanted.where(job.c.queue == queue).subquery(f"queue_{n}"))
        for n, queue in enumerate(queues)
    ]
    rows = union_all(*arms).subquery("jobs")
    state = state_of(rows, running, now)
    stated = select(
        rows.c.queue, rows.c.job_type, rows.c.process_at, state.label("state")
    ).subquery("stated")
    key = stated.c.queue, stated.c.job_type, stated.c.state
    first = func.min(stated.c.process_at, type_=job.c.process_at.type)
    return select(*key, func.count().label("jobs"), first.label("first")).group_by(*key)


def oldest_due(
    job: Table, running: Table | None, queues: Sequence[str], now: datetime
) -> Select[datetime]:
    """Return when the first of the due jobs of queues came due.

    It reads the first jobs of each priority by the claim index, some of which workers may have.
    Parameter ``workers`` is as for :func:`queued`.
    """
    at = literal(now, DateTimeUTC)
    columns = job.c.job_id, job.c.process_at, job.c.ended_as
    arms = [
        select(
            select(*columns)
            .where(job.c.queue == queue, job.c.priority == priority, job.c.process_at <= at)
            .order_by(job.c.process_at)
            .limit(_MOST_HELD)
            .subquery(f"lane_{n}_{priority}")
        )
        for n, queue in enumerate(queues)
        for priority in range(PRIORITIES[0], PRIORITIES[-1] + 1)
    ]
    jobs = union_all(*arms).subquery("jobs")
    first = select(func.min(jobs.c.process_at, type_=job.c.process_at.type))
    first = first.where(jobs.c.ended_as.is_(None))
    if running is not None:
        first = first.where(jobs.c.job_id.not_in(marked_ids(running)))
    return first


def state_of(jobs: FromClause, running: Table | None, now: datetime) -> ColumnElement[str]:
    """Return the state of queued jobs, as an expression.

    :param jobs: has the columns that tell the state.
    :param running: the table of running markers, if workers use one; parameter ``workers`` is a
        list of those that are alive.
    """
    at = literal(now, DateTimeUTC)
    is_marked: ColumnElement[bool] = false()
    if running is not None:
        is_marked = jobs.c.job_id.in_(marked_ids(running))
    return case(
        (is_marked, MARKED),
        (and_(jobs.c.waits_for.is_not(None), jobs.c.process_at >= _WAITING_AT), WAITING),
        (and_(jobs.c.lease_id.is_not(None), jobs.c.process_at > at), LEASED),
        (jobs.c.ended_as.is_not(None), REFUSED),
        (jobs.c.process_at <= at, DUE),
        (jobs.c.attempts > 0, RETRYING),
        else_=SCHEDULED,
    )


def marked_ids(running: Table) -> Select[Any]:
    """Return the ids of the jobs with markers of ``workers``."""
    return select(running.c.job_id).where(_of_living(running))


def marked(job: Table, running: Table) -> Select[*tuple[Any, ...]]:
    """Count the jobs with markers of ``workers`` by queue and type."""
    key = job.c.queue, job.c.job_type
    return (
        select(*key, func.count().label("jobs"))
        .join(running, running.c.job_id == job.c.job_id)
        .where(_of_living(running))
        .group_by(*key)
    )


def finished(archived: Table, since: datetime, most: int) -> Select[*tuple[Any, ...]]:
    """Count the jobs that finished since a time, by queue, type and status.

    :param most: how many jobs are read, those that finished last.
    """
    at = archived.c.finished_at
    recent = (
        select(archived.c.queue, archived.c.job_type, archived.c.status, at)
        .where(at > since)
        .order_by(at.desc())
        .limit(most)
        .subquery("recent")
    )
    key = recent.c.queue, recent.c.job_type, recent.c.status
    first = func.min(recent.c.finished_at, type_=at.type)
    return select(*key, func.count().label("jobs"), first.label("first")).group_by(*key)


def running_jobs(job: Table, running: Table) -> Select[*tuple[Any, ...]]:
    """Return the jobs that have markers, with the values of the markers."""
    markers = (running.c[name] for name in ("worker", "started_at", "batch_size"))
    return (
        select(*_about(job), *markers)
        .join(running, running.c.job_id == job.c.job_id)
        .order_by(running.c.started_at, job.c.job_id)
    )


def leased_jobs(job: Table, now: datetime) -> Select[*tuple[Any, ...]]:
    """Return the jobs that are leased."""
    is_leased = and_(job.c.lease_id.is_not(None), job.c.process_at > now)
    return select(*_about(job)).where(is_leased).order_by(job.c.process_at, job.c.job_id)


def _about(job: Table) -> list[ColumnElement[Any]]:
    names = "job_id", "queue", "job_type", "attempts", "process_at", "lease_id"
    return [job.c[name] for name in names]


def _of_living(running: Table) -> ColumnElement[bool]:
    return running.c.worker.in_(bindparam("workers", expanding=True))
