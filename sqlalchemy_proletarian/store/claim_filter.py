"""Jobs of types that a worker knows, and of types that it does not.

A worker claims only what it has a handler for: in a rolling deploy the others are for the workers
of the next release, and must neither be delayed nor locked. To read over them takes time, some
130 milliseconds for a million. So when a claim was slow, the worker finds out where in each lane
the first known job is, and if that is far from the beginning, starts there for some seconds. Then
it looks from the beginning again, because a job may come back with an old due time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection

from ..telemetry.events import Events

SLOW: Final = 0.02
"""Seconds that a claim may take before the worker looks where to start; and that it takes to read
over so many jobs that it is worth it."""

SHORT_CUT: Final = 5.0
"""Seconds for which a worker starts there."""

REPORT_AGAIN: Final = 60.0
"""Seconds between two reports of a type that no handler is registered for."""

MOST: Final = 10_000
"""How many jobs of unknown types are counted."""


class KnownTypes:
    """Which types a worker claims, and where it starts to look for them.

    :param names: returns the types, anew for each claim: handlers may be registered at any time.
    """

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self.names = names
        self._since: dict[tuple[str, int], datetime | None] = {}
        self._until = 0.0

    def since(self, queue: str, priority: int) -> datetime | None:
        """Return the due time from which on a lane is read; None for all of it."""
        return self._since.get((queue, priority)) if monotonic() < self._until else None

    def is_slow(self, seconds: float) -> bool:
        """Return whether a claim that took so long is a reason to find out where to start."""
        return seconds > SLOW and monotonic() >= self._until

    def start_at(
        self, firsts: dict[tuple[str, int], datetime | None], now: datetime, seconds: float
    ) -> None:
        """Start there for a while, if that saves time.

        :param firsts: for each lane when its first job of a known type was due, if it has one.
        :param now: until when there was none in the other lanes.
        :param seconds: how long it took to find them.
        """
        slow = seconds > SLOW
        self._since = {lane: first or now for lane, first in firsts.items()} if slow else {}
        self._until = monotonic() + SHORT_CUT


class UnknownTypes:
    """Reports the types that are due and that no handler is registered for, each once a minute."""

    def __init__(self, count: Callable[[Connection], dict[str, int]], events: Events) -> None:
        self._count = count
        self._events = events
        self._next = monotonic()

    def __call__(self, connection: Connection) -> None:
        """Report them, if it is time to look.

        :param connection: in no transaction.
        """
        if monotonic() < self._next:
            return
        self._next = monotonic() + REPORT_AGAIN
        for job_type, jobs in sorted(self._count(connection).items()):
            data: dict[str, Any] = {"job_type": job_type, "jobs": jobs}
            self._events.emit("job-type-unknown", **data)
