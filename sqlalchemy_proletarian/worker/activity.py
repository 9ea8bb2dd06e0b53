"""What the members of a worker are doing, as far as :mod:`.health` has to know.

The polling loop notes it in a few attributes, because it does so for each poll. Any thread may read
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

WORKING: Final = "working"
"""It uses the database, or runs a handler."""
WAITING: Final = "waiting"
"""It waits until a time."""
CALLED: Final = "called"
"""It waits until another member calls it."""


@dataclass(slots=True)
class Activity:
    """What one member is doing."""

    doing: str = WORKING
    until: float = inf
    """Until when it waits, as ``monotonic()`` counts."""
    step: int = 0
    """Counts what it has begun to do."""


@dataclass(slots=True)
class Contact:
    """When the members of a worker last used the database, and whether they could."""

    polled_at: float | None = None
    """When a poll last reached the database, as ``time()`` counts."""
    claimed_at: float | None = None
    """When jobs were last claimed."""
    reached: bool = False
    """Whether the last attempt to use the database has reached it."""
    error: str | None = None
    """The class of the error of the last attempt, if it failed."""
