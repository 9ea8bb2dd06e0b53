"""Reading the jobs that are enqueued, as the transaction of a session sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeAlias, TypeVar, overload

from sqlalchemy import select
from sqlalchemy.orm import Session, scoped_session

from ..errors import PayloadError
from ..handlers.handler import Handler
from ..models.defaults import Job
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import JobMixin
from ..models.requirements import TableUse, explained
from ..producer.options import JSON
from ..producer.sessions import immediate_session, require_bind
from ..serializers.json_serializer import Serializer

__tracebackhide__ = True  # pytest shows the line of the test instead

PayloadT = TypeVar("PayloadT")

MODULE = "sqlalchemy_proletarian.testing.asyncio"
"""Where the functions for an AsyncSession are."""

JobType: TypeAlias = str | type[JobMixin] | Handler[Any, ..., Any] | None
"""A job type, a mapped job class, or the handler of a type; None for jobs of every type."""


@dataclass(frozen=True, slots=True)
class EnqueuedJob(Generic[PayloadT]):
    """A job in its queue.

    .. versionadded:: 0.1
    """

    job_type: str
    """The type of the job."""
    payload: PayloadT
    """The payload, decoded: to the annotation of its handler, if the handler was given."""
    queue: str
    """The name of the queue."""
    process_at: datetime
    """When the job is due."""
    enqueued_at: datetime
    """When the job was enqueued, an aware datetime."""
    priority: int
    """The priority, 0 (first) to 9 (last)."""
    attempts: int
    """How many attempts have failed."""
    unique_key: str | None
    """The unique key; None if the job has none."""
    error: str | None
    """The traceback of the last attempt, if it failed."""
    job: Any
    """The mapped object in the session, which has the columns that its model adds."""


@overload
def enqueued(
    session: Session | scoped_session[Any],
    job_type: Handler[PayloadT, ..., Any],
    *,
    queue: str | None = ...,
    job_model: type[JobMixin] = ...,
    serializer: Serializer = ...,
) -> list[EnqueuedJob[PayloadT]]: ...
@overload
def enqueued(
    session: Session | scoped_session[Any],
    job_type: str | type[JobMixin] | None = ...,
    *,
    queue: str | None = ...,
    job_model: type[JobMixin] = ...,
    serializer: Serializer = ...,
) -> list[EnqueuedJob[Any]]: ...
def enqueued(
    session: Session | scoped_session[Any],
    job_type: JobType = None,
    *,
    queue: str | None = None,
    job_model: type[JobMixin] = Job,
    serializer: Serializer = JSON,
) -> list[EnqueuedJob[Any]]:
    """Return the jobs in their queues, in the order in which they were enqueued.

    These are the jobs that the session's transaction sees, committed or not. Pending objects of the
    session are flushed first, as for a query. Nothing is committed.

    :param session: a Session or scoped_session. For an AsyncSession, use
        :func:`sqlalchemy_proletarian.testing.asyncio.enqueued`.
    :param job_type: a job type; the handler of the type, to whose annotation the payloads are then
        decoded; or a mapped job class. By default, jobs of every type.
    :param queue: the name of a queue; all queues by default.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param serializer: decodes payloads, unless the handler has one; :class:`.JSONSerializer` by
        default.
    :raises DatabaseNotReadyError: if the table is missing.
    :raises PayloadError: if a payload cannot be decoded; the message names the job.
    :raises TypeError: if an argument is of the wrong type.
    :raises UnboundSessionError: if the session has no bind for ``job_model``.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "enqueued", module=MODULE)
    found = find_jobs(unit, job_type, queue, job_model)
    return [read(job, job_type, serializer) for job in found]


def find_jobs(
    session: Session, job_type: JobType, queue: str | None, job_model: type[JobMixin]
) -> Sequence[Any]:
    """Flush a session, and return the mapped objects of jobs, the oldest first."""
    model, name = selection(job_type, job_model)
    require_bind(session, model)
    session.flush()
    statement = select(model).order_by(model.enqueued_at, model.job_id)
    if name is not None:
        statement = statement.where(model.job_type == name)
    if queue is not None:
        statement = statement.where(model.queue == queue)
    arguments = bind_arguments(model)
    with explained(session.get_bind(**arguments), TableUse(job_table(model), ("SELECT",))):
        return session.scalars(statement).all()


def selection(job_type: JobType, job_model: type[JobMixin]) -> tuple[type[JobMixin], str | None]:
    """Return the model and the job type of the jobs that are meant; None for every type.

    :raises TypeError: if ``job_type`` is none of the things that name a type.
    """
    if isinstance(job_type, Handler):
        return job_type.job_class or job_model, job_type.job_type
    if isinstance(job_type, type) and issubclass(job_type, JobMixin):
        return job_type, None
    if job_type is None or isinstance(job_type, str):
        return job_model, job_type
    msg = (
        f"job_type must be a string, a mapped job class or what @handlers(…) returned, not "
        f"{job_type!r:.100}"
    )
    raise TypeError(msg)


def read(job: Any, job_type: JobType, serializer: Serializer) -> EnqueuedJob[Any]:
    """Return the view of a mapped object.

    :raises PayloadError: if its payload cannot be decoded.
    """
    try:
        payload = decoded(job.payload, job_type, serializer)
    except PayloadError as error:
        error.add_note(f"This is the payload of {job!r}: {job.payload:.200}")
        raise
    return as_view(job, payload)


def as_view(job: Any, payload: Any) -> EnqueuedJob[Any]:
    """Return the view of a mapped object with this payload."""
    return EnqueuedJob(
        job.job_type,
        payload,
        job.queue,
        job.process_at,
        job.enqueued_at,
        job.priority,
        job.attempts,
        job.unique_key,
        job.error,
        job,
    )


def decoded(text: str, job_type: JobType, serializer: Serializer) -> Any:
    """Return a payload decoded from its text, to the annotation of its handler if it is known."""
    annotation = None
    if isinstance(job_type, Handler):
        serializer = job_type.serializer or serializer
        annotation = job_type.signature.payload_type
    return serializer.decode(text, annotation)
