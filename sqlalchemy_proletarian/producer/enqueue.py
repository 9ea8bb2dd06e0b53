"""Enqueue jobs as rows in the caller's unit of work.

::

    with Session(engine) as session, session.begin():
        session.add(user)
        enqueue(session, "welcome", {"email": user.email})

The job is committed together with the user, or not at all. Objects of a mapped job class are
enqueued directly, with :func:`enqueue` or with ``session.add``.
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
from ..models.defaults import Job
from ..models.job_classes import bind_arguments, require_type
from ..models.mixins import JobMixin
from ..models.values import PRIORITIES
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
    """Return the checked column values of a new job's row, without its ``job_id``.

    :param now: the current time; earlier values of ``process_at`` are raised to it.
    :raises PayloadError: if the payload cannot be encoded.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if a time is naive, if a name or the priority is out of range, if
        ``job_model`` is not the class of this job type, or if the serializer rejects a name.
    """
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
        msg = f"the serializer must return a payload as str, not {text!r:.80}"
        raise TypeError(msg)
    if not is_storable(text):
        msg = "the serializer returned text with a NUL or a lone surrogate, which cannot be stored"
        raise PayloadError(msg)
    return text


def _later(now: datetime, process_in: timedelta) -> datetime:
    if not isinstance(process_in, timedelta):
        msg = f"process_in must be a timedelta, not {process_in!r}"
        raise TypeError(msg)
    try:
        return now + process_in
    except OverflowError as error:
        msg = f"process_in leads to a date out of range: {process_in!r}"
        raise ValueError(msg) from error


def sync_session(session: Any) -> Session:
    """Return the Session behind a scoped_session, an AsyncSession or an async_scoped_session.

    A Session is returned unchanged.

    :raises TypeError: if ``session`` is none of these.
    """
    if isinstance(session, Session):
        return session
    registry = getattr(session, "registry", None)
    one = registry() if registry is not None else session
    unit = getattr(one, "sync_session", one)
    if isinstance(unit, Session):
        return unit
    msg = (
        f"session must be a Session, scoped_session, AsyncSession or async_scoped_session, "
        f"not {type(session).__qualname__}: for a Connection, use Session(bind=connection)"
    )
    raise TypeError(msg)


def immediate_session(session: Any, function_name: str, arguments: str = "...") -> Session:
    """Return the Session behind a Session or scoped_session, which can execute statements directly.

    :param function_name: the name of the calling function, which is also the name of its async
        variant; for the error message.
    :param arguments: the arguments of the async variant after the session; for the error message.
    :raises TypeError: if ``session`` is an AsyncSession or async_scoped_session, or no session.
    """
    unit = sync_session(session)
    if isinstance(session, Session | scoped_session):
        return unit
    msg = (
        f"{function_name} executes its statement immediately, which needs a synchronous session, "
        f"not {type(session).__qualname__}: in asyncio, use "
        f"`await sqlalchemy_proletarian.asyncio.{function_name}(session, {arguments})`"
    )
    raise TypeError(msg)


def require_bind(session: Session, job_model: type[Any]) -> None:
    """Check that the session has a bind for the model.

    :raises UnboundSessionError: if it has none.
    """
    try:
        # A horizontally sharded session chooses by the object, which is known only at flush.
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
    """Return whether the model's ids are UUIDs, which are not generated by the database."""
    return isinstance(sa_inspect(job_model).columns["job_id"].type, Uuid)


def require_name(name: str, value: str) -> None:
    """Check that ``value`` is a valid name of a queue or a job type, or a valid unique key.

    :param name: the name of the argument in error messages.
    :raises TypeError: if ``value`` is not a string.
    :raises ValueError: if it does not have 1 to 255 characters, or contains a NUL or a lone
        surrogate.
    """
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
    """Check the value of ``unique_key`` among column values, if there is one.

    :raises TypeError: if it is not a string.
    :raises ValueError: if its length is out of range, or it cannot be stored.
    """
    if columns.get("unique_key") is not None:
        require_name("unique_key", columns["unique_key"])


def is_storable(text: str) -> bool:
    """Return whether databases can store ``text``: PostgreSQL rejects NUL and lone surrogates."""
    if text.isascii():
        return "\0" not in text
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def require_priority(priority: int) -> None:
    """Check that ``priority`` is an int from 0 to 9.

    :raises TypeError: if it is not an int.
    :raises ValueError: if it is out of range.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        msg = f"priority must be an int, not {priority!r}"
        raise TypeError(msg)
    if priority not in PRIORITIES:
        msg = f"priority must be from 0 (first) to 9 (last), not {priority}"
        raise ValueError(msg)
