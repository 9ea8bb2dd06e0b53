"""The results of jobs whose handlers are registered with ``keep_result=True``."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, Protocol, TypeVar, overload

from sqlalchemy import CompoundSelect, Engine
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, scoped_session

from ..database.dialects import require_file
from ..errors import (
    JobFailedError,
    JobNotFinishedError,
    JobNotFoundError,
    NoResultError,
    PayloadError,
)
from ..models.defaults import ArchivedJob, Job
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import ArchivedJobMixin, JobMixin
from ..models.requirements import TableUse, explained
from ..models.values import Status
from ..producer.options import JSON
from ..producer.sessions import immediate_session
from ..serializers.json_serializer import Serializer
from ..store.results import select_ends

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_SHOWN: Final = 200
"""Characters of the last line of a traceback in a message."""


class ResultHandler(Protocol[T_co]):
    """What ``@handlers(…)`` returns: the type of the results is that of the handler.

    .. versionadded:: 0.1
    """

    job_type: str
    """The job type of the handler."""
    serializer: Serializer | None
    """The serializer of the handler; None for the worker's."""
    signature: Any
    """What the library has read from the signature of the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> T_co:
        """Call the function of the handler."""
        ...


@dataclass(frozen=True, slots=True)
class JobResult(Generic[T]):
    """The result of a job, as :func:`result` and :func:`wait_for` return it.

    .. versionadded:: 0.1
    """

    job_id: Any
    """The id of the job."""
    job_type: str
    """The type of the job."""
    value: T
    """What the handler returned."""
    attempts: int
    """How many attempts were made, including the one that succeeded."""
    enqueued_at: datetime
    """When the job was enqueued, an aware datetime."""
    finished_at: datetime
    """When the job finished, an aware datetime."""


@overload
def result(
    session: Session | scoped_session[Any],
    job_id: Any,
    *,
    handler: ResultHandler[Coroutine[Any, Any, T]],
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[T]: ...
@overload
def result(
    session: Session | scoped_session[Any],
    job_id: Any,
    *,
    handler: ResultHandler[T],
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[T]: ...
@overload
def result(
    session: Session | scoped_session[Any],
    job_id: Any,
    *,
    annotation: type[T],
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[T]: ...
@overload
def result(
    session: Session | scoped_session[Any],
    job_id: Any,
    *,
    annotation: Any = ...,
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[Any]: ...
def result(
    session: Session | scoped_session[Any],
    job_id: Any,
    *,
    handler: ResultHandler[Any] | None = None,
    annotation: Any = None,
    serializer: Serializer | None = None,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
) -> JobResult[Any]:
    """Return what the handler of a job has returned.

    The handler must be registered with ``keep_result=True``. The session's transaction determines
    what is seen: above READ COMMITTED, the state when it began. :func:`wait_for` waits for the end
    of a job.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.result``. Pending objects are flushed first, unless its
        ``autoflush`` is off.
    :param job_id: the id of the job.
    :param handler: what ``@handlers(…)`` returned: the result is decoded to the type that it
        declares to return, by its serializer.
    :param annotation: the type to decode the result to, if there is no ``handler``; by default,
        plain values.
    :param serializer: the serializer of the worker, unless the handler has one of its own;
        :class:`.JSONSerializer` by default.
    :param job_model: the mapped class of the job table.
    :param archived_job_model: the mapped class of its archive.
    :raises JobNotFoundError: if neither table has the job.
    :raises JobNotFinishedError: if the job waits or is running.
    :raises JobFailedError: if the job failed or was cancelled; its ``error`` has the traceback or
        the reason.
    :raises NoResultError: if the job succeeded, but its result was not kept.
    :raises PayloadError: if the result cannot be decoded to the annotation.
    :raises DatabaseNotReadyError: if a table is missing, or the role lacks a privilege.
    :raises TypeError: if ``session`` is an AsyncSession.
    :raises ValueError: if the job is not of the type of ``handler``.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "result", arguments="job_id")
    if unit.autoflush:
        unit.flush()
    reader = ResultReader(handler, annotation, serializer, job_model, archived_job_model)
    arguments = bind_arguments(archived_job_model)
    with reader.explained(unit.get_bind(**arguments)):
        row = unit.execute(reader.ends, {"ids": [job_id]}, bind_arguments=arguments).one_or_none()
    return reader.read(job_id, row)


