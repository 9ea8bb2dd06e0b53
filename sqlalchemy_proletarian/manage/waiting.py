"""Waiting for the end of a job, and its result."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar, overload

from sqlalchemy import Engine
from sqlalchemy.orm import Session, scoped_session

from ..clock import as_timedelta
from ..database.connections import cannot_connect
from ..models.defaults import ArchivedJob, Job
from ..models.mixins import ArchivedJobMixin, JobMixin
from ..runtime.base import Runtime
from ..serializers.json_serializer import Serializer
from .results import JobResult, ResultHandler, ResultReader, engine_of, state_of

T = TypeVar("T")


@overload
def wait_for(
    bind: Engine | Session | scoped_session[Any],
    job_id: Any,
    *,
    timeout: timedelta | None,
    handler: ResultHandler[Coroutine[Any, Any, T]],
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[T]: ...
@overload
def wait_for(
    bind: Engine | Session | scoped_session[Any],
    job_id: Any,
    *,
    timeout: timedelta | None,
    handler: ResultHandler[T],
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[T]: ...
@overload
def wait_for(
    bind: Engine | Session | scoped_session[Any],
    job_id: Any,
    *,
    timeout: timedelta | None,
    annotation: type[T],
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[T]: ...
@overload
def wait_for(
    bind: Engine | Session | scoped_session[Any],
    job_id: Any,
    *,
    timeout: timedelta | None,
    annotation: Any = ...,
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[Any]: ...
def wait_for(
    bind: Engine | Session | scoped_session[Any],
    job_id: Any,
    *,
    timeout: timedelta | None,
    handler: ResultHandler[Any] | None = None,
    annotation: Any = None,
    serializer: Serializer | None = None,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
) -> JobResult[Any]:
    """Wait until a job has finished, and return what its handler has returned.

    The job must be committed. If its worker crashes, this waits on until another one finishes the
    job. No transaction is open meanwhile.

    On PostgreSQL with psycopg or asyncpg, a worker notifies those who wait, if the handler has
    ``keep_result=True``. Otherwise this polls: first after 20 milliseconds, then at growing
    intervals of up to a second. All callers of a process that wait with the same engine share one
    connection that listens, beside the pool, and one query, on a connection of the pool. The
    connection that listens is closed a second after the last of them has ended.

    Do not wait in a handler for a job that needs the same worker: if all of its threads wait, none
    of them runs it.

    :param bind: an Engine; or a Session or scoped_session that is in no transaction and bound to an
        engine. In asyncio, use ``sqlalchemy_proletarian.asyncio.wait_for``.
    :param job_id: the id of the job.
    :param timeout: how long to wait, a timedelta; None for no limit.
    :param handler: what ``@handlers(…)`` returned: the result is decoded to the type that it
        declares to return, by its serializer.
    :param annotation: the type to decode the result to, if there is no ``handler``; by default,
        plain values.
    :param serializer: the serializer of the worker, unless the handler has one of its own;
        :class:`.JSONSerializer` by default.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param archived_job_model: the mapped class of its archive; :class:`.ArchivedJob` by default.
    :return: the result.
    :raises TimeoutError: if the job has not finished in time; the message says where it is.
    :raises JobNotFoundError: if neither table has the job, because the transaction that enqueues it
        is not committed, for example.
    :raises JobFailedError: as :func:`result`; also NoResultError, PayloadError and
        DatabaseNotReadyError.
    :raises TypeError: if an argument is of the wrong type, or a session is bound to a Connection.
    :raises ValueError: if the session is in a transaction, the timeout is negative, or the job is
        not of the type of ``handler``.

    .. versionadded:: 0.1
    """
    from ..runtime.threads import Threads

    engine = engine_of(bind, job_model)
    reader = ResultReader(handler, annotation, serializer, job_model, archived_job_model)
    return wait(engine, job_id, timeout, reader, runtime=Threads())


def wait(
    engine: Engine,
    job_id: Any,
    timeout: timedelta | None,
    reader: ResultReader,
    *,
    runtime: Runtime,
    loop: Any = None,
) -> JobResult[Any]:
    """Wait as :func:`wait_for` does, in threads or in an event loop.

    :param loop: the running event loop, or None.
    """
    # Most programs do not wait.
    from .end_watch import look, waiting

    seconds = None
    if timeout is not None:
        if not isinstance(timeout, timedelta):
            msg = f"timeout must be a timedelta, or None for no limit, not {timeout!r}"
            raise TypeError(msg)
        seconds = as_timedelta("timeout", timeout).total_seconds()
    # The caller's own query raises errors about the id or the tables. It also finds no job before
    # it is committed, for which nobody should wait.
    with reader.explained(engine):
        row = look(engine, reader.ends, [job_id]).get(job_id)
    if row is None or row.status is not None or seconds == 0:
        return _read(reader, job_id, row, timeout, None)
    with waiting(engine, reader.ends, job_id, reader.models, runtime=runtime, loop=loop) as waiter:
        waiter.flag.wait(seconds)
    error = waiter.error
    if waiter.flag.is_set():
        if error is not None:
            raise error
        row = waiter.row
    else:
        try:
            row = look(engine, reader.ends, [job_id]).get(job_id)
        except Exception as lost:
            if not cannot_connect(lost):
                raise
            error = lost
    return _read(reader, job_id, row, timeout, error)


def _read(
    reader: ResultReader,
    job_id: Any,
    row: Any,
    timeout: timedelta | None,
    error: Exception | None,
) -> JobResult[Any]:
    if row is None or row.status is not None:
        return reader.read(job_id, row)
    last = f"; the last attempt to look failed: {error}" if error else ""
    msg = (
        f"the job {job_id} of type {row.job_type!r} has not finished within {timeout}: "
        f"{state_of(row)}{last}"
    )
    raise TimeoutError(msg) from error
