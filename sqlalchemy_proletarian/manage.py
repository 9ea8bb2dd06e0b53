"""What an operator does with jobs: functions of a Session, in whose transaction they act."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import Text, bindparam, func, select
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, scoped_session

from . import statements
from .announce import cancel_channel_of
from .clock import Clock, require_aware, utcnow
from .job import immediate_session
from .models import ArchivedJob, ArchivedJobMixin, Job, JobMixin, Status
from .store import explain_missing_tables

_NOTIFY = select(func.pg_notify(bindparam("channel", type_=Text), bindparam("job_id", type_=Text)))


def cancel(
    session: Session | scoped_session[Any],
    job_id: Any,
    *,
    reason: str = "cancelled",
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> Literal["cancelled", "requested"] | None:
    """Take a job out of its queue, in the session's transaction; the caller commits.

    A job that waits, or is held by a lease, is archived as cancelled; a worker that runs it is told
    at the commit, and what it still writes is undone. A job in a worker's transaction cannot be
    taken from it: the worker is asked at the commit to end the run, if it listens
    (``notify=True``). An ``async`` handler is cancelled then and its job archived as cancelled; a
    plain function goes on, and its job is cancelled only if it raises.

    :param reason: kept as the job's error.
    :return: ``"cancelled"`` if the job is archived, ``"requested"`` if a worker's transaction has
        it, None if no such job is queued.
    :raises TablesMissingError: if the tables are not there.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "cancel", arguments="job_id")
    job, archived = sa_inspect(job_model).local_table, sa_inspect(archived_job_model).local_table
    wanted = select(job.c.attempts).where(job.c.job_id == job_id)
    bind = {"bind_arguments": {"mapper": job_model}}
    with explain_missing_tables():
        attempts = unit.scalar(wanted.with_for_update(skip_locked=True), **bind)
        if attempts is not None:
            values = {
                "ids": [job_id],
                "held": [attempts],
                "attempts": [attempts],
                "times": [None],
                "statuses": [Status.CANCELLED.value],
                "errors": [reason],
                "now": require_aware("clock()", clock()),
            }
            unit.execute(statements.archive_each(job, archived), values, **bind)
        elif unit.scalar(wanted, **bind) is None:
            return None
    channel = cancel_channel_of(str(job))
    unit.execute(_NOTIFY, {"channel": channel, "job_id": str(job_id)}, **bind)
    return "requested" if attempts is None else "cancelled"
