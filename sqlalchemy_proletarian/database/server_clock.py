"""What time it is by the database, which all workers share, and how far from it this host's is."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from functools import partial
from threading import Lock

from sqlalchemy import Connection, Executable

from ..clock import Clock, require_aware, utcnow
from ..telemetry.events import Events
from .dialects import database_of

TOLERATED = 5.0
"""Seconds that a host's clock may be wrong before the worker says so."""

LOOK_AGAIN = 60.0
"""Seconds between looks at the database's clock, beside one at each connection."""

_TRIES = 3
_PRECISE = 0.1
"""Seconds: an answer that takes longer is asked for again."""

# Neither is moved when somebody sets the clock; the first goes on while the computer sleeps.
_seconds = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)


class SharedClock:
    """The database's clock, as of the last look at it.

    Leases are measured by it: one worker writes their ends, and others read them. If each went by
    its own clock, one that is wrong would take jobs from those that run them, or lose its own.

    :param clock: the worker's. If it is not that of the host, it was given for a reason, and
        decides about leases too.
    """

    def __init__(self, clock: Clock, events: Events) -> None:
        self._clock = clock
        self._events = events
        self._lock = Lock()
        self._read: tuple[datetime, float] | None = None
        self._look_at = 0.0
        self._told = 0.0

    def __call__(self) -> datetime:
        """Return the time."""
        if self._read is None:
            return require_aware("clock()", self._clock())
        then, at = self._read
        return then + timedelta(seconds=_seconds() - at)

    def look(self, connection: Connection, *, at_once: bool = False) -> None:
        """Look at the database's clock if it is time to; say so if the host's is far from it.

        :param connection: in no transaction.
        """
        if self._clock is not utcnow or (_seconds() < self._look_at and not at_once):
            return
        now = database_of(connection.dialect).now
        if now is None:  # the database is a file: this host's clock is the one there is
            return
        self._look_at = _seconds() + LOOK_AGAIN
        best = self._ask(connection, now)
        for _ in range(1, _TRIES):
            if best[0] > _PRECISE:
                best = min(best, self._ask(connection, now))
        took, at, database, host = best
        self._read = database, at
        ahead = (host - database).total_seconds()
        wrong = abs(ahead) - took / 2 > TOLERATED
        with self._lock:
            tell = wrong and abs(ahead - self._told) > TOLERATED
            self._told = ahead if tell else self._told if wrong else 0.0
        if tell:
            self._events.emit("clock-skew", seconds=round(ahead, 3))

    def _ask(
        self, connection: Connection, now: Executable
    ) -> tuple[float, float, datetime, datetime]:
        """Return how long it took, and for the middle of that: seconds, and both times."""
        with connection.begin():
            connection.execute(now)  # what comes with a transaction's first statement is not it
            sent = _seconds()
            database = connection.execute(now).scalar_one()
            took = _seconds() - sent
        host = utcnow() - timedelta(seconds=took / 2)
        return took, sent + took / 2, database, host
