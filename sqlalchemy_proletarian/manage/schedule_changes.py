"""Pausing recurring jobs, and running one now."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, utcnow
from ..models.defaults import Job, RecurringJob
from ..models.job_classes import bind_arguments, class_of, job_table
from ..models.mixins import JobMixin
from ..models.recurring import RecurringJobMixin
from ..models.requirements import TableUse, explained
from ..producer.sessions import immediate_session
from ..serializers.json_serializer import Serializer
from .schedules import binds_of_recurring, use_of_recurring


class _AsStored:
    """Takes and returns payloads as they are stored."""

    def encode(self, payload: Any, annotation: Any = None) -> str:  # noqa: ARG002
        text: str = payload
        return text

    def decode(self, text: str, annotation: Any = None) -> Any:  # noqa: ARG002
        return text


_STORED: Final[Serializer] = _AsStored()


def pause_schedule(
    session: Session | scoped_session[Any],
    name: str,
    *,
    recurring_job_model: type[RecurringJobMixin] = RecurringJob,
) -> bool | None:
    """Pause a recurring job, in the session's transaction; the caller commits.

    Its ticks pass without a job until :func:`resume_schedule` is committed. It does not matter
    whether :func:`schedule` or code has created it: workers leave it paused.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.pause_schedule``. Pending objects are flushed.
    :param name: the name of the recurring job.
    :param recurring_job_model: the mapped class of the table; :class:`.RecurringJob` by default.
    :return: True if it is paused now; False if it was paused already; None if there is none.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession.

    .. versionadded:: 0.1
    """
    return _set_paused(session, "pause_schedule", name, recurring_job_model, paused=True)


def resume_schedule(
    session: Session | scoped_session[Any],
    name: str,
    *,
    recurring_job_model: type[RecurringJobMixin] = RecurringJob,
) -> bool | None:
    """Let the ticks of a paused recurring job enqueue jobs again; the caller commits.

    Ticks that have passed meanwhile are not made up for.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.resume_schedule``. Pending objects are flushed.
    :param name: the name of the recurring job.
    :param recurring_job_model: the mapped class of the table; :class:`.RecurringJob` by default.
    :return: True if it was paused; False if it was not; None if there is none.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession.

    .. versionadded:: 0.1
    """
    return _set_paused(session, "resume_schedule", name, recurring_job_model, paused=False)


def run_schedule(
    session: Session | scoped_session[Any],
    name: str,
    *,
    job_model: type[JobMixin] = Job,
    recurring_job_model: type[RecurringJobMixin] = RecurringJob,
    clock: Clock = utcnow,
) -> Any:
    """Enqueue a job of a recurring job now, beside those of its ticks; the caller commits.

    Also if it is paused. The next tick stays as it is.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.run_schedule``. Pending objects are flushed.
    :param name: the name of the recurring job.
    :param job_model: the mapped class of the jobs; :class:`.Job` by default.
    :param recurring_job_model: the mapped class of the table; :class:`.RecurringJob` by default.
    :param clock: returns the time as an aware datetime.
    :return: the id of the job; None if there is no such recurring job.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession.

    .. versionadded:: 0.1
    """
    # Imported here, because a worker in an event loop imports this module.
    from ..producer.enqueue import enqueue

    unit = immediate_session(session, "run_schedule", "name")
    unit.flush()
    model = recurring_job_model
    columns = model.queue, model.job_type, model.payload, model.priority
    bind = binds_of_recurring(model)
    with explained(unit.get_bind(**bind), use_of_recurring(model)):
        row = unit.execute(select(*columns).where(model.name == name), bind_arguments=bind).first()
    if row is None:
        return None
    jobs = TableUse(job_table(job_model), ("SELECT", "INSERT"))
    with explained(unit.get_bind(**bind_arguments(job_model)), jobs):
        job: Any = enqueue(
            unit,
            row.job_type,
            row.payload,
            queue=row.queue,
            priority=row.priority,
            job_model=class_of(job_model, row.job_type),
            serializer=_STORED,
            clock=clock,
        )
        unit.flush()
    return job.job_id


def _set_paused(
    session: Any, function_name: str, name: str, model: type[RecurringJobMixin], *, paused: bool
) -> bool | None:
    from ..store.recurring import lock_one

    unit = immediate_session(session, function_name, "name")
    unit.flush()
    bind = binds_of_recurring(model)
    with explained(unit.get_bind(**bind), use_of_recurring(model)):
        row = lock_one(unit, model, name, bind)
        if row is None:
            return None
        changed = bool(row.paused) is not paused
        row.paused = paused
        unit.flush()
    return changed
