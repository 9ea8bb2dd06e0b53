"""The runtime of a worker with threads.

Starting a thread takes longer than many jobs do, so a thread that has ended its work waits a moment
for more. (A ThreadPoolExecutor does that, too, but the interpreter does not end before its threads:
a handler that hangs would keep the process alive.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import Context
from queue import Empty, SimpleQueue
from selectors import EVENT_READ, DefaultSelector
from socket import socket
from threading import Event, Lock, Thread, current_thread
from typing import Any, Final

from .base import Flag, Runtime, Work

_IDLE: Final = 1.0
"""Seconds for which a thread waits for more work."""


class _Worker:
    """A thread that runs one piece of work after the other."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._work: SimpleQueue[tuple[Callable[[], object], str]] = SimpleQueue()

    def run(self, work: Callable[[], object], name: str) -> None:
        self._work.put((work, name))

    def start(self) -> None:
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        thread = current_thread()
        while True:
            try:
                work, thread.name = self._work.get(timeout=_IDLE)
            except Empty:
                if self._threads.remove(self):
                    return
                continue  # work is on its way
            # As in a new thread: no work sees the context variables of the one before.
            Context().run(work)
            del work
            self._threads.add(self)


class _Turns:
    """Functions that threads run in turn.

    A thread calls the next one before it runs a function. Until that one is awake, it goes on with
    the next function itself: functions that end at once take one thread, and those that wait take
    as many as there are functions.
    """

    def __init__(self, threads: Threads, works: Iterable[Work]) -> None:
        self._threads = threads
        self._works = deque(works)
        self._lock = Lock()
        self._is_called = False

    def start(self) -> None:
        if self._works:
            self._threads.spawn(self._run, self._works[0][1])

    def _run(self) -> None:
        thread = current_thread()
        self._is_called = False
        while True:
            with self._lock:
                if not self._works:
                    return
                work, thread.name = self._works.popleft()
                calls = bool(self._works) and not self._is_called
                self._is_called = self._is_called or calls
            if calls:
                self._call()
            Context().run(work)

    def _call(self) -> None:
        try:
            self._threads.spawn(self._run, current_thread().name)
        except RuntimeError:  # the system cannot start another thread: this one does it all
            self._is_called = False


class Threads:
    """Waits by blocking a thread."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._lock = Lock()

    def flag(self) -> Flag:
        """Return a flag; see :class:`.Runtime`."""
        return Event()

    def lock(self) -> AbstractContextManager[Any]:
        """Return a lock; see :class:`.Runtime`."""
        return Lock()

    def wait_readable(self, sock: socket, seconds: float) -> None:
        """Wait for a socket; see :class:`.Runtime`."""
        with DefaultSelector() as selector:
            selector.register(sock, EVENT_READ)
            selector.select(seconds)

    def spawn(self, work: Callable[[], object], name: str) -> None:
        """Run ``work`` in a daemon thread."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker(self)
            worker.start()
        worker.run(work, name)

    def spawn_all(self, works: Iterable[Work]) -> None:
        """Run functions in daemon threads; see :class:`.Runtime`."""
        _Turns(self, works).start()

    def add(self, worker: _Worker) -> None:
        """Note that a thread waits for work."""
        with self._lock:
            self._idle.append(worker)

    def remove(self, worker: _Worker) -> bool:
        """Let a thread end; return False if it has been given work."""
        with self._lock:
            if worker in self._idle:
                self._idle.remove(worker)
                return True
            return False

    def spawn_isolated(
        self,
        work: Callable[[Runtime], object],
        name: str,
        when_ended: Callable[[], object],
    ) -> None:
        """Run ``work`` in a thread; see :class:`.Runtime`."""

        def run() -> None:
            try:
                work(self)
            finally:
                when_ended()

        self.spawn(run, name)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call ``function`` at once; see :class:`.Runtime`."""
        function()

    def is_cancelled(self) -> bool:
        """Return False, because threads are not cancelled."""
        return False
