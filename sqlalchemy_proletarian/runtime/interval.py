"""Work that is due at most once per interval."""

from __future__ import annotations

from time import monotonic


class Interval:
    """Tells when the next interval has begun; the first one begins at once.

    :param seconds: the length of an interval.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = monotonic()

    def end(self) -> None:
        """Let the next interval begin at once."""
        self._next = monotonic()

    def has_passed(self) -> bool:
        """Return whether the interval has passed; if so, the next one begins."""
        now = monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True
