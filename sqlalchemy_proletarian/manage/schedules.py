"""Recurring jobs that are created at run time, by users of the application."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal, TypedDict, TypeVar, Unpack, overload

from sqlalchemy import inspect as sa_inspect
from sqlalchemy import update
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, require_aware, utcnow
from ..models.defaults import Job, RecurringJob
from ..models.mixins import JobMixin
from ..models.recurring import RecurringJobMixin
from ..models.requirements import TableUse, explained
from ..models.values import UTC_ZONE
from ..producer.options import JSON
from ..producer.sessions import immediate_session
from ..producer.values import encoded, job_values
from ..serializers.json_serializer import Serializer

RecurringT = TypeVar("RecurringT", bound=RecurringJobMixin)


class ScheduleOptions(TypedDict, total=False):
    """The optional keyword arguments of :func:`schedule`.

    :param cron: a cron expression with five fields; see :meth:`.Handlers.recurring`.
    :param every: the time from tick to tick instead of ``cron``, a timedelta.
    :param timezone: the time zone of ``cron``; "UTC" by default.
    :param queue: the queue of the jobs; by default that of ``job_model``.
    :param priority: the priority of the jobs, 0 to 9; by default that of ``job_model``.
    :param catch_up: "last" (the default), "none" or "all".
    :param serializer: encodes the payload; :class:`.JSONSerializer` by default.
    :param job_model: the mapped class of the jobs; :class:`.Job` by default.
    :param clock: returns the time as an aware datetime; :func:`.utcnow` by default.

    .. versionadded:: 0.1
    """

    cron: str | None
    every: timedelta | None
    timezone: str
    queue: str | None
    priority: int | None
    catch_up: Literal["last", "none", "all"]
    serializer: Serializer
    job_model: type[JobMixin]
    clock: Clock


@overload
def schedule(
    session: Session | scoped_session[Any],
    name: str,
    job_type: str,
    payload: Any = None,
    *,
    recurring_job_model: type[RecurringT],
    cron: str | None = ...,
    every: timedelta | None = ...,
    timezone: str = ...,
    queue: str | None = ...,
    priority: int | None = ...,
    catch_up: Literal["last", "none", "all"] = ...,
    serializer: Serializer = ...,
    job_model: type[JobMixin] = ...,
    clock: Clock = ...,
    **columns: Any,
) -> RecurringT: ...
@overload
def schedule(
    session: Session | scoped_session[Any],
    name: str,
    job_type: str,
    payload: Any = None,
    **options: Unpack[ScheduleOptions],
) -> RecurringJob: ...
def schedule(
    session: Session | scoped_session[Any],
    name: str,
    job_type: str,
    payload: Any = None,
    *,
    cron: str | None = None,
    every: timedelta | None = None,
    timezone: str = UTC_ZONE,
    queue: str | None = None,
    priority: int | None = None,
    catch_up: Literal["last", "none", "all"] = "last",
    serializer: Serializer = JSON,
    job_model: type[JobMixin] = Job,
    recurring_job_model: type[Any] = RecurringJob,
    clock: Clock = utcnow,
    **columns: Any,
) -> Any:
    """Create a recurring job, or change the one with this name; the caller commits.

    A worker enqueues its ticks that has ``recurring_job_model``; see :class:`.QueueWorker`. A new
    or changed timing begins with the first tick after now. ``paused`` does not change.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.schedule``. Pending objects are flushed.
    :param name: the name, 1 to 200 characters.
    :param job_type: the type of the jobs, 1 to 255 characters.
    :param payload: the payload of each job; None by default.
    :param cron: a cron expression with five fields; see :meth:`.Handlers.recurring`.
    :param every: the time from tick to tick instead of ``cron``.
    :param timezone: the time zone of ``cron``; "UTC" by default.
    :param queue: the queue of the jobs; by default that of ``job_model``.
    :param priority: the priority of the jobs, 0 to 9; by default that of ``job_model``.
    :param catch_up: "last" (the default), "none" or "all"; see :meth:`.Handlers.recurring`.
    :param serializer: encodes the payload; :class:`.JSONSerializer` by default.
    :param job_model: the mapped class of the jobs; :class:`.Job` by default.
    :param recurring_job_model: the mapped class of the table; :class:`.RecurringJob` by default.
    :param clock: returns the time as an aware datetime.
    :param columns: values for columns that ``recurring_job_model`` adds.
    :return: the row, persistent in the session and locked until the transaction ends.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises ImportError: if ``cron`` is given and the extra ``recurring`` is not installed.
    :raises PayloadError: if the payload cannot be encoded.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if a value is not valid, not exactly one of ``cron`` and ``every`` is given,
        or code owns the recurring job with this name.

    .. versionadded:: 0.1
    """
    # Imported here, because a worker in an event loop imports this module.
    from ..periodic.definitions import require_recurring_name
    from ..periodic.due import as_catch_up
    from ..periodic.timing import Timing, timing_of
    from ..store.recurring import lock_or_add

    unit = immediate_session(session, "schedule", "name, job_type, ...")
    require_recurring_name(name)
    timing = timing_of(cron, every, timezone)
    now = require_aware("clock()", clock())
    values = job_values(
        job_model,
        job_type,
        queue=queue,
        process_at=None,
        process_in=None,
        priority=priority,
        serializer=serializer,
        now=now,
    )
    wanted = {
        "cron": timing.cron,
        "interval_seconds": timing.interval_seconds,
        "time_zone": timing.time_zone,
        **{key: values[key] for key in ("queue", "job_type", "priority")},
        "payload": encoded(serializer, payload),
        "catch_up": as_catch_up(catch_up).value,
        **columns,
    }
    unit.flush()
    bind = binds_of_recurring(recurring_job_model)
    first = timing.after(now)
    with explained(unit.get_bind(**bind), use_of_recurring(recurring_job_model)):
        row, added = lock_or_add(
            unit, recurring_job_model, name, {**wanted, "next_at": first}, bind
        )
        if added:
            return row
        _require_own(row, f"change {name!r} there")
        if Timing(row.cron, row.interval_seconds, row.time_zone) != timing:
            row.next_at = first
        for key, value in wanted.items():
            setattr(row, key, value)
        unit.flush()
    return row


def unschedule(
    session: Session | scoped_session[Any],
    name: str,
    *,
    recurring_job_model: type[RecurringJobMixin] = RecurringJob,
) -> bool:
    """Delete a recurring job that :func:`schedule` has created; the caller commits.

    Jobs that were enqueued already still run.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.unschedule``. Pending objects are flushed.
    :param name: the name of the recurring job.
    :param recurring_job_model: the mapped class of the table; :class:`.RecurringJob` by default.
    :return: whether there was one.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession.
    :raises ValueError: if code owns the recurring job: workers would create it again.

    .. versionadded:: 0.1
    """
    from ..store.recurring import lock_one

    unit = immediate_session(session, "unschedule", "name")
    unit.flush()
    bind = binds_of_recurring(recurring_job_model)
    with explained(unit.get_bind(**bind), use_of_recurring(recurring_job_model)):
        row = lock_one(unit, recurring_job_model, name, bind)
        if row is None:
            return False
        _require_own(row, f"remove {name!r} there, or set paused in its row")
        unit.delete(row)
        unit.flush()
    return True


def _require_own(row: Any, remedy: str) -> None:
    if row.owner is not None:
        msg = (
            f"the recurring job {row.name!r} is defined in code, by @handlers.recurring (owner "
            f"{row.owner!r}): {remedy}"
        )
        raise ValueError(msg)


def binds_of_recurring(model: type[Any]) -> dict[str, Any]:
    """Return the arguments of a session's ``get_bind``, as for a write."""
    table = sa_inspect(model).local_table
    return {"mapper": sa_inspect(model), "clause": update(table)}


def use_of_recurring(model: type[Any]) -> TableUse:
    """Return what the functions for recurring jobs do with the table of a mapped class."""
    table = sa_inspect(model).local_table
    return TableUse(table, ("SELECT", "INSERT", "UPDATE", "DELETE"), frozenset(table.c.keys()))
