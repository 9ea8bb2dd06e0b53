"""Enqueue jobs as rows in the caller's unit of work.

::

    with Session(engine) as session, session.begin():
        session.add(user)
        enqueue(session, "welcome", {"email": user.email})

The job is committed together with the user, or not at all. Objects of a mapped job class are
enqueued directly, with :func:`enqueue` or with ``session.add``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import inspect as sa_inspect

from ..clock import Clock, require_aware, utcnow, uuid7
from ..models.mixins import Job, JobMixin
from ..serializers.json_serializer import Serializer
from ..wakeup.announce import keep_quiet
from .options import JSON, JobT
from .sessions import require_bind, sync_session
from .values import has_uuid, job_values, require_key

if TYPE_CHECKING:
    from .sessions import AnySession


@overload
def enqueue(
    session: AnySession,
    job_type: JobT,
    *,
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    priority: int | None = ...,
    uuid_fn: Callable[[], Any] = ...,
    clock: Clock = ...,
    notify: bool = ...,
) -> JobT: ...
@overload
def enqueue(  # pyright: ignore[reportOverlappingOverload] - job_model is no column
    session: AnySession,
    job_type: str,
    payload: Any = None,
    *,
    job_model: type[JobT],
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    priority: int | None = ...,
    serializer: Serializer = ...,
    uuid_fn: Callable[[], Any] = ...,
    clock: Clock = ...,
    notify: bool = ...,
    **columns: Any,
) -> JobT: ...
@overload
def enqueue(
    session: AnySession,
    job_type: str,
    payload: Any = None,
    *,
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    priority: int | None = ...,
    serializer: Serializer = ...,
    uuid_fn: Callable[[], Any] = ...,
    clock: Clock = ...,
    notify: bool = ...,
    **columns: Any,
) -> Job: ...
def enqueue(
    session: AnySession,
    job_type: str | JobMixin,
    payload: Any = None,
    *,
    queue: str | None = None,
    process_at: datetime | None = None,
    process_in: timedelta | None = None,
    priority: int | None = None,
    job_model: type[Any] = Job,
    serializer: Serializer = JSON,
    uuid_fn: Callable[[], Any] = uuid7,
    clock: Clock = utcnow,
    notify: bool = True,
    **columns: Any,
) -> Any:
    """Add a job to the session, to be committed with the session's other changes or not at all.

    Nothing is flushed or committed. The payload is encoded immediately, so a payload that cannot be
    encoded raises an error here.

    :param session: a Session, scoped_session, AsyncSession or async_scoped_session. In an asyncio
        program, too, this function is called without ``await``.
    :param job_type: the job type, a string of 1 to 255 characters, which selects the handler. Or
        the job itself, as an object of a job class: the arguments ``queue``, ``priority``,
        ``process_at`` and ``process_in`` then override the values of the object, and ``payload``,
        ``job_model``, ``serializer`` and ``columns`` must not be given.
    :param payload: a value that the serializer can encode; None by default.
    :param queue: the queue's name, 1 to 255 characters. The default is the model's ``__queue__``,
        which is "default" unless the model overrides it.
    :param process_at: an aware datetime; the job does not run before it. A time in the past means
        now. Takes precedence over ``process_in``. The default is now.
    :param process_in: a timedelta; the job does not run until it has elapsed. A negative duration
        means now.
    :param priority: an int from 0 (first) to 9 (last). The default is the model's
        ``__priority__``, which is 5 unless the model overrides it.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param serializer: encodes the payload as text; :class:`.JSONSerializer` by default. The worker
        must use the same serializer.
    :param uuid_fn: a callable that returns the job's id; :func:`.uuid7` by default. Not called if
        the model's ``job_id`` is not a UUID.
    :param clock: a callable that returns the current time as an aware datetime; :func:`.utcnow` by
        default.
    :param notify: whether to wake waiting workers when the transaction commits; True by default.
        Otherwise workers find the job when they poll.
    :param columns: values for columns and relationships that ``job_model`` adds.
    :return: the pending job object. Its ``job_id`` is already set if it is a UUID.
    :raises PayloadError: if the payload cannot be encoded; the message names the part at fault.
    :raises UnboundSessionError: if the session has no bind for ``job_model``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if a time is naive, if a name or the priority is out of range, if
        ``job_model`` is not the class of this job type, if the serializer rejects a name, or if the
        job object has been enqueued before.

    .. versionadded:: 0.1
    """
    unit = sync_session(session)
    now = require_aware("clock()", clock())
    if isinstance(job_type, JobMixin):
        if columns or payload is not None or job_model is not Job or serializer is not JSON:
            msg = (
                f"{job_type!r} is a whole job: set its columns before it is enqueued, instead of "
                f"passing payload, job_model, serializer or columns"
            )
            raise TypeError(msg)
        job_model = type(job_type)
        require_bind(unit, job_model)
        job = _completed(
            job_type,
            queue=queue,
            process_at=process_at,
            process_in=process_in,
            priority=priority,
            now=now,
            uuid_fn=uuid_fn,
        )
    else:
        require_bind(unit, job_model)
        values = job_values(
            job_model,
            job_type,
            payload,
            queue=queue,
            process_at=process_at,
            process_in=process_in,
            priority=priority,
            serializer=serializer,
            now=now,
        )
        if has_uuid(job_model):
            values["job_id"] = uuid_fn()
        require_key(columns)
        job = job_model(**values, **columns)
    unit.add(job)
    if not notify:
        keep_quiet(job)
    return job


def _completed(
    job: Any,
    *,
    queue: str | None,
    process_at: datetime | None,
    process_in: timedelta | None,
    priority: int | None,
    now: datetime,
    uuid_fn: Callable[[], Any],
) -> Any:
    """Set the values that a job object lacks, and those that override its own."""
    model, state = type(job), sa_inspect(job)
    if state.has_identity:
        msg = f"{job!r} is enqueued already"
        raise ValueError(msg)
    own = {name: value for name, value in state.dict.items() if value is not None}
    if process_at is None and process_in is None:
        process_at = own.get("process_at")
    values = job_values(
        model,
        own.get("job_type", ""),
        None,
        queue=own.get("queue") if queue is None else queue,
        process_at=process_at,
        process_in=process_in,
        priority=own.get("priority") if priority is None else priority,
        serializer=JSON,
        now=now,
    )
    if has_uuid(model):
        values["job_id"] = own.get("job_id") or uuid_fn()
    require_key(own)
    decided = {"queue", "process_at", "priority"}
    for name in values.keys() - (own.keys() - decided):
        setattr(job, name, values[name])
    return job
