"""The worker in an event loop, and async variants of the functions that send statements.

::

    async with AsyncQueueWorker(async_engine, handlers, concurrency=50):
        ...  # jobs run next to the application

:func:`.enqueue` adds to an AsyncSession without sending anything, and is called without ``await``.
With an AsyncConnection it sends a statement, so it has an async variant here.
The worker sends the same statements and makes the same decisions as the worker with threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias, Unpack, overload
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from . import manage
from .clock import Clock, utcnow
from .extras import require_extra
from .handlers.checks import declared_session_types, require_session
from .handlers.every_type import as_handlers
from .handlers.registry import Handlers
from .handlers.signature import is_async_session
from .manage.schedules import RecurringT, ScheduleOptions
from .models.defaults import ArchivedJob, Job, RecurringJob
from .models.mixins import ArchivedJobMixin, JobMixin
from .models.recurring import RecurringJobMixin
from .producer import bulk
from .producer import enqueue as one
from .producer.options import JobObjectOptions, JobOptions, JobT
from .producer.sessions import sync_session
from .producer.unique_options import OnConflict, UniqueWhile
from .unique import enqueue as unique
from .unique.conflicts import Enqueued
from .worker.in_session import NextJobOptions
from .worker.next_job import run_next_job

try:
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncSession,
        async_scoped_session,
    )
except ImportError:
    require_extra("greenlet", "asyncio")
    raise

from .execution.invoke_async import InvokeInLoop
from .manage.awaitable import (
    discard,
    failures,
    get_job,
    history,
    list_jobs,
    make_partitions,
    pause,
    pause_schedule,
    prune,
    reschedule,
    resume,
    resume_schedule,
    retry,
    retry_where,
    run_schedule,
    running,
    stats,
)
from .manage.awaitable_results import result, wait_for
from .worker.async_sessions import sync_maker
from .worker.in_loop import AsyncQueueWorker

__all__ = [
    "AsyncQueueWorker",
    "cancel",
    "discard",
    "enqueue",
    "enqueue_many",
    "enqueue_unique",
    "failures",
    "get_job",
    "history",
    "list_jobs",
    "make_partitions",
    "pause",
    "pause_schedule",
    "process_next_job",
    "prune",
    "reschedule",
    "result",
    "resume",
    "resume_schedule",
    "retry",
    "retry_where",
    "run_schedule",
    "running",
    "schedule",
    "stats",
    "unschedule",
    "wait_for",
]

AnyAsyncSession: TypeAlias = AsyncSession | async_scoped_session[Any]


@overload
async def enqueue(
    connection: AsyncConnection, job_type: JobMixin, **options: Unpack[JobObjectOptions]
) -> Any: ...
@overload
async def enqueue(
    connection: AsyncConnection,
    job_type: str,
    payload: Any = None,
    *,
    job_model: type[JobMixin],
    **options: Any,
) -> Any: ...
@overload
async def enqueue(
    connection: AsyncConnection,
    job_type: str,
    payload: Any = None,
    **options: Unpack[JobOptions],
) -> UUID: ...
async def enqueue(
    connection: AsyncConnection, job_type: str | JobMixin, payload: Any = None, **options: Any
) -> Any:
    """Insert a job in the connection's transaction and return its ``job_id``.

    With an AsyncSession, call :func:`sqlalchemy_proletarian.enqueue` without ``await``. A handler's
    own jobs are enqueued with ``await connection.run_sync(handler.enqueue, payload)``.

    See :func:`sqlalchemy_proletarian.enqueue` with a Connection for the parameters, the result and
    errors.

    :raises TypeError: if ``connection`` is not an AsyncConnection.

    .. versionadded:: 0.1
    """
    if not isinstance(connection, AsyncConnection):
        msg = (
            f"sqlalchemy_proletarian.asyncio.enqueue needs an AsyncConnection, not "
            f"{type(connection).__qualname__}: with a session, call "
            f"sqlalchemy_proletarian.enqueue(session, ...) without await"
        )
        raise TypeError(msg)
    call: Any = partial(one.enqueue, _sync(connection), job_type, payload, **options)
    return await greenlet_spawn(call)


def _sync(given: AnyAsyncSession | AsyncConnection) -> Session | Connection:
    """Return the Session or Connection behind an async one."""
    if not isinstance(given, AsyncConnection):
        return sync_session(given)
    if given.sync_connection is None:
        msg = "the AsyncConnection is not open: use `async with engine.begin() as connection`"
        raise TypeError(msg)
    return given.sync_connection


async def enqueue_many(
    session: AnyAsyncSession | AsyncConnection,
    rows: Iterable[Mapping[str, Any] | tuple[str, Any]],
    *,
    job_model: type[JobMixin] = Job,
    **options: Unpack[JobOptions],
) -> int:
    """Insert many jobs in the caller's transaction and return their number.

    See :func:`sqlalchemy_proletarian.enqueue_many` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    call = partial(bulk.enqueue_many, _sync(session), rows, job_model=job_model, **options)
    return await greenlet_spawn(call)


