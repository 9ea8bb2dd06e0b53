"""The names of attributes, and the limit of their values.

Those that begin with ``messaging`` are names of the semantic conventions for messaging.
"""

from __future__ import annotations

from threading import Lock
from typing import Final

SYSTEM: Final = "messaging.system"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
QUEUE: Final = "messaging.destination.name"
JOB_ID: Final = "messaging.message.id"
JOBS: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"
JOB_TYPE: Final = "proletarian.job.type"
ATTEMPT: Final = "proletarian.job.attempt"
WAIT: Final = "proletarian.job.wait"
OUTCOME: Final = "proletarian.job.outcome"
STATE: Final = "proletarian.job.state"
RECURRING: Final = "proletarian.recurring.name"

PROLETARIAN: Final = "proletarian"
"""The value of :data:`SYSTEM`."""

ENQUEUE: Final = "enqueue"
SEND: Final = "send"
PROCESS: Final = "process"

OTHER: Final = "(other)"
"""Stands for each value beyond the limit."""

_MOST: Final = 100


class Limited:
    """Limits how many different values an attribute has in this process: 100, and "(other)"."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._lock = Lock()

    def __call__(self, value: str) -> str:
        """Return a value, or :data:`OTHER` if it is new and there are too many."""
        if value in self._seen:
            return value
        with self._lock:
            if len(self._seen) < _MOST:
                self._seen.add(value)
                return value
        return OTHER


def type_of(error: BaseException) -> str:
    """Return the value of :data:`ERROR_TYPE` for an error."""
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
