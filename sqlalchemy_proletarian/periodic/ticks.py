"""One transaction: lock a recurring job that is due, insert the jobs of its ticks, move it on.

The insertion and the move commit together, so every tick becomes a job once, whatever crashes. The
job's ``unique_key`` is the name with the tick: if an operator sets ``next_at`` back, a tick whose
job is still queued is not enqueued again.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection

from ..clock import uuid7
from ..database.dialects import Database
from ..database.error_codes import is_undone
from ..models.headers import checked_headers
from ..models.requirements import explained
from ..producer.facts import facts_of
from ..store.recurring import RecurringTable
from ..telemetry.calls import EnqueueCall
from ..telemetry.enqueues import observed
from ..telemetry.observers import has_observers
from ..unique.enqueue import place
from .due import due
from .timing import Timing


class Ticked(NamedTuple):
    """What a transaction has done.

    :param name: the name of the recurring job.
    :param enqueued: the ticks that became jobs, with the jobs' ids.
    """

    name: str
    enqueued: list[tuple[datetime, Any]]


class TickError(Exception):
    """The ticks of one recurring job could not be enqueued. The cause is the error.

    :param name: the name of the recurring job.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Ticks:
    """Enqueues the jobs of ticks.

    :param job_model: the mapped class of the jobs.
    :param notify: whether to wake workers.
    """

    def __init__(
        self, table: RecurringTable, database: Database, job_model: type[Any], *, notify: bool
    ) -> None:
        self._table = table
        self._database = database
        self._job_model = job_model
        self._with_id = facts_of(job_model).has_uuid
        self._notify = notify

    def run_one(
        self, connection: Connection, now: datetime, failed: Collection[str] = ()
    ) -> Ticked | None:
        """Enqueue what is due of one recurring job that no other worker has locked.

        :param connection: one that is not in a transaction.
        :param failed: names of recurring jobs to leave out.
        :return: None if there is none.
        :raises TickError: if that failed because of this recurring job; nothing was written.
        """
        name = None
        try:
            with explained(connection, *self._table.uses), self._database.begin(connection):
                row = self._table.lock_due(connection, now, failed)
                if row is None:
                    return None
                name = row.name
                return self._run(connection, row, now)
        except Exception as error:
            if is_undone(error):
                return None  # on another node of a cluster, a worker was faster
            if name is None or connection.invalidated:
                raise
            raise TickError(name) from error

    def _run(self, connection: Connection, row: Any, now: datetime) -> Ticked:
        timing = Timing(row.cron, row.interval_seconds, row.time_zone)
        found = due(timing, row.next_at, now, catch_up=row.catch_up, paused=row.paused)
        enqueued: list[tuple[datetime, Any]] = []
        for tick in found.ticks:
            job_id = self._insert(connection, row, tick, now)
            if job_id is not None:
                enqueued.append((tick, job_id))
        values: dict[str, Any] = {"next_at": found.next_at}
        if found.ticks:
            values["last_at"] = found.ticks[-1]
        self._table.move(connection, row.name, values)
        return Ticked(row.name, enqueued)

    def _insert(self, connection: Connection, row: Any, tick: datetime, now: datetime) -> Any:
        values: dict[str, Any] = {
            "queue": row.queue,
            "job_type": row.job_type,
            "payload": row.payload,
            "attempts": 0,
            "enqueued_at": now,
            "process_at": tick,
            "priority": row.priority,
            "deaths": 0,
            "unique_key": key_of(row.name, tick),
        }
        if self._with_id:
            values["job_id"] = uuid7()
        if not has_observers():
            return self._place(connection, values)
        with observed(EnqueueCall(row.job_type, row.queue, recurring=row.name)) as call:
            headers = call.headers(row.job_type, row.queue, None)
            if headers is not None and (checked := checked_headers(headers)):
                values["headers"] = checked
            job_id = self._place(connection, values)
            if job_id is not None:
                call.add_one(job_id)
            return job_id

    def _place(self, connection: Connection, values: dict[str, Any]) -> Any:
        """Insert a job, and return its id; None if the job of this tick is queued already."""
        found = place(connection, self._job_model, values, notify=self._notify)
        return found.job if found.created else None


def key_of(name: str, tick: datetime) -> str:
    """Return the ``unique_key`` of the job of a tick."""
    return f"{name}@{tick.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
