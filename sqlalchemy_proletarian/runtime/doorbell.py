"""Primitives with which idle parts of a worker wait for new jobs or for the end of a pause.

A :class:`Doorbell` is rung by commits of this process (:mod:`.announce`) and by a
:class:`.Listener`, which is notified of the commits of other processes.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Lock
from typing import Protocol

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between attempts after a database error; the pause is doubled each time."""


class Flag(Protocol):
    """The interface of :class:`threading.Event`. Any thread may set it."""

    def set(self) -> None: ...  # noqa: D102
    def is_set(self) -> bool: ...  # noqa: D102
    def wait(self, timeout: float | None = None) -> bool: ...  # noqa: D102


class Doorbell:
    """Wakes waiting threads or tasks, one per ring. A ring while none is waiting is not lost.

    Read the count of rings before you check for jobs, then wait for a later ring.
    """

    def __init__(self, new_flag: Callable[[], Flag] = Event) -> None:
        self._new_flag = new_flag
        self._lock = Lock()
        self._rings = 0
        self._waiting: list[Flag] = []

    def rings(self) -> int:
        """Return the number of rings."""
        return self._rings

    def ring(self, *, everybody: bool = False) -> None:
        """Wake one waiting thread or task, or all of them."""
        with self._lock:
            self._rings += 1
            woken = self._waiting if everybody else self._waiting[:1]
            self._waiting = self._waiting[len(woken) :]
        for flag in woken:
            flag.set()

    def wait(self, heard: int, seconds: float | None = None) -> None:
        """Wait until it has rung more than ``heard`` times, for at most ``seconds``."""
        with self._lock:
            if self._rings > heard:
                return
            flag = self._new_flag()
            self._waiting.append(flag)
        try:
            flag.wait(seconds)
        finally:
            with self._lock:
                if flag in self._waiting:
                    self._waiting.remove(flag)


class Backoff:
    """Increasing pauses between attempts, until one succeeds.

    :param stopping: a flag that ends a pause when it is set.
    """

    def __init__(self, stopping: Flag) -> None:
        self._stopping = stopping
        self._seconds = FIRST_PAUSE

    def reset(self) -> None:
        """Reset the pause after a successful attempt."""
        self._seconds = FIRST_PAUSE

    def pause(self) -> None:
        """Wait before the next attempt."""
        self._stopping.wait(self._seconds)
        self._seconds = min(2 * self._seconds, LONGEST_PAUSE)
