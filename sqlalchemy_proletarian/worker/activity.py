"""What the members of a worker are doing, as far as :mod:`.health` has to know.

Members note it in a few attributes, because they do it for each poll. Any thread may read them.
"""

from __future__ import annotations

from math import inf
from time import time
from typing import Final

from ..database.connections import cannot_connect

WORKING: Final = "working"
"""It uses the database, or runs a handler."""
WAITING: Final = "waiting"
"""It waits until a time."""
CALLED: Final = "called"
"""It waits until another member calls it."""


class Activity:
    """What one member is doing."""

    __slots__ = ("doing", "step", "until")

    def __init__(self) -> None:
        self.doing: str = WORKING
        self.until: float = inf
        """Until when it waits, as ``monotonic()`` counts."""
        self.step: int = 0
        """Counts what it has begun to do."""

    def work(self) -> None:
        """Note that the member begins to connect or to poll."""
        self.doing = WORKING
        self.step += 1

    def wait(self, until: float) -> None:
        """Note that the member waits until a time."""
        self.until = until
        self.doing = WAITING
        self.step += 1

    def wait_for_call(self) -> None:
        """Note that the member waits for another one."""
        self.doing = CALLED
        self.step += 1


class Contact:
    """When the members of a worker last used the database, and whether they could."""

    __slots__ = ("claimed_at", "error", "polled_at", "reached")

    def __init__(self) -> None:
        self.polled_at: float | None = None
        """When a poll last reached the database, as ``time()`` counts."""
        self.claimed_at: float | None = None
        """When jobs were last claimed."""
        self.reached: bool = False
        """Whether the last attempt to use the database has reached it."""
        self.error: str | None = None
        """The class of the error of the last attempt, if it failed."""

    def polled(self) -> None:
        """Note that a poll has reached the database."""
        self.polled_at = time()
        self.reached, self.error = True, None

    def claimed(self) -> None:
        """Note that a poll has claimed jobs."""
        self.claimed_at = self.polled_at = time()
        self.reached, self.error = True, None

    def failed(self, error: BaseException) -> None:
        """Note that the database could not be used."""
        self.reached = not cannot_connect(error)
        self.error = type(error).__name__
