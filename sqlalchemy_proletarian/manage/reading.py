"""Reading what :mod:`.browse` returns from the tables of a pair of models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Row, Table, Text, cast, or_, select
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session

from ..database.dialects import database_of
from ..models.defaults import ArchivedJob, Job
from ..models.job_classes import bind_arguments, class_of, job_table
from ..models.mixins import ArchivedJobMixin, JobMixin
from ..models.requirements import TableUse, explained
from ..models.values import Status
from ..store import statistics
from ..store.browsing import Listing
from ..store.history import is_failure
from ..store.markers import open_marker_table
from .history import last_line
from .job_views import JobDetails, JobState, ListedJob
from .running import Running, RunningModel, marker_table, running

_ABOUT: Final = (
    "job_id",
    "queue",
    "job_type",
    "attempts",
    "priority",
    "enqueued_at",
    "process_at",
    "unique_key",
)
_OF_QUEUED: Final = "lease_id", "waits_for", "ended_as", "ended_at"
_OF_ARCHIVED: Final = "status", "finished_at", "retried_at"
_OWN: Final = frozenset({*sa_inspect(Job).columns.keys(), *sa_inspect(ArchivedJob).columns.keys()})
"""The library's columns."""
_CHUNK: Final = 500
"""How many ids one statement has."""

_STATES: Final = {statistics.MARKED: JobState.RUNNING, statistics.LEASED: JobState.RUNNING}
"""The states that the statistics distinguish."""


class Wanted(NamedTuple):
    """The filters of a list; None for no filter."""

    statuses: Sequence[str] | None
    queue: str | None
    job_type: str | None
    since: datetime | None
    until: datetime | None
    text: str | None = None

    @property
    def columns(self) -> Sequence[str]:
        """The columns that only a filter needs."""
        return () if self.text is None else ("payload", "error")


