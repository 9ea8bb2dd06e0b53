"""The channels of notifications, and the encoding of the requests that are sent on them.

Each job table has two: one for new jobs, whose payload is the queue, and one for requests to cancel
running jobs.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Any, Final

from sqlalchemy import Text, bindparam, func, select

NOTIFY: Final = select(
    func.pg_notify(bindparam("channel", type_=Text), bindparam("payload", type_=Text))
)

_MAX_IDENTIFIER: Final = 63


def channel_of(table_name: str) -> str:
    """Return the notification channel of a job table, an identifier of at most 63 bytes."""
    channel = f"proletarian {table_name}"
    if len(channel.encode()) <= _MAX_IDENTIFIER:
        return channel
    return f"proletarian {sha1(table_name.encode(), usedforsecurity=False).hexdigest()}"


def cancel_channel_of(table_name: str) -> str:
    """Return the channel of the requests to cancel running jobs of a table."""
    return channel_of(f"{table_name} cancel")


def cancel_request(job_id: Any, reason: str) -> str:
    """Return the payload of a cancel request; :func:`cancelled` parses it."""
    return f"{job_id}\n{reason}"


def cancelled(request: str | None) -> tuple[str, str]:
    """Return the job's id, as text, and the reason of a cancel request."""
    job_id, _, reason = (request or "").partition("\n")
    return job_id, reason