class ResultReader:
    """Reads results; the parameters are those of :func:`result`."""

    def __init__(
        self,
        handler: ResultHandler[Any] | None,
        annotation: Any,
        serializer: Serializer | None,
        job_model: type[JobMixin],
        archived_job_model: type[ArchivedJobMixin],
    ) -> None:
        self.models: tuple[type[Any], type[Any]] = (job_model, archived_job_model)
        self.ends: CompoundSelect[Any] = select_ends(job_model, archived_job_model)
        self._handler = handler
        self._annotation = annotation
        if handler is not None:
            self._annotation = annotation or handler.signature.return_type
            serializer = handler.serializer or serializer
        self._serializer = serializer or JSON
        self._uses = [
            TableUse(table, ("SELECT",))
            for table in (job_table(job_model), sa_inspect(archived_job_model).local_table)
        ]

    def explained(self, bind: Any) -> Any:
        """Return a context manager that explains the database's errors."""
        return explained(bind, *self._uses)

    def read(self, job_id: Any, row: Any) -> JobResult[Any]:
        """Return the result in a row of ``ends``, or raise the error that says why there is none.

        :param row: None if there is no row.
        """
        if row is None:
            msg = (
                f"there is no job {job_id}, neither in its queue nor in the archive: the "
                f"transaction that enqueues it must be committed, and a pruned archive has no "
                f"results"
            )
            raise JobNotFoundError(msg)
        about = f"the job {job_id} of type {row.job_type!r}"
        if self._handler is not None and self._handler.job_type != row.job_type:
            msg = f"{about} has another handler than that of {self._handler.job_type!r}"
            raise ValueError(msg)
        if row.status is None:
            msg = f"{about} has not finished: {state_of(row)}"
            raise JobNotFinishedError(msg)
        if row.status != Status.SUCCESS:
            was = "was cancelled" if row.status == Status.CANCELLED else "failed"
            msg = f"{about} {was}{_last_line(row.error)}"
            raise JobFailedError(msg, row.status, row.error)
        if row.result is None:
            msg = f"{about} has succeeded, but its handler has no keep_result=True"
            raise NoResultError(msg)
        try:
            value = self._serializer.decode(row.result, self._annotation)
        except PayloadError as error:
            msg = f"the result of {about} cannot be decoded: {error}"
            raise PayloadError(msg) from error
        return JobResult(job_id, row.job_type, value, row.attempts, row.enqueued_at, row.at)


def state_of(row: Any) -> str:
    """Return what a row of the queue says, for messages."""
    return (
        f"it is in the queue {row.queue!r} since {row.enqueued_at.isoformat()}, due at "
        f"{row.at.isoformat()}, after {row.attempts} attempts{_last_line(row.error)}"
    )


def _last_line(error: str | None) -> str:
    return f": {error.splitlines()[-1]:.{_SHOWN}}" if error else ""


def engine_of(bind: Any, job_model: type[Any]) -> Engine:
    """Return the engine with whose connections to wait.

    :raises TypeError: if it has none, because it is a Connection or bound to one.
    :raises ValueError: if a session is in a transaction, or the database has one connection only.
    """
    if isinstance(bind, scoped_session):
        bind = bind.registry()
    if isinstance(bind, Session):
        if bind.in_transaction():
            msg = (
                "wait_for does not wait while the session is in a transaction, in which it could "
                "not see the end of the job: commit it first, or pass the engine"
            )
            raise ValueError(msg)
        bind = bind.get_bind(**bind_arguments(job_model))
    if not isinstance(bind, Engine):
        msg = (
            f"wait_for needs an Engine, or a session that is bound to one, not {bind!r:.100}: a "
            f"test in one transaction runs its jobs itself, and calls result. In asyncio, use "
            f"sqlalchemy_proletarian.asyncio.wait_for with an AsyncEngine or AsyncSession"
        )
        raise TypeError(msg)
    require_file(bind, "wait_for", "result after process_next_job")
    return bind
