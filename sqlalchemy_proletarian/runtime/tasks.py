"""The runtime of a worker in an event loop.

The worker's code is plain functions. SQLAlchemy's ``greenlet_spawn`` runs them in tasks, as
``AsyncSession.run_sync`` does: code that waits hands an awaitable to the event loop.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Task
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, suppress
from socket import socket
from threading import Thread, get_ident
from types import TracebackType
from typing import Any, Final

from sqlalchemy.util import await_, greenlet_spawn

from .base import Flag, Runtime, Work
from .steps import Steps

_POLL_SOCKET: Final = 1.0
"""Seconds to wait for a socket that the event loop cannot watch."""


class Tasks:
    """Waits by suspending a task of the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[Task[Any]] = set()

    def flag(self) -> Flag:
        """Return a flag; see :class:`.Runtime`."""
        return _TaskFlag(self._loop)

    def lock(self) -> AbstractContextManager[Any]:
        """Return a lock; see :class:`.Runtime`."""
        return _TaskLock()

    def wait_readable(self, sock: socket, seconds: float) -> None:
        """Wait for a socket; see :class:`.Runtime`."""
        flag = self.flag()
        try:
            self._loop.add_reader(sock, flag.set)
        except NotImplementedError:  # pragma: no cover - the proactor event loop of Windows
            flag.wait(_POLL_SOCKET)
            return
        try:
            flag.wait(seconds)
        finally:
            self._loop.remove_reader(sock)

    def spawn(self, work: Callable[[], object], name: str) -> None:
        """Run ``work`` in a task."""
        self._create_task(greenlet_spawn(work), name)

    def spawn_all(self, works: Iterable[Work]) -> None:
        """Run functions in one task until one of them waits, the others in the next task."""
        left = deque(works)
        if left:
            self._create_task(self._run_until_one_waits(left), left[0][1])

    async def _run_until_one_waits(self, works: deque[Work]) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        others, waits = works, False

        def run() -> None:
            while others and not waits:
                work, name = others.popleft()
                task.set_name(name)
                work()

        def hand_over() -> None:
            nonlocal waits
            waits = True
            self.spawn_all(others)

        await Steps(greenlet_spawn(run), when_waiting=hand_over)

    def _create_task(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        # Not with the loop's task factory: an eager task would begin in the caller's greenlet, and
        # switch back to it whenever it waits.
        task = Task(coroutine, loop=self._loop, name=name)
        self._tasks.add(task)  # the event loop only keeps weak references to tasks
        task.add_done_callback(self._tasks.discard)

    def spawn_isolated(
        self,
        work: Callable[[Runtime], object],
        name: str,
        when_ended: Callable[[], object],
    ) -> None:
        """Run ``work`` in an event loop of its own: a coroutine that computes blocks all others."""

        async def run() -> None:
            await greenlet_spawn(work, Tasks())

        def run_loop() -> None:
            try:
                asyncio.run(run())
            finally:
                when_ended()

        Thread(target=run_loop, name=name, daemon=True).start()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Schedule ``function`` in the event loop; see :class:`.Runtime`."""
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(function)

    def is_cancelled(self) -> bool:
        """Return whether the caller runs in a task that was spawned here and is being cancelled.

        Only the end of the event loop cancels such a task.
        """
        task = asyncio.current_task()
        return task in self._tasks and task.cancelling() > 0


class _TaskFlag:
    """A flag that tasks wait for and any thread may set."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = get_ident()
        self._event = asyncio.Event()
        self._set = False

    def set(self) -> None:
        self._set = True
        with suppress(RuntimeError):  # the event loop is closed
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
