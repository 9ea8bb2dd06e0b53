"""What idle parts of a worker wait for: a ring, the end of a pause.

A :class:`Doorbell` is rung by this process's own commits (:mod:`.announce`) and by a
:class:`.Listener`, which hears of the commits of others.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Lock
from typing import Protocol

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between attempts to do again what the database refused, doubled each time."""


class Flag(Protocol):
    """What :class:`threading.Event` is for threads. Any thread may set it."""

    def set(self) -> None: ...  # noqa: D102
    def is_set(self) -> bool: ...  # noqa: D102
    def wait(self, timeout: float | None = None) -> bool: ...  # noqa: D102


class Doorbell:
    """Wakes those who wait for work, one a ring; a ring while nobody waits is not lost.

    Take the count of rings before you look for work, and wait for a later one.
    """

    def __init__(self, new_flag: Callable[[], Flag] = Event) -> None:
        self._new_flag = new_flag
        self._lock = Lock()
        self._rings = 0
        self._waiting: list[Flag] = []

    def rings(self) -> int:
        """Return how often it rang."""
        return self._rings

    def ring(self, *, everybody: bool = False) -> None:
        """Wake one who waits, or all of them."""
        with self._lock:
            self._rings += 1
            woken = self._waiting if everybody else self._waiting[:1]
            self._waiting = self._waiting[len(woken) :]
        for flag in woken:
            flag.set()

    def wait(self, heard: int, seconds: float | None = None) -> None:
        """Wait until it rang more than ``heard`` times, at most ``seconds``."""
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
    """Growing pauses between attempts, until one succeeds.

    :param stopping: ends a pause when it is set.
    """

    def __init__(self, stopping: Flag) -> None:
        self._stopping = stopping
        self._seconds = FIRST_PAUSE

    def reset(self) -> None:
        """Note that an attempt succeeded: the next pause is a short one."""
        self._seconds = FIRST_PAUSE

    def pause(self) -> None:
        """Wait before the next attempt."""
        self._stopping.wait(self._seconds)
        self._seconds = min(2 * self._seconds, LONGEST_PAUSE)
