"""How a worker waits in an event loop.

The worker's code is plain functions, run by SQLAlchemy's ``greenlet_spawn`` in tasks, as
``AsyncSession.run_sync`` does: what waits here hands an awaitable to the loop.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, CancelledError, Future, Task
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from functools import partial
from socket import socket
from threading import Thread, get_ident
from types import TracebackType
from typing import Any

from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import async_session
from sqlalchemy.orm import Session
from sqlalchemy.util import await_, greenlet_spawn

from ..errors import JobTimeoutError
from ..execution.guarded_session import JOINED
from ..handlers.registry import Handler
from ..lifecycle.run import Run
from ..retry import Snooze
from ..telemetry.events import Events
from .doorbell import Flag
from .greenlet_bridge import Bridge
from .threads import Waiting, refuse_unstarted

_PARTING = 1.0
"""Seconds that a thread has to end when the task that waits for it is cancelled."""

_GLANCE = 1.0
"""Seconds between looks at a line that the loop cannot watch."""

_PAUSE_WITHOUT_THREADS = timedelta(seconds=1)


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

    def readable(self, line: socket, seconds: float) -> None:
        """Wait for a line; see :class:`.Waiting`."""
        flag = self.flag()
        try:
            self._loop.add_reader(line, flag.set)
        except NotImplementedError:  # pragma: no cover - Windows' own loop
            flag.wait(_GLANCE)
            return
        try:
            flag.wait(seconds)
        finally:
            self._loop.remove_reader(line)

    def spawn(self, work: Callable[[], object], name: str) -> None:
        """Run ``work`` in a task."""
        # Not by the loop's factory: an eager task would begin in the caller's greenlet, and switch
        # back into it whenever it waits.
        task = Task(greenlet_spawn(work), loop=self._loop, name=name)
        self._tasks.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._tasks.discard)

    def apart(self, work: Callable[[Waiting], object], name: str) -> None:
        """Run ``work`` in a loop of its own: a coroutine that computes blocks all others here."""

        async def run() -> None:
            await greenlet_spawn(work, Tasks(self._events))

        Thread(target=lambda: asyncio.run(run()), name=name, daemon=True).start()

    def tell(self, message: Callable[[], object]) -> None:
        """Call ``message`` in the loop, when it comes to it; see :class:`.Waiting`."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(message)

    def ending(self) -> bool:
        """Tell whether the caller runs in a task that was spawned here and is being cancelled.

        Nobody here cancels those: it is the event loop that ends.
        """
        task = asyncio.current_task()
        return task in self._tasks and task.cancelling() > 0

    def call(self, run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any) -> None:
        """Await a coroutine in a task, call a plain function in a thread; see :class:`.Waiting`."""
        if run.asked is not None:
            raise run.asked
        if handler.signature.is_async:
            opened = None if session is None else async_session(session)
            work = partial(handler.run, payload, opened, run.row)
            error = await_(self._in_task(run, handler, work))
        else:
            _check_out(session)
            work = partial(handler.run, payload, session, run.row)
            error = await_(self._in_thread(run, handler, work))
        if error is None:
            return
        if run.asked is not None:
            raise run.asked from error
        if isinstance(error, Exception):
            raise error
        msg = f"the handler raised {error!r}"
        raise RuntimeError(msg) from error

    async def _in_task(
        self, run: Run, handler: Handler[Any, ..., Any], work: Callable[[], Awaitable[Any]]
    ) -> BaseException | None:
        # Of its own: what the handler does to its context, and what is done to it, ends with it.
        task = self._loop.create_task(_outcome(work, handler.timeout), name=_name(run))
        run.cancel = partial(_cancel, task)
        try:
            await _end_of(task)
        finally:
            run.cancel = None
        return CancelledError() if task.cancelled() else task.result()

    async def _in_thread(
        self, run: Run, handler: Handler[Any, ..., Any], work: Callable[[], Any]
    ) -> BaseException | None:
        bridge = Bridge(self._loop)
        ended: Future[BaseException | None] = self._loop.create_future()

        def call() -> None:
            refuse_unstarted(work(), handler)

        try:
            Thread(
                target=_run_in_thread,
                args=(bridge.driven(call), self._loop, ended),
                name=_name(run),
                daemon=True,
            ).start()
        except RuntimeError as error:  # the system has no more threads
            self._events.emit("polling-error", error)
            raise Snooze(_PAUSE_WITHOUT_THREADS) from error
        try:
            await asyncio.wait([ended], timeout=handler.timeout)
            if not ended.done():
                self._events.emit("job-timed-out", **run.job.about(), timeout=handler.timeout)
                await asyncio.wait([ended])
        except CancelledError:
            # The session will be rolled back here: the thread must not use it meanwhile.
            await bridge.cut()
            await asyncio.wait([ended], timeout=_PARTING)
            raise
        return ended.result()


async def _outcome(
    work: Callable[[], Awaitable[Any]], seconds: float | None
) -> BaseException | None:
    """Run an ``async`` handler and return what it raised.

    Returned, not raised: a task hands a SystemExit on to the event loop, which it ends.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            await work()
    except BaseException as error:
        if not limit.expired():
            return error
        late = JobTimeoutError(f"the handler ran longer than its timeout of {seconds:g} s")
        late.__cause__ = error
        return late
    return None


async def _end_of(task: Task[Any]) -> None:
    """Wait until a task has ended; being cancelled meanwhile, cancel it, and still wait."""
    cancelled: CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except CancelledError as error:
            cancelled = error
            _cancel(task)
    if cancelled is not None:
        raise cancelled


def _cancel(task: Task[Any]) -> None:
    # Once: the loop that ends cancels every task itself, and clean-up must not be cancelled too.
    if not task.cancelling():
        task.cancel()


def _name(run: Run) -> str:
    return f"{run.job.job_type} {run.job.job_id}"


def _check_out(session: Session | None) -> None:
    """Take a session's connection from its pool: in a loop, pools are not safe among threads."""
    if session is not None and not session.info.get(JOINED):
        with suppress(UnboundExecutionError):  # it has several: the handler's statement will tell
            session.connection()


def _run_in_thread(
    function: Callable[[], object], loop: AbstractEventLoop, ended: Future[BaseException | None]
) -> None:
    outcome: BaseException | None = None
    try:
        function()
    except BaseException as error:
        outcome = error
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(ended.set_result, outcome)


class _TaskFlag:
    """A flag that tasks wait for and any thread may set."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = get_ident()
        self._event = asyncio.Event()
        self._set = False

    def set(self) -> None:
        self._set = True
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            if get_ident() == self._thread:
                self._event.set()
            else:
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
