"""The awaitable variants of the functions of :mod:`sqlalchemy_proletarian.manage`.

They are public in :mod:`sqlalchemy_proletarian.asyncio`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.util import greenlet_spawn

from .. import manage
from ..clock import Clock, utcnow
from ..database.partitions import MONTHS_AHEAD
from ..models.defaults import ArchivedJob
from ..models.mixins import ArchivedJobMixin
from ..models.values import Status
from ..producer.sessions import sync_session

P = ParamSpec("P")
T = TypeVar("T")

_AnySession: TypeAlias = Session | scoped_session[Any]
_AnyAsyncSession: TypeAlias = AsyncSession | async_scoped_session[Any]


def _awaits(
    function: Callable[Concatenate[_AnySession, P], T],
) -> Callable[
    [Callable[[], None]], Callable[Concatenate[_AnyAsyncSession, P], Coroutine[Any, Any, T]]
]:
    """Return a decorator for the documented name of the awaitable variant of a function."""

    def decorate(
        documented: Callable[[], None],
    ) -> Callable[Concatenate[_AnyAsyncSession, P], Coroutine[Any, Any, T]]:
        async def call(session: _AnyAsyncSession, /, *args: P.args, **kwargs: P.kwargs) -> T:
            return await greenlet_spawn(partial(function, sync_session(session), *args, **kwargs))

        call.__name__ = call.__qualname__ = documented.__name__
        call.__doc__ = documented.__doc__
        call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return call

    return decorate


@_awaits(manage.pause)
def pause() -> None:
    """Pause a queue in the session's transaction; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.pause` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.resume)
def resume() -> None:
    """Let workers claim the jobs of a paused queue again, in the session's transaction.

    See :func:`sqlalchemy_proletarian.manage.resume` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.retry)
def retry() -> None:
    """Enqueue an archived job again, in the session's transaction; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.retry` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.retry_where)
def retry_where() -> None:
    """Enqueue all archived jobs again that meet the criteria, in the session's transaction.

    See :func:`sqlalchemy_proletarian.manage.retry_where` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.reschedule)
def reschedule() -> None:
    """Change when a waiting job is due, in the session's transaction; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.reschedule` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.discard)
def discard() -> None:
    """Archive a waiting job as a failure, in the session's transaction; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.discard` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.running)
def running() -> None:
    """Return the jobs that workers are running, those that began first at the beginning.

    See :func:`sqlalchemy_proletarian.manage.running` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.stats)
def stats() -> None:
    """Return the numbers of each queue and job type that has jobs, or has had some recently.

    See :func:`sqlalchemy_proletarian.manage.stats` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.list_jobs)
def list_jobs() -> None:
    """Return a page of queued or of archived jobs.

    See :func:`sqlalchemy_proletarian.manage.list_jobs` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.get_job)
def get_job() -> None:
    """Return all about a queued or archived job; None if there is no such job.

    See :func:`sqlalchemy_proletarian.manage.get_job` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.pause_schedule)
def pause_schedule() -> None:
    """Pause a recurring job, in the session's transaction; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.pause_schedule` for the parameters, the result and
    errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.resume_schedule)
def resume_schedule() -> None:
    """Let the ticks of a paused recurring job enqueue jobs again; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.resume_schedule` for the parameters, the result and
    errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.run_schedule)
def run_schedule() -> None:
    """Enqueue a job of a recurring job now, in the session's transaction; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.run_schedule` for the parameters, the result and
    errors.

    .. versionadded:: 0.1
    """


async def prune(
    session: _AnyAsyncSession | AsyncEngine,
    *,
    older_than: timedelta,
    status: Status | str | Collection[Status | str] | None = None,
    batch_size: int = 1000,
    progress: Callable[[int], object] | None = None,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> int:
    """Delete the archived jobs that finished some time ago.

    :param session: an AsyncEngine, to commit after each batch; or an AsyncSession.

    See :func:`sqlalchemy_proletarian.manage.prune` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    where = session.sync_engine if isinstance(session, AsyncEngine) else sync_session(session)
    call = partial(
        manage.prune,
        where,
        older_than=older_than,
        status=status,
        batch_size=batch_size,
        progress=progress,
        archived_job_model=archived_job_model,
        clock=clock,
    )
    return await greenlet_spawn(call)


async def make_partitions(
    engine: AsyncEngine,
    *,
    months: int = MONTHS_AHEAD,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> list[str]:
    """Make the partitions of this month and of the next ones in an archive partitioned by month.

    See :func:`sqlalchemy_proletarian.manage.make_partitions` for the parameters, the result and
    errors.

    .. versionadded:: 0.1
    """
    call = partial(
        manage.make_partitions,
        engine.sync_engine,
        months=months,
        archived_job_model=archived_job_model,
        clock=clock,
    )
    return await greenlet_spawn(call)


@_awaits(manage.history)
def history() -> None:
    """Return how many jobs ended in each part of the last hour, or of another time.

    See :func:`sqlalchemy_proletarian.manage.history` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """


@_awaits(manage.failures)
def failures() -> None:
    """Return the failures that were not retried, grouped by type and error.

    See :func:`sqlalchemy_proletarian.manage.failures` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
