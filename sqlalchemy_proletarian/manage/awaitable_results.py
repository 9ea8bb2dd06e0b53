"""The awaitable variants of ``manage.result`` and ``manage.wait_for``.

They are public in :mod:`sqlalchemy_proletarian.asyncio`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.util import greenlet_spawn

from .. import manage
from ..models.defaults import ArchivedJob, Job
from ..models.mixins import ArchivedJobMixin, JobMixin
from ..producer.sessions import sync_session
from ..runtime.tasks import Tasks
from ..serializers.json_serializer import Serializer
from .results import JobResult, ResultHandler, ResultReader, engine_of
from .waiting import wait

T = TypeVar("T")

_AnyAsyncSession: TypeAlias = AsyncSession | async_scoped_session[Any]


@overload
async def result(
    session: _AnyAsyncSession,
    job_id: Any,
    *,
    handler: ResultHandler[Coroutine[Any, Any, T]],
    **options: Any,
) -> JobResult[T]: ...
@overload
async def result(
    session: _AnyAsyncSession, job_id: Any, *, handler: ResultHandler[T], **options: Any
) -> JobResult[T]: ...
@overload
async def result(
    session: _AnyAsyncSession, job_id: Any, *, annotation: type[T], **options: Any
) -> JobResult[T]: ...
@overload
async def result(session: _AnyAsyncSession, job_id: Any, **options: Any) -> JobResult[Any]: ...
async def result(session: _AnyAsyncSession, job_id: Any, **options: Any) -> JobResult[Any]:
    """Return what the handler of a job has returned.

    See :func:`sqlalchemy_proletarian.manage.result` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    return await greenlet_spawn(partial(manage.result, sync_session(session), job_id, **options))


@overload
async def wait_for(
    bind: AsyncEngine | _AnyAsyncSession,
    job_id: Any,
    *,
    timeout: timedelta | None,  # noqa: ASYNC109
    handler: ResultHandler[Coroutine[Any, Any, T]],
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[T]: ...
@overload
async def wait_for(
    bind: AsyncEngine | _AnyAsyncSession,
    job_id: Any,
    *,
    timeout: timedelta | None,  # noqa: ASYNC109
    handler: ResultHandler[T],
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[T]: ...
@overload
async def wait_for(
    bind: AsyncEngine | _AnyAsyncSession,
    job_id: Any,
    *,
    timeout: timedelta | None,  # noqa: ASYNC109
    annotation: type[T],
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[T]: ...
@overload
async def wait_for(
    bind: AsyncEngine | _AnyAsyncSession,
    job_id: Any,
    *,
    timeout: timedelta | None,  # noqa: ASYNC109
    annotation: Any = ...,
    serializer: Serializer | None = ...,
    job_model: type[JobMixin] = ...,
    archived_job_model: type[ArchivedJobMixin] = ...,
) -> JobResult[Any]: ...
async def wait_for(
    bind: AsyncEngine | _AnyAsyncSession,
    job_id: Any,
    *,
    timeout: timedelta | None,  # noqa: ASYNC109 - the error of asyncio.timeout says nothing
    handler: ResultHandler[Any] | None = None,
    annotation: Any = None,
    serializer: Serializer | None = None,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
) -> JobResult[Any]:
    """Wait until a job has finished, and return what its handler has returned.

    All callers in one event loop that wait with the same engine share a connection.

    See :func:`sqlalchemy_proletarian.manage.wait_for` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    unit = bind.sync_engine if isinstance(bind, AsyncEngine) else sync_session(bind)
    engine = engine_of(unit, job_model)
    reader = ResultReader(handler, annotation, serializer, job_model, archived_job_model)
    loop = asyncio.get_running_loop()
    call = partial(wait, engine, job_id, timeout, reader, runtime=Tasks(), loop=loop)
    return await greenlet_spawn(call)
