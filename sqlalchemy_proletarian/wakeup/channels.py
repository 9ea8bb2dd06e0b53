"""The channels of notifications, and the encoding of the requests that are sent on them.

Each job table has three: one for new jobs, whose payload is the queue, one for requests to cancel
running jobs, and one for jobs whose end somebody may wait for, without a payload.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Any, Final

from sqlalchemy import Dialect, PoolProxiedConnection, Text, bindparam, func, select

NOTIFY: Final = select(
    func.pg_notify(bindparam("channel", type_=Text), bindparam("payload", type_=Text))
)


class Notify:
    """Sends NOTIFY on DBAPI connections of a dialect."""

    def __init__(self, dialect: Dialect) -> None:
        compiled = NOTIFY.compile(dialect=dialect)
        self._statement = str(compiled)
        self._order: list[str] | None = getattr(compiled, "positiontup", None)

    def __call__(self, connection: PoolProxiedConnection, channel: str, payload: str) -> None:
        """Send one notification; it is delivered when the transaction commits."""
        given = {"channel": channel, "payload": payload}
        cursor = connection.cursor()
        try:
            cursor.execute(
                self._statement,
                given if self._order is None else tuple(given[name] for name in self._order),
            )
        finally:
            cursor.close()


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


def end_channel_of(table_name: str) -> str:
    """Return the channel that announces that jobs of a table have ended."""
    return channel_of(f"{table_name} end")


def cancel_request(job_id: Any, reason: str) -> str:
    """Return the payload of a cancel request; :func:`cancelled` parses it."""
    return f"{job_id}\n{reason}"


def cancelled(request: str | None) -> tuple[str, str]:
    """Return the job's id, as text, and the reason of a cancel request."""
    job_id, _, reason = (request or "").partition("\n")
    return job_id, reason
