"""Statistics of queues and job types, from a bounded number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import Table
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, scoped_session

from ..arguments import at_least_one
from ..clock import Clock, as_timedelta, require_aware, utcnow
from ..database.dialects import Database, database_of
from ..models.defaults import ArchivedJob, Job
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import ArchivedJobMixin, JobMixin, RunningJobMixin
from ..models.requirements import TableUse, explained
from ..models.values import Status
from ..producer.sessions import immediate_session
from ..store import statistics
from ..store.markers import open_marker_table
from .running import marker_table

MAX_ROWS: Final = 10_000
"""How many rows of each queue, and how many rows of the archive, are read by default."""

_QUEUES: Final = 100
"""How many queues one statement counts. SQLite allows 500."""


@dataclass(frozen=True)
class JobCounts:
    """The numbers of a queue, or of a job type in a queue; see :func:`stats`.

    .. versionadded:: 0.1
    """

    queue: str
    """The name of the queue."""
    job_type: str | None
    """None for all types of the queue."""
    due: int = 0
    """Jobs that wait for a worker."""
    running: int = 0
    """Jobs that workers have."""
    scheduled: int = 0
    """Jobs that are not due yet, and have not run before."""
    retrying: int = 0
    """Jobs that are not due yet, and have failed before."""
    waiting: int = 0
    """Jobs that are due and wait for a limit of their type."""
    refused: int = 0
    """Jobs that have ended, and whose row the archive rejects."""
    oldest_due: timedelta | None = None
    """For how long the first of the due jobs has been due; None if none is due."""
    succeeded: int = 0
    """Jobs that succeeded in the last minutes."""
    failed: int = 0
    """Jobs that failed in the last minutes: no retry was left."""
    cancelled: int = 0
    """Jobs that were cancelled in the last minutes."""
    throughput: float = 0.0
    """Jobs per second that ended in the last minutes, whatever their status."""


@dataclass(frozen=True)
class Stats:
    """The result of :func:`stats`.

    .. versionadded:: 0.1
    """

    at: datetime
    """The time of the statistics."""
    since: datetime
    """Ended jobs are counted from this time on."""
    job_types: Sequence[JobCounts]
    """The numbers of each job type in each queue, ordered by queue and type."""
    queues: Mapping[str, JobCounts] = field(default_factory=dict)
    """The numbers of each queue."""
    incomplete: frozenset[str] = frozenset()
    """Queues with more jobs than were read: there are at least as many as the numbers say."""


def stats(
    session: Session | scoped_session[Any],
    *,
    window: timedelta = timedelta(minutes=5),
    max_rows: int = MAX_ROWS,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    running_job_model: type[RunningJobMixin] | Literal["default"] | None = "default",
    clock: Clock = utcnow,
) -> Stats:
    """Return the numbers of each queue and job type that has jobs, or has had some recently.

    The statements read a bounded number of rows by the indexes, so they take some milliseconds
    however many jobs are queued or archived. Numbers are exact up to ``max_rows``.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.stats``.
    :param window: how far back ended jobs are counted; 5 minutes by default. If more than
        ``max_rows`` jobs have ended in it, only the last ones are counted, and the result's
        ``since`` is later.
    :param max_rows: how many jobs of each queue, and of the archive, are read; 10,000 by default.
        Of a queue with more, the most urgent ones are counted, and the result's ``incomplete`` has
        its name.
    :param job_model: the mapped class of the job table.
    :param archived_job_model: the mapped class of its archive.
    :param running_job_model: as for :func:`.running`. With None, and where there are no markers,
        jobs that run in transaction mode count as due.
    :param clock: returns the time as an aware datetime.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession, or an argument is of the wrong type.
    :raises ValueError: if ``window`` is not positive, or ``max_rows`` is less than 1.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "stats", arguments="")
    at_least_one("max_rows", max_rows)
    now = require_aware("clock()", clock())
    since = now - as_timedelta("window", window, zero=False)
    engine = unit.get_bind(**bind_arguments(job_model))
    database = database_of(engine.dialect)
    job, archived = job_table(job_model), sa_inspect(archived_job_model).local_table
    running = marker_table(unit, job_model, running_job_model)
    tables = [table for table in (job, archived, running) if table is not None]
    counting = _Counting(unit, bind_arguments(job_model), now)
    with explained(engine, *(TableUse(table, ("SELECT",)) for table in tables)):
        incomplete = counting.queued(job, running, database, max_rows)
        since = counting.finished(archived, since, max_rows)
    seconds = max((now - since).total_seconds(), 1e-6)
    job_types = [
        JobCounts(*key, **numbers, throughput=_ended(numbers) / seconds)
        for key, numbers in sorted(counting.numbers.items())
    ]
    return Stats(now, since, job_types, _by_queue(job_types), incomplete)


