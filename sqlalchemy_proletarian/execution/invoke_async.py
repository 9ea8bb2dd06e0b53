"""Calling a handler in an event loop: a coroutine in a task, a plain function in a thread."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, CancelledError, Future
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from threading import Thread
from typing import Any, Final, TypeAlias

from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import async_session
from sqlalchemy.orm import Session
from sqlalchemy.util import await_

from ..errors import JobTimeoutError
from ..handlers.handler import Handler
from ..lifecycle.run import Run
from ..retry import Snooze
from ..runtime.base import GRACE_PERIOD
from ..runtime.greenlet_bridge import Bridge
from ..runtime.steps import Cancellable
from ..telemetry.events import Events
from .guarded_session import JOINED
from .invoke import call_function, require_completed

_SIGNALS_SEEN: Final = 0.2
"""Seconds in which an event loop that was blocked handles its signals."""

_WITHOUT_THREADS: Final = timedelta(seconds=1)
"""The delay of a job for which the system could not start a thread."""

_Ended: TypeAlias = tuple[Any, BaseException | None]
"""What a handler returned, and what it raised."""


class InvokeInLoop:
    """Calls handlers from a task of the running event loop."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._loop = asyncio.get_running_loop()

    def __call__(
        self, run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any
    ) -> Any:
        """Call a handler and wait until it ends; see :class:`.Invoke`."""
        if run.end_reason is not None:
            raise run.end_reason
        if handler.signature.is_async:
            opened = None if session is None else async_session(session)
            work = partial(call_function, run, handler, payload, opened)
            result, error = await_(self._in_task(run, handler, work))
        else:
            _check_out(session)
            work = partial(call_function, run, handler, payload, session)
            result, error = await_(self._in_thread(run, handler, work))
        if error is None:
            return result
        if run.end_reason is not None:
            raise run.end_reason from error
        if isinstance(error, Exception):
            raise error
        msg = f"the handler raised {error!r}"
        raise RuntimeError(msg) from error

    async def _in_task(
        self, run: Run, handler: Handler[Any, ..., Any], work: Callable[[], Awaitable[Any]]
    ) -> _Ended:
        """Run an ``async`` handler in the task of the caller."""
        called = Cancellable(_outcome(work, handler.timeout))
        run.cancel = called.cancel
        try:
            ended = await called.run()
        finally:
            run.cancel = None
        if isinstance(ended, CancelledError):
            return None, ended
        if isinstance(ended[1], KeyboardInterrupt):
            # A signal may have interrupted a handler that blocked the event loop, which has seen no
            # signal meanwhile: let it request the end of the run.
            await asyncio.sleep(_SIGNALS_SEEN)
        return ended

    async def _in_thread(
        self, run: Run, handler: Handler[Any, ..., Any], work: Callable[[], Any]
    ) -> _Ended:
        bridge = Bridge(self._loop)
        ended: Future[_Ended] = self._loop.create_future()

        def call() -> Any:
            result = work()
            require_completed(result, handler)
            return result

        try:
            Thread(
                target=_run_in_thread,
                args=(bridge.driven(call), self._loop, ended),
                name=_name(run),
                daemon=True,
            ).start()
        except RuntimeError as error:  # the system cannot start another thread
            self._events.emit("polling-error", error)
            raise Snooze(_WITHOUT_THREADS) from error
        try:
            await asyncio.wait([ended], timeout=handler.timeout)
            if not ended.done():
                self._events.emit("job-timed-out", **run.about(), timeout=handler.timeout)
                await asyncio.wait([ended])
        except CancelledError:
            # The caller rolls the session back next: the thread must not use it any longer.
            await bridge.cut()
            await asyncio.wait([ended], timeout=GRACE_PERIOD)
            raise
        return ended.result()


async def _outcome(work: Callable[[], Awaitable[Any]], seconds: float | None) -> _Ended:
    """Run an ``async`` handler and return how it ended.

    The error is returned because a task passes a raised SystemExit on to the event loop.
    """
    if seconds is None:
        try:
            return await work(), None
        except BaseException as error:
            return None, error
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await work(), None
    except BaseException as error:
        if not limit.expired():
            return None, error
        late = JobTimeoutError(f"the handler ran longer than its timeout of {seconds:g} s")
        late.__cause__ = error
        return None, late


def _name(run: Run) -> str:
    return f"{run.job.job_type} {run.job.job_id}"


def _check_out(session: Session | None) -> None:
    """Check out a session's connection here, because async pools are not thread-safe."""
    if session is not None and not session.info.get(JOINED):
        # A session with several binds raises when the handler executes a statement.
        with suppress(UnboundExecutionError):
            session.connection()


def _run_in_thread(
    function: Callable[[], object], loop: AbstractEventLoop, ended: Future[_Ended]
) -> None:
    outcome: _Ended
    try:
        outcome = function(), None
    except BaseException as error:
        outcome = None, error
    with suppress(RuntimeError):  # the event loop is closed
        loop.call_soon_threadsafe(ended.set_result, outcome)
