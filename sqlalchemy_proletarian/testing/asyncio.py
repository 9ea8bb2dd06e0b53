"""The functions of :mod:`sqlalchemy_proletarian.testing` for an ``AsyncSession``.

::

    async def test_sign_up(session):
        await sign_up(session, "ada@example.com")
        await assert_enqueued(session, "welcome", payload={"email": "ada@example.com"})
        [run] = await drain(session, handlers)
        assert run.outcome == "success"

Handlers may be of both kinds, as in an :class:`.AsyncQueueWorker`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar, Unpack, overload

from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from ..asyncio import AnyAsyncSession, maker_for
from ..clock import Clock, utcnow
from ..execution.invoke_async import InvokeInLoop
from ..handlers.every_type import as_handlers
from ..handlers.handler import Handler
from ..handlers.registry import Handlers
from ..models.defaults import Job
from ..models.mixins import JobMixin
from ..producer.options import JSON
from ..producer.sessions import sync_session
from ..serializers.json_serializer import Serializer
from . import assertions, draining, enqueued_jobs, performing
from .draining import DrainOptions
from .enqueued_jobs import EnqueuedJob, JobType
from .job_runs import JobRun
from .matching import ANY_PAYLOAD

__tracebackhide__ = True  # pytest shows the line of the test instead

__all__ = ["assert_enqueued", "assert_not_enqueued", "drain", "enqueued", "perform"]

PayloadT = TypeVar("PayloadT")


@overload
async def enqueued(
    session: AnyAsyncSession,
    job_type: Handler[PayloadT, ..., Any],
    *,
    queue: str | None = ...,
    job_model: type[JobMixin] = ...,
    serializer: Serializer = ...,
) -> list[EnqueuedJob[PayloadT]]: ...
@overload
async def enqueued(
    session: AnyAsyncSession,
    job_type: str | type[JobMixin] | None = ...,
    *,
    queue: str | None = ...,
    job_model: type[JobMixin] = ...,
    serializer: Serializer = ...,
) -> list[EnqueuedJob[Any]]: ...
async def enqueued(
    session: AnyAsyncSession, job_type: JobType = None, **options: Any
) -> list[EnqueuedJob[Any]]:
    """Return the jobs in their queues, as the session's transaction sees them.

    See :func:`sqlalchemy_proletarian.testing.enqueued` for the parameters and errors.

    .. versionadded:: 0.1
    """
    call = partial(enqueued_jobs.enqueued, sync_session(session), job_type, **options)
    return await greenlet_spawn(call)


@overload
async def assert_enqueued(
    session: AnyAsyncSession,
    job_type: Handler[PayloadT, ..., Any],
    *,
    payload: PayloadT = ...,
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    count: int | None = ...,
    job_model: type[JobMixin] = ...,
    serializer: Serializer = ...,
    **columns: Any,
) -> list[EnqueuedJob[PayloadT]]: ...
@overload
async def assert_enqueued(
    session: AnyAsyncSession,
    job_type: str | type[JobMixin] | None = ...,
    *,
    payload: Any = ...,
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    count: int | None = ...,
    job_model: type[JobMixin] = ...,
    serializer: Serializer = ...,
    **columns: Any,
) -> list[EnqueuedJob[Any]]: ...
async def assert_enqueued(
    session: AnyAsyncSession, job_type: JobType = None, **options: Any
) -> list[EnqueuedJob[Any]]:
    """Assert that jobs are enqueued, and return those that match.

    See :func:`sqlalchemy_proletarian.testing.assert_enqueued` for the parameters and errors.

    .. versionadded:: 0.1
    """
    call = partial(assertions.assert_enqueued, sync_session(session), job_type, **options)
    return await greenlet_spawn(call)


async def assert_not_enqueued(
    session: AnyAsyncSession,
    job_type: JobType = None,
    *,
    payload: Any = ANY_PAYLOAD,
    queue: str | None = None,
    process_at: datetime | None = None,
    process_in: timedelta | None = None,
    job_model: type[JobMixin] = Job,
    serializer: Serializer = JSON,
    **columns: Any,
) -> None:
    """Assert that no such job is enqueued; by default, that no job is enqueued at all.

    See :func:`sqlalchemy_proletarian.testing.assert_not_enqueued` for the parameters and errors.

    .. versionadded:: 0.1
    """
    call = partial(
        assertions.assert_not_enqueued,
        sync_session(session),
        job_type,
        payload=payload,
        queue=queue,
        process_at=process_at,
        process_in=process_in,
        job_model=job_model,
        serializer=serializer,
        **columns,
    )
    await greenlet_spawn(call)


async def drain(
    session: AnyAsyncSession,
    handlers: Handlers | Callable[[str, Any], Any],
    **options: Unpack[DrainOptions],
) -> list[JobRun]:
    """Run jobs in the session's transaction until none is due, and return their runs.

    See :func:`sqlalchemy_proletarian.testing.drain` for the parameters, the result and errors. The
    objects in the session are expired only by its commit: with ``expire_on_commit=False``, call
    ``await session.refresh(thing)`` to see what a handler wrote to an object that is loaded.

    .. versionadded:: 0.1
    """
    registry = as_handlers(handlers)
    make_session = maker_for(registry, session, remedy=draining.SUCH_A_SESSION)
    call = partial(
        draining.run_due, sync_session(session), registry, InvokeInLoop, make_session, **options
    )
    return await greenlet_spawn(call)


async def perform(
    handler: Handler[PayloadT, ..., Any],
    payload: PayloadT,
    *,
    session: AnyAsyncSession | None = None,
    job_model: type[JobMixin] = Job,
    serializer: Serializer = JSON,
    attempt: int = 1,
    clock: Clock = utcnow,
    **columns: Any,
) -> None:
    """Run one handler as a worker does, and raise what it raises.

    See :func:`sqlalchemy_proletarian.testing.perform` for the parameters and errors. The objects in
    the session are not expired.

    .. versionadded:: 0.1
    """
    registry = performing.registry_of(handler)
    unit = None
    make_session: Callable[..., Session] = Session
    if session is not None:
        unit = sync_session(session)
        make_session = maker_for(registry, session, remedy=performing.SUCH_A_SESSION)
    call = partial(
        performing.run_handler,
        handler,
        payload,
        unit,
        InvokeInLoop,
        make_session,
        job_model=job_model,
        serializer=serializer,
        attempt=attempt,
        clock=clock,
        columns=columns,
    )
    await greenlet_spawn(call)
