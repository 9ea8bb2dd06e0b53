"""The database's clock, which all workers share, and the skew of this host's clock."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from functools import partial
from threading import Lock

from sqlalchemy import Connection, Executable

from ..clock import Clock, is_of_the_system, require_aware, utcnow
from ..telemetry.events import Events
from .dialects import database_of

MAX_SKEW = 5.0
"""Seconds by which a host's clock may be wrong before the worker reports it."""

READ_INTERVAL = 60.0
"""Seconds between reads of the database's clock; it is also read at each new connection."""

_TRIES = 3
_PRECISE = 0.1
"""Seconds. If an answer takes longer, the clock is read again."""

# Neither changes when the clock is set; the first also counts time while the computer sleeps.
_seconds = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)


class SharedClock:
    """The database's clock, extrapolated from the last time it was read.

    Leases use it: one worker writes the time when a lease expires, and others read it. If each
    worker used its own clock, a worker with a wrong clock would take jobs that other workers are
    still running, or would lose its own jobs.

    :param clock: the worker's clock. If it is not the default clock of the host, it is used for
        leases too, instead of the database's clock.
    """

    def __init__(self, clock: Clock, events: Events) -> None:
        self._clock = clock
        self._events = events
        self._lock = Lock()
        self._read: tuple[datetime, float] | None = None
        self._read_at = 0.0
        self._reported = 0.0

    def __call__(self) -> datetime:
        """Return the time."""
        if self._read is None:
            return require_aware("clock()", self._clock())
        then, at = self._read
        return then + timedelta(seconds=_seconds() - at)

    def check(self, connection: Connection, *, at_once: bool = False) -> None:
        """Read the database's clock if it is due; report if the host's clock differs too much.

        :param connection: a connection without an open transaction.
        :param at_once: whether to read it even if it is not due.
        """
        if not is_of_the_system(self._clock) or (_seconds() < self._read_at and not at_once):
            return
        now = database_of(connection.dialect).now
        if now is None:  # the database is a file: there is only the host's clock
            return
        self._read_at = _seconds() + READ_INTERVAL
        best = self._ask(connection, now)
        for _ in range(1, _TRIES):
            if best[0] > _PRECISE:
                best = min(best, self._ask(connection, now))
        took, at, database, host = best
        self._read = database, at
        ahead = (host - database).total_seconds()
        wrong = abs(ahead) - took / 2 > MAX_SKEW
        with self._lock:
            report = wrong and abs(ahead - self._reported) > MAX_SKEW
            self._reported = ahead if report else self._reported if wrong else 0.0
        if report:
            self._events.emit("clock-skew", seconds=round(ahead, 3))

    def _ask(
        self, connection: Connection, now: Executable
    ) -> tuple[float, float, datetime, datetime]:
        """Return the duration of the query and, for its middle: seconds, and both clocks' times."""
        with connection.begin():
            connection.execute(now)  # not measured: the first statement also begins the transaction
            sent = _seconds()
            database = connection.execute(now).scalar_one()
            took = _seconds() - sent
        host = utcnow() - timedelta(seconds=took / 2)
        return took, sent + took / 2, database, host
