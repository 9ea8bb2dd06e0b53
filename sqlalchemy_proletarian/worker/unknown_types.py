"""Reporting due jobs of types that no handler is registered for."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection

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
        self._next = monotonic()

    def __call__(self, connection: Connection) -> None:
        """Report the types, if the interval has passed.

        :param connection: one that is not in a transaction.
        """
        if monotonic() < self._next:
            return
        self._next = monotonic() + INTERVAL
        for job_type, jobs in sorted(self._count(connection).items()):
            data: dict[str, Any] = {"job_type": job_type, "jobs": jobs}
            self._events.emit("job-type-unknown", **data)
