"""Retrying archived jobs: each is enqueued again as a new job, and its archived row stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, select
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, require_aware, utcnow, uuid7
from ..database.dialects import database_of
from ..models.defaults import ArchivedJob, Job
from ..models.job_classes import bind_arguments, class_of, job_table
from ..models.mixins import ArchivedJobMixin, JobMixin
from ..models.requirements import TableUse, explained
from ..producer.facts import facts_of
from ..producer.sessions import immediate_session
from ..producer.values import due_time
from ..store.locking import lock_archived
from ..wakeup.announce import announce, suppress_announcement

_BATCH: Final = 500
"""How many jobs are read, locked and inserted at a time."""

_NEW: Final = frozenset(
    {"job_id", "attempts", "enqueued_at", "process_at", "error", "deaths"}
    | {"lease_id", "ended_as", "ended_at", "refusal", "waits_for", "due_at"}
)
"""The columns whose values are not those of the archived job."""


def retry(
    session: Session | scoped_session[Any],
    archived: Any,
    *,
    process_at: datetime | None = None,
    process_in: timedelta | None = None,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    uuid_fn: Callable[[], Any] = uuid7,
    clock: Clock = utcnow,
    notify: bool = True,
) -> Any:
    """Enqueue an archived job again, in the session's transaction; the caller commits.

    The new job has a new id and no attempts. It has the queue, type, priority, unique key and
    payload of the archived job (the stored text, which is not encoded again), and the values of all
    other columns that both models have. The archived row stays, and its ``retried_at`` is set: so
    of several calls for one row, only one enqueues a job.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.retry``. Pending objects are flushed first, unless its
        ``autoflush`` is off.
    :param archived: the archived job: an object of ``archived_job_model``, or its id.
    :param process_at: when the job is due, an aware datetime; by default now. A time in the past
        means now.
    :param process_in: the time until the job is due, if ``process_at`` is not given.
    :param job_model: the mapped class of the job table.
    :param archived_job_model: the mapped class of its archive.
    :param uuid_fn: makes the new id, if ids are UUIDs; :func:`.uuid7` by default.
    :param clock: returns the time as an aware datetime.
    :param notify: whether the commit wakes workers; True by default.
    :return: the id of the new job. None if nothing was enqueued, because the archive has no such
        row, the row was retried before or another transaction has locked it, or its unique key is
        taken.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession, or an argument is of the wrong type.
    :raises ValueError: if a time is naive or out of range.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "retry", arguments="archived")
    job_id = archived
    if isinstance(archived, ArchivedJobMixin):
        if not isinstance(archived, archived_job_model):
            msg = (
                f"{archived!r} is no {archived_job_model.__qualname__}: pass the models of its "
                f"tables as archived_job_model= and job_model="
            )
            raise TypeError(msg)
        job_id = archived.job_id
    retrying = _Retrying(
        unit, job_model, archived_job_model, uuid_fn, clock, process_at, process_in, notify
    )
    with retrying.explained():
        ids = retrying.retry([job_id], ())
    if isinstance(archived, ArchivedJobMixin) and archived in unit:
        unit.expire(archived, ["retried_at"])
    return ids[0] if ids else None


