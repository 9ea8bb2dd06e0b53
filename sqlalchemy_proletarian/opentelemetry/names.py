"""The names of attributes.

Those that begin with ``messaging`` are names of the semantic conventions for messaging.
"""

from __future__ import annotations

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


def type_of(error: BaseException) -> str:
    """Return the value of :data:`ERROR_TYPE` for an error."""
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