@overload
async def enqueue_unique(
    session: AnyAsyncSession,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    unique_while: UniqueWhile = ...,
    on_conflict: OnConflict = ...,
    job_model: type[JobT],
    **options: Any,
) -> Enqueued[JobT]: ...
@overload
async def enqueue_unique(
    session: AnyAsyncSession,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    unique_while: UniqueWhile = ...,
    on_conflict: OnConflict = ...,
    **options: Unpack[JobOptions],
) -> Enqueued[Job]: ...
@overload
async def enqueue_unique(
    session: AsyncConnection,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    unique_while: UniqueWhile = ...,
    on_conflict: OnConflict = ...,
    job_model: type[JobMixin],
    **options: Any,
) -> Enqueued[Any]: ...
@overload
async def enqueue_unique(
    session: AsyncConnection,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    unique_while: UniqueWhile = ...,
    on_conflict: OnConflict = ...,
    **options: Unpack[JobOptions],
) -> Enqueued[UUID]: ...
async def enqueue_unique(
    session: AnyAsyncSession | AsyncConnection,
    job_type: str,
    payload: Any = None,
    **options: Any,
) -> Enqueued[Any]:
    """Enqueue a job immediately, unless its queue has a job with the same key.

    See :func:`sqlalchemy_proletarian.enqueue_unique` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    call: Any = partial(unique.enqueue_unique, _sync(session), job_type, payload, **options)
    return await greenlet_spawn(call)


async def cancel(
    session: AnyAsyncSession,
    job_id: Any,
    *,
    reason: str = "cancelled",
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> Literal["cancelled", "requested"] | None:
    """Cancel a job in the session's transaction; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.cancel` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    call = partial(
        manage.cancel,
        sync_session(session),
        job_id,
        reason=reason,
        job_model=job_model,
        archived_job_model=archived_job_model,
        clock=clock,
    )
    return await greenlet_spawn(call)


@overload
async def schedule(
    session: AnyAsyncSession,
    name: str,
    job_type: str,
    payload: Any = None,
    *,
    recurring_job_model: type[RecurringT],
    **options: Any,
) -> RecurringT: ...
@overload
async def schedule(
    session: AnyAsyncSession,
    name: str,
    job_type: str,
    payload: Any = None,
    **options: Unpack[ScheduleOptions],
) -> RecurringJob: ...
async def schedule(
    session: AnyAsyncSession, name: str, job_type: str, payload: Any = None, **options: Any
) -> Any:
    """Create a recurring job, or change the one with this name; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.schedule` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    call = partial(manage.schedule, sync_session(session), name, job_type, payload, **options)
    return await greenlet_spawn(call)


async def unschedule(
    session: AnyAsyncSession,
    name: str,
    *,
    recurring_job_model: type[RecurringJobMixin] = RecurringJob,
) -> bool:
    """Delete a recurring job that :func:`schedule` has created; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.unschedule` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    call = partial(
        manage.unschedule, sync_session(session), name, recurring_job_model=recurring_job_model
    )
    return await greenlet_spawn(call)


async def process_next_job(
    session: AnyAsyncSession,
    handlers: Handlers | Callable[[str, Any], Any],
    **options: Unpack[NextJobOptions],
) -> bool | None:
    """Run the next due job in the session's transaction and commit it; for tests and the REPL.

    Handlers may be plain or ``async`` functions.

    See :func:`sqlalchemy_proletarian.process_next_job` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    registry = as_handlers(handlers)
    make_session = maker_for(registry, session)
    return await greenlet_spawn(
        run_next_job, sync_session(session), registry, InvokeInLoop, make_session, **options
    )


def maker_for(
    handlers: Handlers,
    session: AnyAsyncSession,
    *,
    remedy: str = "call process_next_job with such a session",
) -> Callable[..., Session]:
    """Return what makes the handlers' sessions, if the caller's session is ``session``.

    :param remedy: the advice in the error message.
    :raises HandlerError: if a handler is annotated with another session class.
    """
    one = session.registry() if isinstance(session, async_scoped_session) else session
    make = AsyncSession
    for wanted in declared_session_types(handlers):
        if is_async_session(wanted) and not issubclass(AsyncSession, wanted):
            make = type(one)
    for handler in handlers:
        require_session(handler, make.sync_session_class, make, remedy=remedy)
    return sync_maker(make)
