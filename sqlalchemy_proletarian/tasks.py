"""How a worker waits in an event loop.

The worker's code is plain functions, run by SQLAlchemy's ``greenlet_spawn`` in tasks, as
``AsyncSession.run_sync`` does: what waits here hands an awaitable to the loop.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from functools import partial
from threading import Thread, get_ident
from types import TracebackType
from typing import Any

from sqlalchemy.ext.asyncio import async_session
from sqlalchemy.util import await_, greenlet_spawn

from .errors import JobTimeoutError
from .events import Events
from .extras import require_extra
from .handlers import Handler
from .runs import Run
from .waiting import refuse_coroutine
from .wakeup import Flag

_greenlet: Any = require_extra("greenlet", "asyncio").greenlet


class Tasks:
    """Waits as tasks of the running event loop do; plain functions run in threads."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._tasks: set[Task[Any]] = set()

    def flag(self) -> Flag:
        """Return a flag; see :class:`.Waiting`."""
        return _TaskFlag(self._loop)

    def lock(self) -> AbstractContextManager[Any]:
        """Return a lock; see :class:`.Waiting`."""
        return _TaskLock()

    def spawn(self, work: Callable[[], object], name: str) -> None:
        """Run ``work`` in a task."""
        task = self._loop.create_task(greenlet_spawn(work), name=name)
        self._tasks.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._tasks.discard)

    def call(self, run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any) -> None:
        """Await a coroutine here, call a plain function in a thread; see :class:`.Waiting`."""
        if not handler.signature.is_async:
            self._call_in_thread(run, handler, payload, session)
            return
        if session is not None:
            session = async_session(session)
        await_(_cancellable(run, handler.run(payload, session, run.row), handler.timeout))

    def _call_in_thread(
        self, run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any
    ) -> None:
        ended: Future[Any] = self._loop.create_future()
        call = partial(handler.run, payload, session, run.row)
        Thread(
            target=_run_in_thread,
            args=(call, self._loop, ended),
            name=f"{handler.job_type} {run.job.job_id}",
            daemon=True,
        ).start()
        try:
            result = await_(self._result(ended, run, handler.timeout))
        except Exception as error:
            if run.asked is not None:
                raise run.asked from error
            raise
        refuse_coroutine(result, handler)

    async def _result(self, ended: Future[Any], run: Run, seconds: float | None) -> Any:
        done, _ = await asyncio.wait([ended], timeout=seconds)
        if not done:
            self._events.emit("job-timed-out", **run.job.about(), timeout=seconds)
        return await ended


async def _cancellable(run: Run, work: Coroutine[Any, Any, Any], seconds: float | None) -> None:
    if run.asked is not None:
        work.close()
        raise run.asked
    task = asyncio.current_task()
    if task is None:  # this is a coroutine, so there is one
        raise AssertionError
    run.cancel = task.cancel
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            await work
    except BaseException as error:
        if run.asked is not None:
            raise run.asked from error
        if limit.expired():
            msg = f"the handler ran longer than its timeout of {seconds:g} s"
            raise JobTimeoutError(msg) from error
        if isinstance(error, asyncio.CancelledError) and not task.cancelling():
            msg = "the handler raised CancelledError, though nobody had cancelled it"
            raise RuntimeError(msg) from error
        raise
    finally:
        run.cancel = None
        if run.asked is not None:
            task.uncancel()


class _TaskFlag:
    """A flag that tasks wait for and any thread may set."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = get_ident()
        self._event = asyncio.Event()
        self._set = False

    def set(self) -> None:
        self._set = True
        if get_ident() == self._thread:
            self._event.set()
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._event.set)

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            await_(self._until(timeout))
        return self._set

    async def _until(self, seconds: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()


class _TaskLock:
    """A lock for plain functions that run in tasks."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    def __enter__(self) -> None:
        await_(self._lock.acquire())

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


class _LoopGreenlet(_greenlet):  # type: ignore[misc]  # imported by its name
    """Runs a function in a thread whose database calls are awaited in the event loop's thread.

    So a plain handler may use the session of a connection that belongs to the loop.
    """

    __sqlalchemy_greenlet_provider__ = True  # what SQLAlchemy's await_ looks for


def _run_in_thread(
    function: Callable[[], Any], loop: AbstractEventLoop, ended: Future[Any]
) -> None:
    try:
        outcome = partial(_set_result, ended, _driven(function, loop))
    except BaseException as error:
        outcome = partial(_set_exception, ended, error)
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(outcome)


def _driven(function: Callable[[], Any], loop: AbstractEventLoop) -> Any:
    context = _LoopGreenlet(function)
    result = context.switch()
    while not context.dead:
        try:
            value = asyncio.run_coroutine_threadsafe(_as_coroutine(result), loop).result()
        except BaseException:
            result = context.throw(*sys.exc_info())
        else:
            result = context.switch(value)
    return result


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _set_result(future: Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: Future[Any], error: BaseException) -> None:
    if not future.done():
        if isinstance(error, StopIteration):  # a future refuses it
            error = RuntimeError(f"the handler raised {error!r}")
        future.set_exception(error)
