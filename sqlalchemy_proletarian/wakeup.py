"""How idle threads wait: for a ring, for the next due job, or for the polling interval."""

from __future__ import annotations

from threading import Condition


class Doorbell:
    """Wakes threads that wait for work; a ring while nobody waits is not lost.

    A thread takes the count of rings before it looks for work, and waits for a later one.
    """

    def __init__(self) -> None:
        self._condition = Condition()
        self._rings = 0

    def rings(self) -> int:
        """Return how often it rang."""
        return self._rings

    def ring(self) -> None:
        """Wake every waiting thread."""
        with self._condition:
            self._rings += 1
            self._condition.notify_all()

    def wait(self, heard: int, seconds: float | None = None) -> None:
        """Wait until it rang more than ``heard`` times, at most ``seconds``."""
        with self._condition:
            self._condition.wait_for(lambda: self._rings > heard, timeout=seconds)
