"""Ending orphaned transactions: those of workers whose host vanished, on MySQL and MariaDB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table, func, not_, select
from sqlalchemy.exc import DBAPIError

from ..database import named_locks
from ..database.error_codes import code_of
from ..models.mixins import JobMixin
from .handler_connections import NOT_OWNER, HandlerConnection, LeasedConnections, kill_holder

_SIGHTINGS: Final = 2
"""How often in a row a worker must be missing before its transactions are ended. A worker that lost
its connection has the time in between to reconnect."""


class Orphan(NamedTuple):
    """An orphaned transaction."""

    worker: str
    job_id: Any
    refused: DBAPIError | None
    """Why it could not be ended: it belongs to another user."""


class Orphans:
    """Finds orphaned transactions by their running markers, and ends them.

    A leased job is left alone until its lease has expired.
    """

    def __init__(self, running: Table, job_model: type[JobMixin]) -> None:
        self._leased = LeasedConnections(job_model)
        self._missing: dict[tuple[str, Any], int] = {}
        self._find = (
            select(running.c.worker, running.c.job_id)
            .join(job_model, job_model.job_id == running.c.job_id)
            .where(
                not_(named_locks.is_alive(running.c.worker)),
                job_model.process_at <= func.utc_timestamp(6),
            )
        )

    def forget(self) -> None:
        """Forget which workers were missing: this one was cut off, and they may have been, too."""
        self._missing.clear()

    def end(self, connection: Connection) -> Iterator[Orphan]:
        """End the transactions of workers that are missing again, and yield them."""
        missing = [(row.worker, row.job_id) for row in connection.execute(self._find)]
        self._missing = {marker: self._missing.get(marker, 0) + 1 for marker in missing}
        for (worker, job_id), sightings in self._missing.items():
            if sightings != _SIGHTINGS:
                continue
            locks = (
                HandlerConnection.lock_name(worker, job_id),
                self._leased.lock_name(connection, job_id),
            )
            try:
                ended = [kill_holder(connection, lock) for lock in locks]
            except DBAPIError as error:
                if code_of(error) != NOT_OWNER:
                    raise
                yield Orphan(worker, job_id, error)
            else:
                if any(ended):
                    yield Orphan(worker, job_id, None)
