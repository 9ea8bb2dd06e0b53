"""The limit of how many different values a label or attribute of a metric has."""

from __future__ import annotations

from threading import Lock
from typing import Final

OTHER: Final = "(other)"
"""Stands for each value beyond the limit."""

_MOST: Final = 100


class Limited:
    """Limits how many different values a label or attribute has: 100, and "(other)"."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._lock = Lock()

    def __call__(self, value: str) -> str:
        """Return a value, or :data:`OTHER` if it is new and there are too many."""
        if value in self._seen:
            return value
        with self._lock:
            if len(self._seen) < _MOST:
                self._seen.add(value)
                return value
        return OTHER
