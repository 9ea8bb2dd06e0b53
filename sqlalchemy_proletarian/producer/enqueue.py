"""The producer's side: jobs are rows in the caller's unit of work.

::

    with Session(engine) as session, session.begin():
        session.add(user)
        enqueue(session, "welcome", {"email": user.email})

The job is committed with the user, or not at all. Where types of jobs are mapped classes, see
:mod:`.job_classes`, their objects are enqueued as they are, with ``session.add`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from sqlalchemy import Uuid
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, require_aware, utcnow, uuid7
from ..errors import PayloadError, UnboundSessionError
from ..models.job_classes import bind_arguments, require_type
from ..models.mixins import PRIORITIES, Job, JobMixin
from ..serializers.json_serializer import JSONSerializer, Serializer, check_names
from ..wakeup.announce import keep_quiet

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    AnySession: TypeAlias = Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any]

JobT = TypeVar("JobT", bound=JobMixin)

MAX_NAME_LENGTH = 255
JSON = JSONSerializer()


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
    """Add a job to the session: it is committed with the session's other changes, or not at all.

    Nothing is flushed and nothing is committed. The payload is encoded here and now, so that one
    that cannot be encoded fails at this call.

    :param session: a Session, scoped_session, AsyncSession or async_scoped_session. Also in an
        async program this function is called without ``await``.
    :param job_type: which handler runs the job; 1 to 255 characters. Or the job itself, an object
        of a job class: what it says of its queue, priority and ``process_at`` gives way to the
        arguments, and it has no payload, serializer or further columns but its own.
    :param payload: whatever the serializer encodes.
    :param queue: the queue's name, 1 to 255 characters; by default the model's ``__queue__``, which
        is "default" where it does not say otherwise.
    :param process_at: aware datetime before which the job does not run; a time in the past is now.
        Wins over ``process_in``.
    :param process_in: how long from now the job does not run; a negative duration is now.
    :param priority: 0 (first) to 9 (last); by default the model's ``__priority__``, which is 5.
    :param job_model: the mapped class of the job's table.
    :param serializer: turns the payload into text; the worker must use the same one.
    :param uuid_fn: makes the job's id. Not asked where the model's ``job_id`` is no UUID.
    :param clock: returns the time as an aware datetime.
    :param notify: wake waiting workers when the transaction commits; otherwise they find the job
        when they poll.
    :param columns: values for columns and relationships that ``job_model`` adds.
    :return: the pending job; its ``job_id`` is already set.
    :raises PayloadError: if the payload cannot be encoded; the message names the place in it.
    :raises UnboundSessionError: if the session knows no database for ``job_model``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if a time is naive, a name or the priority out of range, jobs of the type
        are of another class than ``job_model``, or the serializer refuses a name.

    .. versionadded:: 0.1
    """
    unit = sync_session(session)
    now = require_aware("clock()", clock())
    if isinstance(job_type, JobMixin):
        if columns or payload is not None or job_model is not Job or serializer is not JSON:
            msg = f"{job_type!r} is a whole job: set its columns, before it is enqueued"
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
    """Give a job the values that it has not, and those that win over its own."""
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


def job_values(
    job_model: type[JobMixin],
    job_type: str,
    payload: Any,
    *,
    queue: str | None,
    process_at: datetime | None,
    process_in: timedelta | None,
    priority: int | None,
    serializer: Serializer,
    now: datetime,
) -> dict[str, Any]:
    """Return the values of a new job's row, every one checked; the id is the caller's affair."""
    queue = job_model.__queue__ if queue is None else queue
    priority = job_model.__priority__ if priority is None else priority
    require_name("job_type", job_type)
    require_type(job_model, job_type)
    require_name("queue", queue)
    check_names(serializer, queue=queue, job_type=job_type)
    require_priority(priority)
    due = now
    if process_at is not None:
        due = require_aware("process_at", process_at)
    elif process_in is not None:
        due = _later(now, process_in)
    return {
        "queue": queue,
        "job_type": job_type,
        "payload": _storable(serializer.encode(payload)),
        "attempts": 0,
        "enqueued_at": now,
        "process_at": max(due, now),
        "priority": priority,
        "deaths": 0,
    }


def _storable(text: Any) -> str:
    if not isinstance(text, str):
        msg = f"the serializer must make text of a payload, not {text!r:.80}"
        raise TypeError(msg)
    if not is_storable(text):
        msg = "the serializer made text with a NUL or a lone surrogate, which cannot be stored"
        raise PayloadError(msg)
    return text


def _later(now: datetime, process_in: timedelta) -> datetime:
    if not isinstance(process_in, timedelta):
        msg = f"process_in must be a timedelta, not {process_in!r}"
        raise TypeError(msg)
    try:
        return now + process_in
    except OverflowError as error:
        msg = f"process_in is out of the calendar: {process_in!r}"
        raise ValueError(msg) from error


def sync_session(session: Any) -> Session:
    """Return the Session behind a scoped_session, an AsyncSession or an async_scoped_session.

    :raises TypeError: if it is none of these.
    """
    if isinstance(session, Session):
        return session
    registry = getattr(session, "registry", None)
    one = registry() if registry is not None else session
    unit = getattr(one, "sync_session", one)
    if isinstance(unit, Session):
        return unit
    msg = (
        f"a Session, scoped_session, AsyncSession or async_scoped_session is needed, "
        f"not {type(session).__qualname__}: for a Connection, use Session(bind=connection)"
    )
    raise TypeError(msg)


def immediate_session(session: Any, function_name: str, arguments: str = "...") -> Session:
    """Return the Session behind a Session or scoped_session, which sends statements at once.

    :param function_name: who asks; the message names it and its awaitable twin.
    :param arguments: what its awaitable twin is given after the session.
    :raises TypeError: if it is an AsyncSession or async_scoped_session, or no session at all.
    """
    unit = sync_session(session)
    if isinstance(session, Session | scoped_session):
        return unit
    msg = (
        f"{function_name} sends its statement now, which {type(session).__qualname__} cannot do by "
        f"itself: in asyncio, use "
        f"`await sqlalchemy_proletarian.asyncio.{function_name}(session, {arguments})`"
    )
    raise TypeError(msg)


def require_bind(session: Session, job_model: type[Any]) -> None:
    """Raise :class:`UnboundSessionError` unless the session knows a database for the model."""
    try:
        # A session of shards asks for the object, which its flush has.
        if session.connection_callable is None:
            session.get_bind(**bind_arguments(job_model))
    except UnboundExecutionError as error:
        msg = (
            f"the session has no database for {job_model.__qualname__} "
            f"(table {job_model.__table__}): give it a bind, as in Session(engine), or bind the "
            f"model in binds="
        )
        raise UnboundSessionError(msg) from error


def has_uuid(job_model: type[Any]) -> bool:
    """Tell whether the ids of the model are UUIDs, and so made here and not by the database."""
    return isinstance(sa_inspect(job_model).columns["job_id"].type, Uuid)


def require_name(name: str, value: str) -> None:
    """Raise unless ``value`` can be the name of a queue or a job type."""
    if not isinstance(value, str):
        msg = f"{name} must be a string, not {value!r}"
        raise TypeError(msg)
    if not 0 < len(value) <= MAX_NAME_LENGTH or not is_storable(value):
        msg = (
            f"{name} must have 1 to {MAX_NAME_LENGTH} characters, no NUL and no lone surrogate, "
            f"not {value!r:.100}"
        )
        raise ValueError(msg)


def require_key(columns: Mapping[str, Any]) -> None:
    """Raise unless the ``unique_key`` among the values of columns, if there is one, can be one."""
    if columns.get("unique_key") is not None:
        require_name("unique_key", columns["unique_key"])


def is_storable(text: str) -> bool:
    """Tell whether the database can store a text: PostgreSQL has neither NUL nor surrogates."""
    if text.isascii():
        return "\0" not in text
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def require_priority(priority: int) -> None:
    """Raise unless ``priority`` is one that a job can have."""
    if isinstance(priority, bool) or not isinstance(priority, int):
        msg = f"priority must be an int, not {priority!r}"
        raise TypeError(msg)
    if priority not in PRIORITIES:
        msg = f"priority must be from 0 (first) to 9 (last), not {priority}"
        raise ValueError(msg)