class JobReading:
    """Reads the tables of one pair of models in a session.

    :param now: the time of the states.
    """

    def __init__(
        self,
        session: Session,
        job_model: type[JobMixin],
        archived_job_model: type[ArchivedJobMixin],
        running_job_model: RunningModel,
        now: datetime,
    ) -> None:
        self._session = session
        self._job_model = job_model
        self._running_job_model = running_job_model
        self._now = now
        self._bind = bind_arguments(job_model)
        self._engine = session.get_bind(**self._bind)
        database = database_of(self._engine.dialect)
        self._job: Table = job_table(job_model)
        self._archived: Table = sa_inspect(archived_job_model).local_table
        self._running = marker_table(session, job_model, running_job_model)
        self._markers = (
            None if self._running is None else open_marker_table(database, self._running)
        )

    def explained(self) -> Any:
        """Return a context manager that explains the database's errors."""
        tables = [self._job, self._archived, self._running]
        uses = [TableUse(table, ("SELECT",)) for table in tables if table is not None]
        return explained(self._engine, *uses)

    def queues(self, wanted: Wanted) -> Listing:
        """Return the list of queued jobs, in the order of the index that claims use."""
        job = self._job.c
        within: list[ColumnElement[bool]] = []
        order = [job.queue, job.priority, job.process_at, job.job_id]
        if wanted.queue is not None:
            within.append(job.queue == wanted.queue)
            order = order[1:]  # PostgreSQL would sort by a column that it knows to be the same
        if wanted.statuses is not None and set(wanted.statuses) == {JobState.RUNNING}:
            if self._running is not None:
                within.append(job.job_id.in_(statistics.marked_ids(self._running)))
            else:
                within.append(job.lease_id.is_not(None))
        return Listing(
            [job[name] for name in (*_ABOUT, *_OF_QUEUED, *wanted.columns)],
            order,
            within=within,
        )

    def archive(self, wanted: Wanted) -> Listing:
        """Return the list of archived jobs, the last one first."""
        archived = self._archived.c
        within: list[ColumnElement[bool]] = []
        if wanted.statuses is not None and set(wanted.statuses) == {Status.FAILURE}:
            within.append(is_failure(self._archived))
        if wanted.since is not None:
            within.append(archived.finished_at >= wanted.since)
        if wanted.until is not None:
            within.append(archived.finished_at <= wanted.until)
        return Listing(
            [archived[name] for name in (*_ABOUT, *_OF_ARCHIVED, *wanted.columns)],
            [archived.finished_at, archived.job_id],
            descending=True,
            within=within,
        )

    def page(
        self,
        listing: Listing,
        wanted: Wanted,
        after: Sequence[Any] | None,
        limit: int,
        most: int,
        *,
        archived: bool,
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """Read a page of a list."""

        def where(rows: Any) -> list[ColumnElement[bool]]:
            conditions: list[ColumnElement[bool]] = []
            if wanted.statuses is not None:
                states = [name for name, state in _STATES.items() if state in wanted.statuses]
                conditions.append(status(rows).in_([*wanted.statuses, *states]))
            if wanted.job_type is not None:
                conditions.append(rows.c.job_type == wanted.job_type)
            if archived and wanted.queue is not None:
                conditions.append(rows.c.queue == wanted.queue)
            if wanted.text is not None:
                texts = cast(rows.c.payload, Text), rows.c.error
                conditions.append(or_(*(t.icontains(wanted.text, autoescape=True) for t in texts)))
            if not archived and wanted.since is not None:
                conditions.append(rows.c.enqueued_at >= wanted.since)
            if not archived and wanted.until is not None:
                conditions.append(rows.c.enqueued_at <= wanted.until)
            return conditions

        def status(rows: Any) -> ColumnElement[str]:
            if archived:
                found: ColumnElement[str] = rows.c.status
                return found
            return statistics.state_of(rows, self._running, self._now)

        return self._execute(listing.page(after, limit, most, where, status))

    def end(
        self, listing: Listing, after: Sequence[Any] | None, most: int
    ) -> Row[*tuple[Any, ...]] | None:
        """Return the last row of a window; None if the list ends in the window."""
        return next(iter(self._execute(listing.end(after, most))), None)

    def listed(self, rows: Sequence[Row[*tuple[Any, ...]]], *, archived: bool) -> list[ListedJob]:
        """Return the rows of a page, with the last lines of their errors."""
        table = self._archived if archived else self._job
        errors: dict[Any, str] = {}
        for n in range(0, len(rows), _CHUNK):
            ids = [row.job_id for row in rows[n : n + _CHUNK]]
            statement = select(table.c.job_id, table.c.error).where(
                table.c.job_id.in_(ids), table.c.error.is_not(None)
            )
            errors.update((row.job_id, row.error) for row in self._execute(statement))
        return [_listed(row, errors.get(row.job_id), archived=archived) for row in rows]

    def details(self, model: type[Any], job_id: Any, *, archived: bool) -> JobDetails | None:
        """Return all about a job of a table; None if the table does not have it."""
        columns = _OF_ARCHIVED if archived else _OF_QUEUED
        table = self._archived if archived else self._job
        listing = Listing(
            [table.c[name] for name in (*_ABOUT, *columns)],
            [table.c.job_id],
            within=[table.c.job_id == job_id],
        )
        rows = self.page(
            listing, Wanted(None, None, None, None, None), None, 1, 1, archived=archived
        )
        if not rows:
            return None
        mapper = sa_inspect(class_of(model, rows[0].job_type))
        values = {column.name: column for key, column in mapper.columns.items()}
        statement = select(*values.values()).select_from(mapper.persist_selectable)
        whole = self._execute(statement.where(table.c.job_id == job_id))
        if not whole:
            return None
        found = dict(zip(values, whole[0], strict=True))
        listed = _listed(rows[0], found["error"], archived=archived)
        return JobDetails(
            listed,
            found["payload"],
            found["error"],
            found["deaths"],
            found.get("refusal"),
            self._run_of(listed),
            found["headers"],
            found.get("waits_for"),
            found.get("result"),
            {name: value for name, value in found.items() if name not in _OWN},
        )

    def _run_of(self, job: ListedJob) -> Running | None:
        if job.status != JobState.RUNNING:
            return None
        options: dict[str, Any] = {
            "job_model": self._job_model,
            "running_job_model": self._running_job_model,
        }
        runs = running(self._session, **options)
        return next((run for run in runs if run.job_id == job.job_id), None)

    def _execute(self, statement: Any) -> Sequence[Row[*tuple[Any, ...]]]:
        parameters = {} if self._markers is None else {"workers": self._workers}
        return self._session.execute(statement, parameters, bind_arguments=self._bind).all()

    @cached_property
    def _workers(self) -> Sequence[str]:
        """The workers that are alive; only for a job table that has markers."""
        alive = None if self._markers is None else self._markers.alive_workers()
        return (
            [] if alive is None else self._session.scalars(alive, bind_arguments=self._bind).all()
        )


def _listed(row: Any, error: str | None, *, archived: bool) -> ListedJob:
    values = {name: row._mapping[name] for name in _ABOUT}
    status = row.status if archived else str(_STATES.get(row.status, row.status))
    return ListedJob(
        **values,
        status=status,
        finished_at=row.finished_at if archived else row.ended_at,
        retried_at=row.retried_at if archived else None,
        error=last_line(error) or None,
    )