def queued_jobs(
    session: Session,
    job: Table,
    running: Table | None,
    database: Database,
    now: datetime,
    *,
    most_queues: int,
) -> Sequence[JobCounts]:
    """Return the numbers of the queued jobs of each queue, up to :data:`MAX_ROWS` of each.

    :param most_queues: how many queues are counted.
    """
    counting = _Counting(session, {}, now)
    counting.queued(job, running, database, MAX_ROWS, most_queues)
    job_types = [JobCounts(*key, **numbers) for key, numbers in sorted(counting.numbers.items())]
    return list(_by_queue(job_types).values())


class _Counting:
    """Collects the numbers of each queue and job type."""

    def __init__(self, session: Session, bind: dict[str, Any], now: datetime) -> None:
        self.numbers: dict[tuple[str, str], dict[str, Any]] = {}
        self._session = session
        self._bind = bind
        self._now = now

    def queued(
        self,
        job: Table,
        running: Table | None,
        database: Database,
        most: int,
        most_queues: int | None = None,
    ) -> frozenset[str]:
        """Count the queued jobs; return the queues that have more jobs than were read."""
        workers: Sequence[str] = []
        if running is not None:
            alive = open_marker_table(database, running).alive_workers()
            workers = self._session.scalars(alive, bind_arguments=self._bind).all()
            for row in self._execute(statistics.marked(job, running), workers):
                self._add(row, "running")
        names = statistics.queue_names(job).limit(most_queues)
        queues = self._session.scalars(names, bind_arguments=self._bind).all()
        read: dict[str, int] = {}
        for n in range(0, len(queues), _QUEUES):
            some = queues[n : n + _QUEUES]
            statement = statistics.queued(job, running, some, most, self._now)
            for row in self._execute(statement, None if running is None else workers):
                read[row.queue] = read.get(row.queue, 0) + row.jobs
                self._add_queued(row)
        return frozenset(queue for queue, jobs in read.items() if jobs >= most)

    def _add_queued(self, row: Any) -> None:
        if row.state == statistics.MARKED:  # counted by its marker
            return
        self._add(row, "running" if row.state == statistics.LEASED else row.state)
        if row.state == statistics.DUE:
            numbers = self.numbers[row.queue, row.job_type]
            numbers["oldest_due"] = max(self._now - row.first, timedelta(0))

    def finished(self, archived: Table, since: datetime, most: int) -> datetime:
        """Count the jobs that ended since a time; return the time since which they were read."""
        names = {
            Status.SUCCESS.value: "succeeded",
            Status.FAILURE.value: "failed",
            Status.CANCELLED.value: "cancelled",
        }
        rows = self._execute(statistics.finished(archived, since, most), None)
        for row in rows:
            if row.status in names:
                self._add(row, names[row.status])
        complete = sum(row.jobs for row in rows) < most
        return since if complete else min(row.first for row in rows)

    def _execute(self, statement: Any, workers: Sequence[str] | None) -> Sequence[Any]:
        values = {} if workers is None else {"workers": workers}
        return self._session.execute(statement, values, bind_arguments=self._bind).all()

    def _add(self, row: Any, name: str) -> None:
        numbers = self.numbers.setdefault((row.queue, row.job_type), {})
        numbers[name] = numbers.get(name, 0) + row.jobs


def _ended(numbers: Mapping[str, Any]) -> int:
    ended: int = sum(numbers.get(name, 0) for name in ("succeeded", "failed", "cancelled"))
    return ended


def _by_queue(job_types: Iterable[JobCounts]) -> dict[str, JobCounts]:
    queues: dict[str, list[JobCounts]] = {}
    for counts in job_types:
        queues.setdefault(counts.queue, []).append(counts)
    summed = (
        "due",
        "running",
        "scheduled",
        "retrying",
        "waiting",
        "refused",
        "succeeded",
        "failed",
        "cancelled",
        "throughput",
    )
    return {
        queue: JobCounts(
            queue,
            None,
            oldest_due=max((c.oldest_due for c in found if c.oldest_due is not None), default=None),
            **{name: sum(getattr(counts, name) for counts in found) for name in summed},
        )
        for queue, found in queues.items()
    }
