"""Functions to manage jobs, which run in the transaction of the given Session."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, require_aware, utcnow
from ..database.dialects import database_of
from ..lifecycle.claimed import ClaimedJob
from ..lifecycle.outcomes import Cancelled, storable
from ..models.defaults import ArchivedJob, Job
from ..models.foreign_keys import require_foreign_keys
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import ArchivedJobMixin, JobMixin
from ..models.requirements import TableUse, explained
from ..producer.sessions import immediate_session
from ..store.locking import lock_job
from ..store.open import settling_store
from ..wakeup.announce import announce_ends_on
from ..wakeup.channels import NOTIFY, cancel_channel_of, cancel_request

_MAX_REASON = 1000
"""Characters of a reason that are sent to a worker: a notification has at most 8,000 bytes."""


def cancel(
    session: Session | scoped_session[Any],
    job_id: Any,
    *,
    reason: str = "cancelled",
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> Literal["cancelled", "requested"] | None:
    """Cancel a job in the session's transaction; the caller commits.

    A job that is waiting, or is running in lease mode, is archived as cancelled. A worker that runs
    it is notified at the commit, and the writes of its handler are rolled back.

    A job that is running in transaction mode cannot be taken from its worker: at the commit the
    worker is requested to end the run, if it listens for notifications (``notify=True``). An
    ``async`` handler is then cancelled and its job archived as cancelled. A plain function runs to
    its end, and its job is cancelled only if it raises. If the worker has claimed the job but not
    started it, the job is not started and is archived as cancelled.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.cancel``. Pending objects are flushed first, unless its
        ``autoflush`` is off.
    :param job_id: the id of the job.
    :param reason: stored as the job's error.
    :param job_model: the mapped class of the job table.
    :param archived_job_model: the mapped class of its archive.
    :param clock: returns the time as an aware datetime.
    :return: ``"cancelled"`` if the job was archived, ``"requested"`` if a worker's transaction
        holds it, None if no such job is queued.
    :raises TypeError: if ``session`` is an AsyncSession.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "cancel", arguments="job_id")
    job, archived = job_table(job_model), sa_inspect(archived_job_model).local_table
    reason = storable(reason)
    if unit.autoflush:
        unit.flush()
    bind: dict[str, Any] = {"bind_arguments": bind_arguments(job_model)}
    engine = unit.get_bind(**bind_arguments(job_model))
    database = database_of(engine.dialect)
    uses = TableUse(job, ("SELECT", "UPDATE", "DELETE")), TableUse(archived, ("SELECT", "INSERT"))
    with explained(engine, *uses):
        row, there = lock_job(unit, job, job_id, bind)
        if not there:
            return None
        if row is not None:
            store = settling_store(database, job_model, archived_job_model)
            runs = row.lease_id is not None
            due_at = row.due_at  # not NULL if the job waits for a limit
            result = (
                ClaimedJob(job_id, "", "", row.attempts + 1, process_at=due_at),
                Cancelled(reason, int(runs)),
            )
            now = require_aware("clock()", clock())
            connection = unit.connection(**bind)
            require_foreign_keys(connection, job_model)
            store.settle_leased(connection, [result], now, wait=True)
            announce_ends_on(connection, job_model)
    if database.notifies:
        request = cancel_request(job_id, reason[:_MAX_REASON])
        unit.execute(NOTIFY, {"channel": cancel_channel_of(str(job)), "payload": request}, **bind)
    return "requested" if row is None else "cancelled"
