"""A counting signal: commits ring it, and idle threads or tasks wait for it.

Commits of this process ring it directly (:mod:`..wakeup.announce`); commits of other processes ring
it through the :class:`.Listener`.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Lock

from .base import Flag


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

    def wait(self, rings: int, seconds: float | None = None) -> None:
        """Wait until it has rung more than ``rings`` times, for at most ``seconds``."""
        with self._lock:
            if self._rings > rings:
                return
            flag = self._new_flag()
            self._waiting.append(flag)
        try:
            flag.wait(seconds)
        finally:
            with self._lock:
                if flag in self._waiting:
                    self._waiting.remove(flag)
