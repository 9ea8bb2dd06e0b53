"""Enqueue jobs as rows in the caller's unit of work.

::

    with Session(engine) as session, session.begin():
        session.add(user)
        enqueue(session, "welcome", {"email": user.email})

The job is committed together with the user, or not at all. Objects of a mapped job class are
enqueued directly, with :func:`enqueue` or with ``session.add``.

A program without sessions passes its Connection::

    with engine.begin() as connection:
        connection.execute(insert(users), {"email": email})
        job_id = enqueue(connection, "welcome", {"email": email})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Unpack, overload
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session

from ..clock import Clock, require_aware
from ..models.defaults import Job
from ..models.mixins import JobMixin
from ..serializers.json_serializer import Serializer
from ..telemetry.calls import EnqueueCall
from ..telemetry.enqueues import observed
from ..telemetry.observers import has_observers
from ..wakeup.announce import suppress_announcement
from .core import insert_job, insert_object
from .facts import facts_of
from .options import JSON, CompleteOptions, JobObjectOptions, JobOptions, JobT, split_options
from .sessions import require_bind, sync_session
from .values import call_of, encoded, job_values, require_key

if TYPE_CHECKING:
    from .sessions import AnySession


@overload
def enqueue(session: AnySession, job_type: JobT, **options: Unpack[JobObjectOptions]) -> JobT: ...
@overload
def enqueue(
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
    headers: Mapping[str, Any] | None = ...,
    **columns: Any,
) -> JobT: ...
@overload
def enqueue(
    session: AnySession, job_type: str, payload: Any = None, **options: Unpack[JobOptions]
) -> Job: ...
@overload
def enqueue(
    session: Connection, job_type: JobMixin, **options: Unpack[JobObjectOptions]
) -> Any: ...
@overload
def enqueue(
    session: Connection,
    job_type: str,
    payload: Any = None,
    *,
    job_model: type[JobMixin],
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    priority: int | None = ...,
    serializer: Serializer = ...,
    uuid_fn: Callable[[], Any] = ...,
    clock: Clock = ...,
    notify: bool = ...,
    headers: Mapping[str, Any] | None = ...,
    **columns: Any,
) -> Any: ...
@overload
def enqueue(
    session: Connection, job_type: str, payload: Any = None, **options: Unpack[JobOptions]
) -> UUID: ...
def enqueue(
    session: AnySession | Connection,
    job_type: str | JobMixin,
    payload: Any = None,
    *,
    job_model: type[Any] = Job,
    **options: Any,
) -> Any:
    """Add a job to the caller's transaction, to be committed with its other changes or not at all.

    In a session, nothing is flushed or committed: the job becomes an object of the session. With a
    Connection, the row is inserted at once, in the connection's transaction, and nothing is
    committed. The payload is encoded immediately, so a payload that cannot be encoded raises an
    error here.

    :param session: a Session, scoped_session, AsyncSession or async_scoped_session. In an asyncio
        program, too, this function is called without ``await``. Or a Connection; for an
        AsyncConnection, use :func:`sqlalchemy_proletarian.asyncio.enqueue`. A Connection inserts
        one row without the unit of work: mapper events and the validators of ``job_model`` are not
        called.
    :param job_type: the job type, a string of 1 to 255 characters, which selects the handler. Or
        the job itself, as an object of a job class: the options ``queue``, ``priority``,
        ``process_at``, ``process_in`` and ``headers`` then override the values of the object, and
        ``payload``, ``job_model``, ``serializer`` and columns must not be given.
    :param payload: a value that the serializer can encode; None by default.
    :param job_model: the mapped class of the job table; :class:`.Job` by default. With a
        Connection, it must be mapped to one table.
    :param options: the keyword arguments described in :class:`.JobOptions`, and values for columns
        and relationships that ``job_model`` adds; with a Connection, for columns only.
    :return: in a session, the pending job object. Its ``job_id`` is already set if it is a UUID.
        With a Connection, the ``job_id``: there is no session to which an object could belong.
    :raises DatabaseNotReadyError: with a Connection: as :func:`.enqueue_many`.
    :raises PayloadError: if the payload or the headers cannot be encoded; the message names the
        part at fault.
    :raises UnboundSessionError: if the session has no bind for ``job_model``.
    :raises TypeError: if an argument is of the wrong type, or is neither an option nor a column.
    :raises ValueError: if a time is naive, if a name or the priority is out of range, if
        ``job_model`` is not the class of this job type, if the serializer rejects a name, or if the
        job object has been enqueued before.

    .. versionadded:: 0.1
    """
    if not has_observers():
        return _enqueue(session, job_type, payload, job_model, options)
    with observed(call_of(job_type, job_model, options)) as call:
        job = _enqueue(session, job_type, payload, job_model, options, call=call)
        call.add_one(job if isinstance(session, Connection) else job.job_id)
        return job


def _enqueue(
    session: AnySession | Connection,
    job_type: str | JobMixin,
    payload: Any,
    job_model: type[Any],
    options: dict[str, Any],
    *,
    call: EnqueueCall | None = None,
) -> Any:
    """Do what :func:`enqueue` does.

    :param call: what observers see of it; None without observers.
    """
    given, columns = split_options(options)
    unit = session if isinstance(session, Connection) else sync_session(session)
    now = require_aware("clock()", given.clock())
    if isinstance(job_type, JobMixin):
        if columns or payload is not None or job_model is not Job or given.serializer is not JSON:
            msg = (
                f"{job_type!r} is a whole job: set its columns before it is enqueued, instead of "
                f"passing payload, job_model, serializer or columns"
            )
            raise TypeError(msg)
        if isinstance(unit, Connection):
            return insert_object(unit, _completed(job_type, given, now, call), notify=given.notify)
        require_bind(unit, type(job_type))
        return _added(unit, _completed(job_type, given, now, call), notify=given.notify)
    values = job_values(
        job_model,
        job_type,
        queue=given.queue,
        process_at=given.process_at,
        process_in=given.process_in,
        priority=given.priority,
        headers=given.headers,
        serializer=given.serializer,
        now=now,
        call=call,
    )
    values["payload"] = encoded(given.serializer, payload)
    if facts_of(job_model).has_uuid:
        values["job_id"] = given.uuid_fn()
    if isinstance(unit, Connection):
        return insert_job(unit, job_model, values, columns, notify=given.notify)
    require_key(columns)
    require_bind(unit, job_model)
    return _added(unit, job_model(**values, **columns), notify=given.notify)


def _added(session: Session, job: Any, *, notify: bool) -> Any:
    session.add(job)
    if not notify:
        suppress_announcement(job)
    return job


def _completed(job: Any, options: CompleteOptions, now: datetime, call: EnqueueCall | None) -> Any:
    """Set the values that a job object lacks, and those that override its own."""
    model, state = type(job), sa_inspect(job)
    if state.has_identity:
        msg = f"{job!r} is enqueued already"
        raise ValueError(msg)
    own = {name: value for name, value in state.dict.items() if value is not None}
    process_at = options.process_at
    if process_at is None and options.process_in is None:
        process_at = own.get("process_at")
    values = job_values(
        model,
        own.get("job_type", ""),
        queue=own.get("queue") if options.queue is None else options.queue,
        process_at=process_at,
        process_in=options.process_in,
        priority=own.get("priority") if options.priority is None else options.priority,
        headers=own.get("headers") if options.headers is None else options.headers,
        serializer=JSON,
        now=now,
        call=call,
    )
    values["payload"] = encoded(JSON, None)
    if facts_of(model).has_uuid:
        values["job_id"] = own.get("job_id") or options.uuid_fn()
    require_key(own)
    decided = {"queue", "process_at", "priority", "headers"}
    for name in values.keys() - (own.keys() - decided):
        setattr(job, name, values[name])
    return job
