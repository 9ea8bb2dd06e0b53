"""The store for all databases but PostgreSQL, in SQL that all of them understand.

MySQL and MariaDB lock the rows that are claimed, and no others. SQLite locks no rows: a transaction
that writes is the only one, see :meth:`.Database.begin`. A statement that changes held rows cannot
return which rows it changed, so each method first locks and reads the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final

from sqlalchemy import Connection

from ..lifecycle.claimed import ClaimedJob, Ended, NextDue, Returned
from ..lifecycle.outcomes import SUCCEEDED, Succeeded
from ..models.values import PRIORITIES
from . import portable_statements as statements
from .base import Lease, Store, lease_of
from .claim_filter import EARLIER, MANY_QUEUES, Lane

_EARLIEST: Final = datetime(1000, 1, 2, tzinfo=UTC)
"""Earlier than any due time; MySQL's calendar begins a day before."""


class PortableStore(Store):
    """The statements of :class:`.Store` for all databases but PostgreSQL."""

    def _prepare(self) -> None:
        job, model = self._job, self.job_model
        archived, children = self._archived, self._children
        filtered = self._filter is not None
        few = len(self.queues) <= MANY_QUEUES
        probes = bool(self.queues) and (few or not self.database.skip_scans)
        self._first_due = statements.first_due(model, self.queues, probes=probes)
        self._queue_parameters = statements.of_queues(self.queues, probes=probes)
        self._claim_lane = statements.claim_lane(
            model,
            self._running,
            leased=self.leased,
            filtered=filtered,
            timed=self.leased or self._detailed,
        )
        self._first_known = statements.first_known(model)
        self._unknown_types = statements.unknown_types(model)
        self._read_held = statements.read_held(job)
        self._lock_held = {wait: statements.lock_held(job, wait=wait) for wait in (True, False)}
        self._archive = statements.archive_successes(job, archived, children)
        self._archive_one = {
            results: statements.archive_one(job, archived, children, results=results)
            for results in (False, True)
        }
        self._delete = statements.delete_one(job)
        if self._running is not None:
            self._unmark = statements.delete_one(self._running)
        self._reschedule = statements.reschedule(job)
        self._count_deaths = statements.count_deaths(job)
        self._lease = statements.lease(job)
        self._extend = statements.extend(job)
        self._release = statements.release(job)
        self._of_ids = statements.of_ids(job)

    # Claim.

    def claim(
        self, connection: Connection, limit: int, now: datetime, shared: datetime | None = None
    ) -> list[ClaimedJob]:
        """Lock due jobs, lane by lane; see :meth:`.Store.claim`."""
        claimed: list[ClaimedJob] = []
        times = {"now": now, "shared": shared} if self.leased else {"now": now}
        started = perf_counter()
        order = self._queues_in_turn()
        for lane, first in self._lanes_with_jobs(connection, order):
            if first > now:
                continue
            parameters = {**self._search(lane), **times, "limit": limit - len(claimed)}
            rows = connection.execute(self._claim_lane, parameters)
            found = [ClaimedJob(*row) for row in rows]
            if self._detailed:
                found = [job._replace(queue=lane[0]) for job in found]
            claimed += found
            if len(claimed) >= limit:
                break
        if self.shares is not None:
            self.shares.claimed(order, claimed, limit)
        if self._filter is not None and self._is_slow_again(started):
            self._filter.search(lambda: self._find_starts(connection, now))
        return claimed

    def _search(self, lane: Lane) -> dict[str, Any]:
        """Return the parameters that say what to look for in a lane."""
        queue, priority = lane
        parameters: dict[str, Any] = {"queue": queue, "priority": priority}
        if self._filter is not None:
            parameters["since"] = self._filter.start(lane) or _EARLIEST
            parameters["known"] = self._filter.known()
        return parameters

    def _find_starts(self, connection: Connection, now: datetime) -> dict[Lane, datetime | None]:
        return {
            lane: connection.scalar(self._first_known, {**self._search(lane), "now": now})
            or now - EARLIER
            for lane, _ in self._lanes_with_jobs(connection, self.open_queues)
        }

    def next_due(self, connection: Connection, now: datetime) -> NextDue:
        """Return what comes due next; in a lane with overdue jobs, later jobs do not count."""
        times = [first for _, first in self._lanes_with_jobs(connection, self.open_queues)]
        overdue = any(first <= now for first in times)
        return NextDue(overdue, min((first for first in times if first > now), default=None))

    def _lanes_with_jobs(
        self, connection: Connection, queues: Sequence[str]
    ) -> list[tuple[Lane, datetime]]:
        """Return the lanes that have jobs, the most urgent first, and when the first job is due."""
        order = {queue: n for n, queue in enumerate(queues)}
        rows = connection.execute(self._first_due, self._queue_parameters).all()
        lanes = [
            ((queue, priority), first)
            for queue, priority, first in rows
            if first is not None and queue in order and priority in PRIORITIES
        ]
        return sorted(lanes, key=lambda found: (order[found[0][0]], found[0][1]))

    # Settle.

    def _archive_successes(self, connection: Connection, ids: Sequence[Any], now: datetime) -> int:
        values = {"ids": ids, "status": SUCCEEDED.status.value, "now": now}
        moved = connection.execute(self._archive, values).rowcount
        self._delete_each(connection, ids)
        return moved

    def _archive_each(
        self, connection: Connection, ended: Sequence[Ended], now: datetime, *, wait: bool
    ) -> set[Any]:
        ids = self._lock(connection, [job for job, _ in ended], wait=wait)
        rows = [
            {
                "id": job.job_id,
                "new_attempts": job.attempts - 1 + outcome.counted,
                "at": job.process_at,
                "new_error": outcome.error,
                "status": outcome.status.value,
                "now": now,
            }
            for job, outcome in ended
            if job.job_id in ids
        ]
        kept = {
            job.job_id: outcome.result
            for job, outcome in ended
            if isinstance(outcome, Succeeded) and outcome.result is not None
        }
        if kept:
            rows = [row | {"new_result": kept.get(row["id"])} for row in rows]
        if rows:
            connection.execute(self._archive_one[bool(kept)], rows)
            self._delete_each(connection, ids)
        return ids

    def _delete_each(self, connection: Connection, ids: Iterable[Any]) -> None:
        connection.execute(self._delete, [{"id": job_id} for job_id in ids])

    def _reschedule_each(
        self, connection: Connection, returned: Sequence[Returned], *, wait: bool
    ) -> set[Any]:
        ids = self._lock(connection, [row.job for row in returned], wait=wait)
        rows = [
            {
                "id": row.job.job_id,
                "new_attempts": row.attempts,
                "at": row.process_at,
                "new_error": row.error,
                "new_deaths": row.deaths,
                "new_ended_as": row.ended_as,
                "new_ended_at": row.ended_at,
                "new_refusal": row.refusal,
            }
            for row in returned
            if row.job.job_id in ids
        ]
        if rows:
            connection.execute(self._reschedule, rows)
        return ids

    def _remove_markers(
        self,
        connection: Connection,
        marked: Iterable[Any],
        archived: Iterable[Any],  # noqa: ARG002 - their markers are still there
    ) -> None:
        if rows := [{"id": job_id} for job_id in marked]:
            connection.execute(self._unmark, rows)

    def count_deaths(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> None:
        """Write the deaths of locked jobs."""
        rows = [{"id": job.job_id, "new_deaths": job.deaths} for job in jobs]
        connection.execute(self._count_deaths, rows)

    # Leases.

    def _lease_each(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime, lease_id: Any
    ) -> None:
        rows = [
            {"id": job.job_id, "new_deaths": job.deaths, "until": until, "lease": lease_id}
            for job in jobs
        ]
        connection.execute(self._lease, rows)

    def _extend_each(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime
    ) -> set[Lease]:
        held = self._find_held(connection, jobs, self._lock_held[False])
        if held:
            rows = [{"id": job_id, "until": until} for job_id, _ in held]
            connection.execute(self._extend, rows)
        return held

    def _held_among(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> set[Lease]:
        return self._find_held(connection, jobs, self._read_held)

    def release(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> None:
        """Undo leases; see :meth:`.Store.release`."""
        held = self._find_held(connection, jobs, self._lock_held[False])
        times = {lease_of(job): job.process_at for job in jobs}
        if rows := [{"id": lease[0], "at": times[lease]} for lease in held]:
            connection.execute(self._release, rows)

    def _lock(self, connection: Connection, jobs: Sequence[ClaimedJob], *, wait: bool) -> set[Any]:
        """Lock the rows of jobs, and return the ids of the jobs that are still held."""
        held = self._find_held(connection, jobs, self._lock_held[wait])
        return {job_id for job_id, _ in held}

    def _find_held(
        self, connection: Connection, jobs: Sequence[ClaimedJob], statement: Any
    ) -> set[Lease]:
        """Return the jobs whose rows a statement finds as they were claimed."""
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
        # A job without a lease is held by the caller's transaction.
        same_lease = not self.leased or job.lease_id in (None, lease_id)
        return same_lease and attempts == job.attempts - 1
