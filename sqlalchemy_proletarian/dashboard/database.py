"""The sessions of the dashboard: each page reads in one, with a limit on the time of statements."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar, cast

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool

from ..database.dialects import database_of

T = TypeVar("T")

Bind: TypeAlias = Any
"""An Engine, AsyncEngine, sessionmaker or async_sessionmaker."""


class Database:
    """Runs functions with a Session of the application's database.

    :param bind: as for :func:`.dashboard`.
    :param timeout: how long a statement may take.
    :raises TypeError: if ``bind`` is nothing of that.
    """

    def __init__(self, bind: Bind, timeout: timedelta) -> None:
        self._timeout = timeout
        self._make: Callable[[], Any] = bind
        self._is_async = False
        if isinstance(bind, Engine):
            self._make = sessionmaker(bind)
        elif not isinstance(bind, sessionmaker):
            self._make = _async_maker(bind)
            self._is_async = True

    async def run(self, function: Callable[[Session], T]) -> T:
        """Call a function with a session, which is committed if it returns."""
        if self._is_async:
            async with self._make() as session:
                result = await session.run_sync(self._limited, function)
                await session.commit()
                return cast("T", result)
        return await run_in_threadpool(self._run, function)

    def _run(self, function: Callable[[Session], T]) -> T:
        with self._make() as session:
            result = self._limited(session, function)
            session.commit()
            return result

    def _limited(self, session: Session, function: Callable[[Session], T]) -> T:
        session.expire_on_commit = False  # the page is rendered after the commit
        connection = session.connection()
        limit = database_of(connection.dialect).limit_statements
        if limit is not None:
            connection.exec_driver_sql(limit.format(int(self._timeout.total_seconds() * 1000)))
        return function(session)


def _async_maker(bind: Bind) -> Callable[[], Any]:
    try:
        from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
    except ImportError:
        pass
    else:
        if isinstance(bind, AsyncEngine):
            return async_sessionmaker(bind)
        if isinstance(bind, async_sessionmaker):
            return bind
    msg = (
        f"a dashboard needs an Engine, an AsyncEngine, a sessionmaker or an async_sessionmaker, "
        f"not {bind!r}"
    )
    raise TypeError(msg)
