"""What the overview shows: the queues, the problems, what runs, and the recurring jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import inspect as sa_inspect
from sqlalchemy import select
from sqlalchemy.orm import Session

from .. import manage
from ..clock import utcnow
from ..manage import EndedJobs, JobCounts, Running, Stats
from ..models.job_classes import bind_arguments
from ..store.history import failed_by_queue
from .options import JobTables
from .problems import Problem, find_problems

SPANS: Final = {"hour": (timedelta(hours=1), 60), "day": (timedelta(days=1), 96)}
"""The length of a chart, and how many intervals it has."""

_MOST_FAILURES: Final = 10_000
"""How many failures are counted."""

_MOST: Final = 500
"""How many rows of a table without a limit of its own are shown."""


@dataclass(frozen=True)
class Overview:
    """What the page shows."""

    now: datetime
    stats: Stats
    queues: Sequence[JobCounts]
    running: Sequence[Running]
    failed: Mapping[str, int]
    """How many jobs failed in the last hour, by queue."""
    paused: Mapping[str, Any]
    """The rows of paused queues, by queue."""
    recurring: Sequence[Any]
    history: Sequence[EndedJobs]
    problems: Sequence[Problem]


def read_overview(session: Session, tables: JobTables, chart: str) -> Overview:
    """Read what the overview shows.

    :param chart: a key of :data:`SPANS`.
    """
    now = utcnow()
    stats = manage.stats(session, **tables.of_jobs, running_job_model=tables.running_job_model)
    running = manage.running(session, **tables.of_running)
    paused = {row.queue: row for row in _rows(session, tables, tables.paused, "queue")}
    recurring = read_recurring(session, tables)
    archived = sa_inspect(tables.archived_job_model).local_table
    hour = failed_by_queue(archived, now - timedelta(hours=1), _MOST_FAILURES)
    bind = bind_arguments(tables.archived_job_model)
    failed = {row.queue: row.jobs for row in session.execute(hour, bind_arguments=bind)}
    window, intervals = SPANS[chart]
    history = manage.history(
        session,
        window=window,
        intervals=intervals,
        archived_job_model=tables.archived_job_model,
    )
    queues = [
        stats.queues.get(name, JobCounts(name, None))
        for name in sorted({*stats.queues, *paused, *failed})
    ]
    return Overview(
        now,
        stats,
        queues,
        running,
        failed,
        paused,
        recurring,
        history,
        find_problems(stats, running, paused, recurring, now),
    )


def read_recurring(session: Session, tables: JobTables) -> Sequence[Any]:
    """Return the rows of recurring jobs."""
    return _rows(session, tables, tables.recurring, "name")


def _rows(session: Session, tables: JobTables, model: Any, order: str) -> Sequence[Any]:
    if model is None:
        return []
    statement = select(model).order_by(getattr(model, order)).limit(_MOST)
    bind = bind_arguments(tables.job_model)
    return session.scalars(statement, bind_arguments=bind).all()
