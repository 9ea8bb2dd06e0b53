"""Increasing pauses between attempts to use a database that is not available."""

from __future__ import annotations

from typing import Final

from .base import Flag

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
"""Seconds between attempts; each pause is twice as long as the one before."""


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
