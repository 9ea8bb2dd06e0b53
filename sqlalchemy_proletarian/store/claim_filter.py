"""Which job types a worker claims, and where in a lane it starts to look for them.

A worker claims only jobs that it has a handler for. During a rolling deploy the others wait for
workers of the next release, and must not be locked or delayed. Reading past them takes time:
about 130 ms for a million rows. So when a claim is slow, the worker finds the first job of a known
type in each lane, and starts there for a few seconds. It then starts at the beginning again,
because a job may be rescheduled to an earlier time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from time import monotonic
from typing import Final, TypeAlias

Lane: TypeAlias = tuple[str, int]
"""A queue and a priority."""

MANY_QUEUES: Final = 20
"""With more queues than these, a claim looks first which lanes have jobs."""

SLOW: Final = 0.02
"""Seconds. A claim that takes longer is slow, and so is a search that is worth remembering."""

SLOW_WITH_LIMITS: Final = 0.002
"""The same for a worker that parks jobs. Their rows have moved to the end of their lanes, but on
PostgreSQL a claim still reads the places in the index where they were, as long as a transaction is
open that is older."""

START_LASTS: Final = 5.0
"""Seconds for which a worker starts a lane at the first job of a known type."""

MAX_COUNTED: Final = 10_000
"""How many jobs of unknown types are counted."""


class ClaimFilter:
    """The job types that one worker claims.

    :param types: returns the types. It is called for each claim, because handlers may be registered
        at any time.
    """

    def __init__(self, types: Callable[[], Sequence[str] | None]) -> None:
        self.types = types
        self.slow: float = SLOW
        """What is slow, in seconds."""
        self.starts: dict[Lane, datetime | None] = {}
        """The due time at which to start, by lane; valid before ``until``."""
        self.until: float = 0.0

    def known(self) -> list[str]:
        """Return the types that are claimed."""
        return list(self.types() or ())

    def start(self, lane: Lane) -> datetime | None:
        """Return the due time at which to start in a lane; None for its beginning."""
        return self.starts.get(lane) if monotonic() < self.until else None

    def forget(self) -> None:
        """Start at the beginning of each lane, because a job is due earlier than it was."""
        self.until = 0.0
        self.starts = {}

    def should_search(self, seconds: float) -> bool:
        """Return whether to search for starts, after a claim that took so many seconds."""
        return seconds > self.slow and monotonic() >= self.until

    def remember(self, starts: dict[Lane, datetime | None], seconds: float) -> None:
        """Start at these times for a while, if that saves time.

        :param starts: the due time at which to start, by lane; None for the beginning of the lane.
        :param seconds: how long it took to find them.
        """
        self.starts = starts if seconds > self.slow else {}
        self.until = monotonic() + START_LASTS
