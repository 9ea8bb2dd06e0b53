"""The data of events as words, for log messages that people read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

_SHORT: Final = [(0.00995, "ms", 1000, 1), (0.9995, "ms", 1000, 0), (99.95, "s", 1, 1)]
"""Durations below so many seconds: the unit, by what to multiply, and how many decimals."""


def short(seconds: float) -> str:
    """Return a duration as people write it: ``0.4ms``, ``12ms``, ``1.5s``, ``2m05s``, ``1h30m``."""
    for below, unit, factor, digits in _SHORT:
        if seconds < below:
            return f"{seconds * factor:.{digits}f}{unit}"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def _instant(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


WORDS: Final[Mapping[str, Callable[[Any], str]]] = {
    "wait": short,
    "duration": short,
    "timeout": short,
    "process_at": _instant,
    "tick": _instant,
}
"""How the values of some names of an event's data are written; others are written by ``str``."""
