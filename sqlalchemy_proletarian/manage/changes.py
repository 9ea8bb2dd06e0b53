"""Changing jobs that wait: when they run, or that they never do."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import Row, update
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, require_aware, utcnow
from ..database.dialects import database_of
from ..lifecycle.claimed import ClaimedJob
from ..lifecycle.outcomes import Failed, storable
from ..models.defaults import ArchivedJob, Job
from ..models.foreign_keys import require_foreign_keys
from ..models.job_classes import base_of, bind_arguments, job_table
from ..models.mixins import ArchivedJobMixin, JobMixin
from ..models.requirements import TableUse, explained
from ..producer.sessions import immediate_session
from ..producer.values import due_time
from ..store.locking import lock_job
from ..store.open import settling_store
from ..wakeup.announce import announce, announce_ends_on


def reschedule(
    session: Session | scoped_session[Any],
    job: Any,
    *,
    process_at: datetime | None = None,
    process_in: timedelta | None = None,
    job_model: type[JobMixin] = Job,
    clock: Clock = utcnow,
) -> Literal["rescheduled", "running"] | None:
    """Change when a waiting job is due, in the session's transaction; the caller commits.

    A job that waits for a retry keeps its attempts. A job that a worker is running, or has claimed
    and is about to run, does not change; the call does not wait for it.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.reschedule``. Pending objects are flushed first, unless its
        ``autoflush`` is off.
    :param job: the job, or its id.
    :param process_at: when the job is due, an aware datetime. A time in the past means now.
    :param process_in: the time until the job is due, if ``process_at`` is not given.
    :param job_model: the mapped class of the job table, if ``job`` is an id.
    :param clock: returns the time as an aware datetime.
    :return: ``"rescheduled"``; ``"running"`` if a worker has the job, and nothing changed; None if
        no such job is queued.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if neither time is given, ``session`` is an AsyncSession, or an argument is
        of the wrong type.
    :raises ValueError: if a time is naive or out of range.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "reschedule", arguments="job, ...")
    if process_at is None and process_in is None:
        msg = "reschedule needs process_at or process_in: process_in=timedelta(0) means now"
        raise TypeError(msg)
    job_id, model = _identified(job, job_model)
    now = require_aware("clock()", clock())
    due = due_time(now, process_at, process_in)
    table = job_table(model)
    with explained(unit.get_bind(**bind_arguments(model)), TableUse(table, ("SELECT", "UPDATE"))):
        found = _lock(unit, model, job_id, clock, now)
        if found.row is None:
            return found.state
        change = update(model).where(model.job_id == job_id)
        change = change.values(process_at=due, lease_id=None, waits_for=None, due_at=None)
        unit.execute(change, bind_arguments=bind_arguments(model))
        announce(unit, model, found.row.queue)
    return "rescheduled"


def discard(
    session: Session | scoped_session[Any],
    job: Any,
    *,
    reason: str = "discarded",
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> Literal["discarded", "running"] | None:
    """Archive a waiting job as a failure, in the session's transaction; the caller commits.

    It is what a handler does with :class:`.Discard`, for a job that is not running. A job that a
    worker is running, or has claimed and is about to run, does not change; the call does not wait
    for it. To end a running job, use :func:`cancel`.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.discard``. Pending objects are flushed first, unless its
        ``autoflush`` is off.
    :param job: the job, or its id.
    :param reason: stored as the job's error.
    :param job_model: the mapped class of the job table, if ``job`` is an id.
    :param archived_job_model: the mapped class of its archive.
    :param clock: returns the time as an aware datetime.
    :return: ``"discarded"``; ``"running"`` if a worker has the job, and nothing changed; None if no
        such job is queued.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "discard", arguments="job")
    job_id, model = _identified(job, job_model)
    now = require_aware("clock()", clock())
    table, archived = job_table(model), sa_inspect(archived_job_model).local_table
    engine = unit.get_bind(**bind_arguments(model))
    uses = TableUse(table, ("SELECT", "UPDATE", "DELETE")), TableUse(archived, ("SELECT", "INSERT"))
    with explained(engine, *uses):
        found = _lock(unit, model, job_id, clock, now)
        if found.row is None:
            return found.state
        store = settling_store(database_of(engine.dialect), model, archived_job_model)
        due_at = found.row.due_at  # not NULL if the job waits for a limit
        job_ = ClaimedJob(job_id, "", "", found.row.attempts + 1, process_at=due_at)
        ended = job_, Failed(storable(reason), 0)
        connection = unit.connection(bind_arguments=bind_arguments(model))
        require_foreign_keys(connection, model)
        store.settle_leased(connection, [ended], now, wait=True)
        announce_ends_on(connection, model)
    return "discarded"


class _Found(NamedTuple):
    """A locked row; or None, and why there is none."""

    row: Row[*tuple[Any, ...]] | None
    state: Literal["running"] | None = None


def _identified(job: Any, job_model: type[JobMixin]) -> tuple[Any, type[JobMixin]]:
    """Return the id of a job, and the model of its table."""
    return (job.job_id, base_of(type(job))) if isinstance(job, JobMixin) else (job, job_model)


def _lock(
    session: Session, model: type[JobMixin], job_id: Any, clock: Clock, now: datetime
) -> _Found:
    """Lock a job that no worker has."""
    if session.autoflush:
        session.flush()
    bind: dict[str, Any] = {"bind_arguments": bind_arguments(model)}
    database = database_of(session.get_bind(**bind["bind_arguments"]).dialect)
    if not database.locks:  # SQLite rejects the first write after a read, if others have written
        database.begun(session.connection(**bind))
    row, there = lock_job(session, job_table(model), job_id, bind)
    if row is None:
        return _Found(None, "running" if there else None)
    if row.lease_id is not None:
        if clock is utcnow and database.now is not None:  # by which workers measure leases
            now = session.execute(database.now, **bind).scalar_one()
        if row.process_at > now:
            return _Found(None, "running")
    return _Found(row)
