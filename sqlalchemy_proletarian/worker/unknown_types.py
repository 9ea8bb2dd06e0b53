"""Reporting due jobs of types that no handler is registered for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        report_unknown(self._count(connection), self._events)


def report_unknown(found: Mapping[str, int], events: Events) -> None:
    """Report the number of due jobs by type, for types that no handler is registered for."""
    for job_type, jobs in sorted(found.items()):
        data: dict[str, Any] = {"job_type": job_type, "jobs": jobs}
        events.emit("job-type-unknown", **data)
