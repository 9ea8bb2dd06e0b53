"""Which of a worker's queues are paused, as its members know it.

Reading the table with each claim would cost a statement per claim. So a member reads it before a
claim if it was last read some time ago, or if a notification says that it has changed.
"""

from __future__ import annotations

from threading import Lock
from time import monotonic
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ..runtime.interval import Interval
from ..store.base import Store
from ..telemetry.events import Events

INTERVAL: Final = 0.5
"""Seconds for which the members use what one of them has read. Half of what is promised: another
member may claim while one is reading."""


class PausedQueues:
    """Tells a store which queues to skip. The members of a pool share it."""

    def __init__(self, store: Store, events: Events) -> None:
        self.paused: frozenset[str] = frozenset()
        self._store = store
        self._events = events
        self._lock = Lock()
        self._read_at = 0.0
        self._interval = Interval(INTERVAL)

    def forget(self) -> None:
        """Read the table before the next claim, because it has changed."""
        self._interval.end()

    def check(self, connection: Connection) -> None:
        """Read the table if it is due.

        :param connection: one that is not in a transaction.
        """
        is_due = self._interval.has_passed()
        if self._read_at and not is_due:  # no member claims before it is known what is paused
            return
        started = monotonic()
        try:
            with connection.begin():
                paused = self._store.paused(connection)
        except BaseException as error:
            self.forget()
            if isinstance(error, DBAPIError):
                self._store.raise_explained(connection, error)
            raise
        with self._lock:
            if started < self._read_at:  # another member has read it since then
                return
            before, self.paused = self.paused, paused
            self._store.skip(paused)
            self._read_at = started
        for event, queues in (
            ("queue-paused", paused - before),
            ("queue-resumed", before - paused),
        ):
            for queue in sorted(queues):
                self._events.emit(event, queue=queue)
