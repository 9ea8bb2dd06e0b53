"""Which of many idle workers looks first for a job that is announced to all of them.

A commit wakes every idle worker of the queue. One job needs one worker: the looks of all others are
in vain, and while they compete for the processors, the one that finds the job is late. So a worker
that was woken in vain several times in a row waits a random time before it looks, the longer the
more workers there are. Those that look later find the job done, and all that is announced while a
worker waits is one look.
"""

from __future__ import annotations

import random
from typing import Final

from sqlalchemy import Connection, Executable

from ..runtime.interval import Interval

_STEP: Final = 0.02
"""Seconds of the longest wait for each other worker, and for each look in vain. Of workers that
wait at random, one looks after about these seconds, whatever their number."""

_LONGEST: Final = 0.5
"""Seconds of the longest wait."""

_PATIENCE: Final = 3
"""How many looks in vain make a worker ask how many others there are."""

_INTERVAL: Final = 30.0
"""Seconds between two such questions."""


class Crowd:
    """How long one worker waits before it looks for announced jobs.

    :param listeners: selects the number of workers that listen; None if the database cannot tell.
    """

    def __init__(self, listeners: Executable | None) -> None:
        self._listeners = listeners
        self._interval = Interval(_INTERVAL)
        self._others = 0
        self.in_vain: int = 0
        """How many looks in a row have found nothing; set to 0 when one has found jobs, so that the
        next one is prompt."""

    def found_nothing(self, connection: Connection) -> None:
        """Note that a look for announced jobs was in vain.

        :param connection: one that is not in a transaction.
        """
        self.in_vain += 1
        if self._listeners is None or self.in_vain < _PATIENCE or not self._interval.has_passed():
            return
        with connection.begin():
            self._others = max(0, int(connection.scalar(self._listeners) or 0) - 1)

    def wait(self) -> float:
        """Return how many seconds to wait before the next look."""
        longest = min(_STEP * min(self.in_vain, self._others), _LONGEST)
        return random.uniform(0, longest)  # noqa: S311 - no secret
