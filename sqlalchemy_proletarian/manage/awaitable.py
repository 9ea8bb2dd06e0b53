"""The awaitable variants of the functions of :mod:`sqlalchemy_proletarian.manage`.

They are public in :mod:`sqlalchemy_proletarian.asyncio`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.util import greenlet_spawn

from .. import manage
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
