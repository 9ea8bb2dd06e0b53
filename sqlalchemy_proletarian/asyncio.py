"""The worker in an event loop, and async variants of the functions that send statements.

::

    async with AsyncQueueWorker(async_engine, handlers, concurrency=50):
        ...  # jobs run next to the application

:func:`.enqueue` has no async variant: it only adds to the session, and is called without ``await``.
The worker sends the same statements and makes the same decisions as the worker with threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias, Unpack, overload

from sqlalchemy.util import greenlet_spawn

from . import manage
from .clock import Clock, utcnow
from .extras import require_extra
from .handlers.checks import require_session
from .handlers.registry import Handlers, as_handlers
from .manage.schedules import RecurringT, ScheduleOptions
from .models.defaults import ArchivedJob, Job, RecurringJob
from .models.mixins import ArchivedJobMixin, JobMixin
from .models.recurring import RecurringJobMixin
from .producer import bulk, unique
from .producer.options import JobOptions, JobT
from .producer.sessions import sync_session
from .worker.next_job import NextJobOptions, run_next_job

try:
    from sqlalchemy.ext.asyncio import (
        AsyncSession,
        async_scoped_session,
    )
except ImportError:
    require_extra("greenlet", "asyncio")
    raise

from .execution.invoke_async import InvokeInLoop
from .worker.async_sessions import sync_maker
from .worker.in_loop import AsyncQueueWorker

__all__ = [
    "AsyncQueueWorker",
    "cancel",
    "enqueue_many",
    "enqueue_unique",
    "process_next_job",
    "schedule",
    "unschedule",
]

AnyAsyncSession: TypeAlias = AsyncSession | async_scoped_session[Any]


async def enqueue_many(
    session: AnyAsyncSession,
    rows: Iterable[Mapping[str, Any] | tuple[str, Any]],
    *,
    job_model: type[JobMixin] = Job,
    **options: Unpack[JobOptions],
) -> int:
    """Insert many jobs in the session's transaction and return their number.

    See :func:`sqlalchemy_proletarian.enqueue_many` for the parameters and errors.

    .. versionadded:: 0.1
    """
    call = partial(bulk.enqueue_many, sync_session(session), rows, job_model=job_model, **options)
    return await greenlet_spawn(call)


@overload
async def enqueue_unique(
    session: AnyAsyncSession,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    job_model: type[JobT],
    **options: Any,
) -> JobT | None: ...
@overload
async def enqueue_unique(
    session: AnyAsyncSession,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    **options: Unpack[JobOptions],
) -> Job | None: ...
async def enqueue_unique(
    session: AnyAsyncSession, job_type: str, payload: Any = None, **options: Any
) -> Any:
    """Insert a job, unless the queue has a waiting or running job with the same key.

    See :func:`sqlalchemy_proletarian.enqueue_unique` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    call = partial(unique.enqueue_unique, sync_session(session), job_type, payload, **options)
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

    As :func:`sqlalchemy_proletarian.process_next_job`, with handlers of both kinds.

    .. versionadded:: 0.1
    """
    registry = as_handlers(handlers)
    one = session.registry() if isinstance(session, async_scoped_session) else session
    coroutines = [handler for handler in registry if handler.signature.is_async]
    make = AsyncSession
    for handler in coroutines:
        if not all(issubclass(AsyncSession, kind) for kind in handler.signature.session_types):
            make = type(one)
    for handler in registry:
        gets = make if handler.signature.is_async else make.sync_session_class
        require_session(handler, gets, remedy="call process_next_job with such a session")
    return await greenlet_spawn(
        run_next_job, sync_session(session), registry, InvokeInLoop, sync_maker(make), **options
    )
