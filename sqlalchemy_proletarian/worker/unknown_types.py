"""Reporting due jobs of types that no handler is registered for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection

from ..runtime.interval import Interval
from ..telemetry.events import Events

INTERVAL: Final = 60.0
"""Seconds between two reports of a type."""


class UnknownTypes:
    """Reports each such type at most once per minute.

    :param count: returns the number of due jobs by type.
    """

    def __init__(self, count: Callable[[Connection], dict[str, int]], events: Events) -> None:
        self._count = count
        self._events = events
        self._interval = Interval(INTERVAL)

    def __call__(self, connection: Connection) -> None:
        """Report the types, if the interval has passed.

        :param connection: one that is not in a transaction.
        """
        if not self._interval.has_passed():
            return
        for job_type, jobs in sorted(self._count(connection).items()):
            data: dict[str, Any] = {"job_type": job_type, "jobs": jobs}
            self._events.emit("job-type-unknown", **data)
