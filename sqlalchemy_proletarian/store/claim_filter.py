"""Which job types a worker claims, and where in a lane it starts to look for jobs.

A worker claims only jobs that it has a handler for. During a rolling deploy the others wait for
workers of the next release, and must not be locked or delayed. Reading past them takes time:
about 130 ms for a million rows. Reading past the index entries of jobs that have ended takes time
as well, about 50 ms for a million: VACUUM cannot remove them as long as a transaction is open that
is older.

So when two claims in a row are slow, the worker finds the first job in each lane that it may claim.
If that saves time, it starts there for a few seconds. It then starts at the beginning again,
because a job may be rescheduled to an earlier time, or be committed later than others that are due
after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from math import inf
from time import monotonic, perf_counter
from typing import Final, TypeAlias

Lane: TypeAlias = tuple[str, int]
"""A queue and a priority."""

MANY_QUEUES: Final = 20
"""With more queues than these, a claim looks first which lanes have jobs."""

SLOW: Final = 0.002
"""Seconds. A claim that takes longer is slow; after two of them, a search may be worth its time."""

START_LASTS: Final = 5.0
"""Seconds for which a worker starts a lane at its first job."""

EARLIER: Final = timedelta(seconds=10)
"""A lane without a due job starts so much before the time of the search: a job that is being
enqueued meanwhile is due before it is committed, by a clock that may be behind."""

_TRIES: Final = 3
"""How many searches in a row must save time."""

MAX_COUNTED: Final = 10_000
"""How many jobs of unknown types are counted."""


class LaneStarts:
    """Where one worker starts to look for jobs."""

    def __init__(self) -> None:
        self.starts: dict[Lane, datetime | None] = {}
        """The due time at which to start, by lane; valid before ``until``."""
        self.until: float = 0.0

    def start(self, lane: Lane) -> datetime | None:
        """Return the due time at which to start in a lane; None for its beginning."""
        return self.starts.get(lane) if monotonic() < self.until else None

    def forget(self) -> None:
        """Start at the beginning of each lane, because a job is due earlier than it was."""
        self.until = 0.0
        self.starts = {}

    def search(self, find: Callable[[], dict[Lane, datetime | None]]) -> None:
        """After slow claims, find starts, and use them for a while if that saves time.

        While earlier starts are in use, there is no new search.

        :param find: returns the due time of the first job by lane, looking from the start of each
            lane; None for its beginning. It is called again to see how long it takes from there,
            and several times, because a busy machine may delay any of the calls.
        """
        if monotonic() < self.until:
            return
        from_beginning = from_start = inf
        for _ in range(_TRIES):
            self.starts = {}
            began = perf_counter()
            self.starts = find()
            from_beginning = min(from_beginning, perf_counter() - began)
            self.until = monotonic() + START_LASTS
            began = perf_counter()
            find()
            from_start = min(from_start, perf_counter() - began)
            if not saves_time(from_beginning, from_start):
                self.starts = {}
                return


def saves_time(from_beginning: float, from_start: float) -> bool:
    """Return whether a search from the starts is faster than one from the beginning of the lanes.

    A round trip is part of both times, and varies.
    """
    return from_beginning > 2 * from_start + SLOW / 2


class ClaimFilter(LaneStarts):
    """The job types that one worker claims, and where it starts to look for them.

    :param types: returns the types. It is called for each claim, because handlers may be registered
        at any time.
    """

    def __init__(self, types: Callable[[], Sequence[str] | None]) -> None:
        super().__init__()
        self.types = types

    def known(self) -> list[str]:
        """Return the types that are claimed."""
        return list(self.types() or ())