def retry_where(
    session: Session | scoped_session[Any],
    *criteria: ColumnElement[bool],
    limit: int | None = None,
    process_at: datetime | None = None,
    process_in: timedelta | None = None,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    uuid_fn: Callable[[], Any] = uuid7,
    clock: Clock = utcnow,
    notify: bool = True,
) -> int:
    """Enqueue all archived jobs again that meet the criteria, in the session's transaction.

    ::

        manage.retry_where(
            session, ArchivedJob.status == "failure", ArchivedJob.finished_at > yesterday
        )

    Each is enqueued as :func:`retry` does. Jobs that were retried before are left out, and so are
    jobs whose row another transaction has locked, or whose unique key is taken.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.retry_where``.
    :param criteria: conditions on ``archived_job_model``; at least one.
    :param limit: the maximum number of archived jobs, those that finished first; None by default,
        for no limit.
    :param process_at: when the jobs are due, an aware datetime; by default now. A time in the past
        means now.
    :param process_in: the time until the jobs are due, if ``process_at`` is not given.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param archived_job_model: the mapped class of its archive; :class:`.ArchivedJob` by default.
    :param uuid_fn: makes the new ids, if ids are UUIDs; :func:`.uuid7` by default.
    :param clock: returns the time as an aware datetime; :func:`.utcnow` by default.
    :param notify: whether the commit wakes workers; True by default.
    :return: the number of jobs that were enqueued.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if no criterion is given, ``session`` is an AsyncSession, or an argument is
        of the wrong type.
    :raises ValueError: if a time is naive or out of range.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "retry_where", arguments="*criteria")
    if not criteria:
        msg = (
            "retry_where needs a criterion, such as ArchivedJob.status == 'failure': without one, "
            "it would enqueue every job of the archive again"
        )
        raise TypeError(msg)
    retrying = _Retrying(
        unit, job_model, archived_job_model, uuid_fn, clock, process_at, process_in, notify
    )
    model = archived_job_model
    found = select(model.job_id).where(model.retried_at.is_(None), *criteria)
    if limit is not None:
        found = found.order_by(model.finished_at, model.job_id).limit(limit)
    with retrying.explained():
        ids = unit.scalars(found, bind_arguments=bind_arguments(model)).all()
        parts = (ids[n : n + _BATCH] for n in range(0, len(ids), _BATCH))
        return sum(len(retrying.retry(part, criteria)) for part in parts)


@dataclass
class _Retrying:
    """What one call retries, and how."""

    session: Session
    job_model: type[JobMixin]
    archived_job_model: type[ArchivedJobMixin]
    uuid_fn: Callable[[], Any]
    clock: Clock
    process_at: datetime | None
    process_in: timedelta | None
    notify: bool

    def __post_init__(self) -> None:
        self.now = require_aware("clock()", self.clock())
        self.due = due_time(self.now, self.process_at, self.process_in)
        self.with_id = facts_of(self.job_model).has_uuid
        if self.session.autoflush:
            self.session.flush()

    def explained(self) -> Any:
        """Return a context manager that explains the database's errors."""
        archived = sa_inspect(self.archived_job_model).local_table
        uses = (
            TableUse(job_table(self.job_model), ("SELECT", "INSERT")),
            TableUse(archived, ("SELECT", "UPDATE")),
        )
        return explained(self.session.get_bind(**bind_arguments(self.archived_job_model)), *uses)

    def retry(self, ids: Sequence[Any], criteria: Sequence[ColumnElement[bool]]) -> list[Any]:
        """Enqueue archived jobs again, and return the ids of the new jobs."""
        connection = self.session.connection(bind_arguments=bind_arguments(self.archived_job_model))
        database = database_of(connection.dialect)
        if (
            not database.locks
        ):  # SQLite rejects the first write after a read, if others have written
            database.begun(connection)
        # The objects must not appear in the caller's session, whose own may have other values.
        with Session(connection, join_transaction_mode="rollback_only", autoflush=False) as joined:
            rows = lock_archived(joined, self.archived_job_model, ids, criteria)
            for row in rows:
                row.retried_at = self.now
            joined.flush()
            jobs = [self._job(row) for row in rows if row.unique_key is None]
            joined.add_all(jobs)
            joined.flush()
            for row in rows:
                if row.unique_key is not None:
                    job = self._job(row)
                    if self._is_inserted(joined, job):
                        jobs.append(job)
                    else:
                        row.retried_at = None
            joined.flush()
            new, queues = [job.job_id for job in jobs], {job.queue for job in jobs}
            joined.expunge_all()
        if self.notify:
            for queue in sorted(queues):
                announce(self.session, self.job_model, queue)
        return new

    def _is_inserted(self, joined: Session, job: Any) -> bool:
        """Insert a job with a unique key; return False if the key is taken."""
        queue, key, model = job.queue, job.unique_key, self.job_model
        try:
            with joined.begin_nested():
                joined.add(job)
                joined.flush()
        except IntegrityError:
            same = select(model.job_id).where(model.queue == queue, model.unique_key == key)
            if joined.execute(same).first() is None:  # it was another constraint
                raise
            return False
        return True

    def _job(self, row: Any) -> Any:
        """Return a new job with the values of an archived one."""
        mapper = sa_inspect(class_of(self.job_model, row.job_type))
        # Not through the constructor, which may have parameters that no column stores.
        job = mapper.class_manager.new_instance()
        for name, value in _carried(mapper, row):
            setattr(job, name, value)
        if self.with_id:
            job.job_id = self.uuid_fn()
        job.attempts, job.deaths = 0, 0
        job.enqueued_at, job.process_at = self.now, self.due
        if not self.notify:
            suppress_announcement(job)
        return job


def _carried(mapper: Any, row: Any) -> Iterable[tuple[str, Any]]:
    """Yield the attributes and values that a job takes from an archived one."""
    there = sa_inspect(type(row))
    keys = {column.name: there.get_property_by_column(column).key for column in there.columns}
    for attribute in mapper.column_attrs:
        column = attribute.columns[0]
        skipped = column.name in _NEW or column is mapper.version_id_col
        if skipped or column.name not in keys or getattr(column, "computed", None) is not None:
            continue
        value = getattr(row, keys[column.name])
        if value is not None:
            yield attribute.key, value
