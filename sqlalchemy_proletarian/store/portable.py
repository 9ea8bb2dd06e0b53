"""The store on every database but PostgreSQL: the same decisions, in SQL that all understand.

MySQL and MariaDB lock the rows that are claimed, and no others. SQLite locks nothing: there a
transaction that writes is the only one, see :meth:`.Database.begin`. Whatever changes rows that a
worker holds first locks and reads them, so that it is known here which are still held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final

from sqlalchemy import Connection, Dialect

from ..database.dialects import database_of
from ..lifecycle.claimed import ClaimedJob, Ended, NextDue, Returned
from ..models.mixins import PRIORITIES
from . import portable_statements as statements
from .claim_filter import KnownTypes
from .postgresql import Lease, Store, explains, lease_of

_BEGINNING: Final = datetime(1000, 1, 2, tzinfo=UTC)
"""Before every due time."""


def new_store(dialect: Dialect, *args: Any, **options: Any) -> Store:
    """Return the store for a database; the other arguments are those of :class:`.Store`."""
    database = database_of(dialect)
    kind = Store if database.arrays else PortableStore
    return kind(*args, **options, database=database)


class PortableStore(Store):
    """The statements of :class:`.Store` for MySQL, MariaDB and SQLite."""

    def _prepare(self) -> None:
        job, model = self._job, self.job_model
        self._first_due = statements.lanes(model)
        filtered = self._known is not None
        self._claim_lane = statements.claim_lane(
            model, self._running, leased=self.leased, filtered=filtered
        )
        self._first_known = statements.first_known(model)
        self._unknown_types = statements.unknown_types(model)
        self._look = statements.look(job)
        self._lock = {
            wait: self._look.with_for_update(skip_locked=not wait) for wait in (True, False)
        }
        archived, children = self._archived, self._children
        self._archive_successes = statements.archive_successes(job, archived, children)
        self._archive_one = statements.archive_one(job, archived, children)
        self._remove = statements.remove(job)
        if self._running is not None:
            self._remove_marker = statements.remove(self._running)
        self._change = statements.change(job)
        self._give_back = statements.give_back(job)
        self._count_deaths = statements.count_deaths(job)
        self._hold = statements.hold(job)
        self._extend_one = statements.extend(job)
        self._of_ids = statements.of_ids(job)

    @explains
    def claim(
        self, connection: Connection, limit: int, now: datetime, shared: datetime | None = None
    ) -> list[ClaimedJob]:
        """Lock up to ``limit`` due jobs and return them, the most urgent first."""
        claimed: list[ClaimedJob] = []
        times = {"now": now, "shared": shared} if self.leased else {"now": now}
        started = perf_counter()
        for queue, priority, first in self._first_of_lanes(connection):
            if first > now:
                continue
            lane = {
                **self._lane(queue, priority),
                "limit": limit - len(claimed),
            }
            claimed += [
                ClaimedJob(*row) for row in connection.execute(self._claim_lane, {**lane, **times})
            ]
            if len(claimed) >= limit:
                break
        if self._known is not None and self._known.is_slow(perf_counter() - started):
            self._find_first_known(connection, self._known, now)
        return claimed

    def _lane(self, queue: str, priority: int) -> dict[str, Any]:
        """Return the parameters that say what a worker looks for in a lane."""
        lane: dict[str, Any] = {"queue": queue, "priority": priority}
        if self._known is not None:
            lane["since"] = self._known.since(queue, priority) or _BEGINNING
            lane["known"] = list(self._known.names())
        return lane

    def _find_first_known(self, connection: Connection, known: KnownTypes, now: datetime) -> None:
        started = perf_counter()
        firsts = {
            (queue, priority): connection.scalar(
                self._first_known, {**self._lane(queue, priority), "now": now}
            )
            for queue, priority, _ in self._first_of_lanes(connection)
        }
        known.start_at(firsts, now, perf_counter() - started)

    @explains
    def next_due(self, connection: Connection, now: datetime) -> NextDue:
        """Return what waits in the worker's lanes; behind what is overdue nothing is looked for."""
        times = [first for _, _, first in self._first_of_lanes(connection)]
        overdue = any(first <= now for first in times)
        return NextDue(overdue, min((first for first in times if first > now), default=None))

    def _first_of_lanes(self, connection: Connection) -> list[tuple[str, int, datetime]]:
        """Return the lanes that have jobs, the most urgent first, with when the first is due."""
        place = {queue: n for n, queue in enumerate(self.queues)}
        found = connection.execute(self._first_due, {"queues": self.queues}).all()
        lanes = [tuple(row) for row in found if row[0] in place and row[1] in PRIORITIES]
        return sorted(lanes, key=lambda lane: (place[lane[0]], lane[1]))

    @explains
    def count_deaths(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> None:
        """Write how many workers have died on locked jobs."""
        rows = [{"id": job.job_id, "died": job.deaths} for job in jobs]
        connection.execute(self._count_deaths, rows)

    def _lease_all(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime, lease_id: Any
    ) -> None:
        rows = [
            {"id": job.job_id, "died": job.deaths, "until": until, "lease": lease_id}
            for job in jobs
        ]
        connection.execute(self._hold, rows)

    def _extended(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime
    ) -> set[Lease]:
        held = self._found(connection, jobs, self._lock[False])
        if held:
            rows = [{"id": job_id, "until": until} for job_id, _ in held]
            connection.execute(self._extend_one, rows)
        return held

    def _held_among(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> set[Lease]:
        return self._found(connection, jobs, self._look)

    @explains
    def give_back(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> None:
        """Undo leases of which nobody knows whether they were committed."""
        held = self._found(connection, jobs, self._lock[False])
        times = {lease_of(job): job.process_at for job in jobs}
        if rows := [{"id": lease[0], "at": times[lease]} for lease in held]:
            connection.execute(self._give_back, rows)

    def _archive_all(self, connection: Connection, ids: Sequence[Any], now: datetime) -> int:
        moved = super()._archive_all(connection, ids, now)
        self._remove_each(connection, ids)
        return moved

    def _unmark(
        self,
        connection: Connection,
        marked: Iterable[Any],
        archived: Iterable[Any],  # noqa: ARG002
    ) -> None:
        if rows := [{"id": job_id} for job_id in marked]:
            connection.execute(self._remove_marker, rows)

    def _archive_each(
        self, connection: Connection, ended: Sequence[Ended], now: datetime, *, wait: bool
    ) -> set[Any]:
        ids = self._locked(connection, [job for job, _ in ended], wait=wait)
        rows = [
            {
                "id": job.job_id,
                "counted": job.attempts - 1 + outcome.counted,
                "at": job.process_at,
                "said": outcome.error,
                "status": outcome.status.value,
                "now": now,
            }
            for job, outcome in ended
            if job.job_id in ids
        ]
        if rows:
            connection.execute(self._archive_one, rows)
            self._remove_each(connection, ids)
        return ids

    def _remove_each(self, connection: Connection, ids: Iterable[Any]) -> None:
        connection.execute(self._remove, [{"id": job_id} for job_id in ids])

    def _reschedule_each(
        self, connection: Connection, returned: Sequence[Returned], *, wait: bool
    ) -> set[Any]:
        ids = self._locked(connection, [row.job for row in returned], wait=wait)
        rows = [
            {
                "id": row.job.job_id,
                "counted": row.attempts,
                "at": row.process_at,
                "said": row.error,
                "died": row.deaths,
                "ending": row.ended_as,
                "ended": row.ended_at,
                "refused": row.refusal,
            }
            for row in returned
            if row.job.job_id in ids
        ]
        if rows:
            connection.execute(self._change, rows)
        return ids

    def _locked(
        self, connection: Connection, jobs: Sequence[ClaimedJob], *, wait: bool
    ) -> set[Any]:
        """Lock the rows of jobs, and return the ids of those that are still held."""
        return {job_id for job_id, _ in self._found(connection, jobs, self._lock[wait])}

    def _found(
        self, connection: Connection, jobs: Sequence[ClaimedJob], statement: Any
    ) -> set[Lease]:
        """Return which of the jobs a statement finds as they were claimed."""
        if not jobs:
            return set()
        ids = [job.job_id for job in jobs]
        rows = {
            row.job_id: (row.attempts, row.lease_id)
            for row in connection.execute(statement, {"ids": ids})
        }
        return {lease_of(job) for job in jobs if self._is_held(job, rows.get(job.job_id))}

    def _is_held(self, job: ClaimedJob, row: tuple[int, Any] | None) -> bool:
        if row is None:
            return False
        attempts, lease_id = row
        # Without a lease the caller's transaction holds it.
        same = not self.leased or job.lease_id in (None, lease_id)
        return same and attempts == job.attempts - 1
