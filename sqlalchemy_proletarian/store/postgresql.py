"""The store for PostgreSQL: one statement for any number of jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from time import monotonic, perf_counter
from typing import Any, Final, NamedTuple, Self

from sqlalchemy import Connection

from ..lifecycle.claimed import ClaimedJob, Ended, NextDue, Returned
from ..lifecycle.outcomes import SUCCEEDED
from ..models.values import PRIORITIES
from . import postgresql_claim
from . import postgresql_statements as statements
from .base import Lease, Store
from .chain import Chain, chain_of
from .claim_filter import EARLIER, MANY_QUEUES, Lane


class PostgreSQLStore(Store):
    """The statements of :class:`.Store` for PostgreSQL."""

    def _prepare(self) -> None:
        job, archived, running = self._job, self._archived, self._running
        model, children, leased = self.job_model, self._children, self.leased
        filtered = self._filter is not None
        self._many = many = len(self.queues) > MANY_QUEUES
        self._lanes = _Lanes.of(self.open_queues, many=many)
        self._claim = postgresql_claim.claim(
            model,
            running,
            leased=leased,
            filtered=filtered,
            detailed=self._detailed,
            many=many,
        )
        self._next_due = postgresql_claim.next_due(model, filtered=filtered, many=many)
        self._first_due = postgresql_claim.first_due(model, filtered=filtered, many=many)
        self._unknown_types = postgresql_claim.unknown_types(model, many=many)
        self._archive = statements.archive_successes(job, archived, running, children)
        self._archive_all = statements.archive_all(self._archive, archived)
        self._archive_held = {
            (wait, results): statements.archive_each(
                job, archived, children, leased=leased, wait=wait, results=results
            )
            for wait in (True, False)
            for results in (False, True)
        }
        self._reschedule_held = {
            wait: statements.reschedule(job, leased=leased, wait=wait) for wait in (True, False)
        }
        if running is not None:
            self._unmark = statements.remove_markers(running)
        self._count_deaths = statements.count_deaths(job)
        self._lease = statements.lease(job)
        self._extend = statements.extend(job)
        self._release = statements.release(job)
        self._still_held = statements.still_held(job)
        self._of_ids = statements.of_ids(job)

    def _transaction(self, connection: Connection) -> AbstractContextManager[object]:
        return connection.begin()

    def skip(self, paused: Collection[str]) -> None:
        """Claim no more jobs of these queues; see :meth:`.Store.skip`."""
        super().skip(paused)
        self._lanes = _Lanes.of(self.open_queues, many=self._many)

    # Claim.

    def claim(
        self, connection: Connection, limit: int, now: datetime, shared: datetime | None = None
    ) -> list[ClaimedJob]:
        """Lock due jobs; see :meth:`.Store.claim`."""
        lanes = self._lanes_in_turn()
        parameters = {**self._search(lanes), "now": now, "limit": limit}
        if self.leased:
            parameters["shared"] = shared
        started = perf_counter()
        rows = connection.execute(self._claim, parameters).all()
        self._find_starts_if_slow(connection, now, started)
        return self._claimed(rows, lanes, limit)

    def chain(self, connection: Connection) -> Chain | None:
        """Return what commits and claims in one round trip; see :meth:`.Store.chain`."""
        return None if self.leased else chain_of(connection, self._claim, self._archive_all)

    def commit_and_claim(
        self,
        chain: Chain,
        limit: int,
        now: datetime,
        archive: Sequence[Any] | None,
        *,
        release: bool,
        savepoint: bool,
    ) -> list[ClaimedJob]:
        """Commit and claim; see :meth:`.Store.commit_and_claim`."""
        settle = None if archive is None else self._successes(archive, now)
        started = perf_counter()
        lanes = self._lanes_in_turn()
        parameters = {**self._search(lanes), "now": now, "limit": limit}
        rows = chain.commit_and_claim(parameters, settle, release=release, savepoint=savepoint)
        self._find_starts_if_slow(chain.connection, now, started)
        return self._claimed(rows, lanes, limit)

    def _lanes_in_turn(self) -> _Lanes:
        """Return the lanes in the order of the next claim."""
        if self.shares is None:
            return self._lanes
        return _Lanes.of(self._queues_in_turn(), many=self._many)

    def _claimed(
        self, rows: Iterable[Sequence[Any]], lanes: _Lanes, limit: int
    ) -> list[ClaimedJob]:
        jobs = [ClaimedJob(*row) for row in rows]
        if self.shares is not None:
            self.shares.claimed(lanes.queues, jobs, limit)
        return jobs

    def _find_starts_if_slow(self, connection: Connection, now: datetime, started: float) -> None:
        if self._is_slow_again(started):
            self._starts.search(lambda: self._find_starts_unlocked(connection, now))

    def _find_starts_unlocked(
        self, connection: Connection, now: datetime
    ) -> dict[Lane, datetime | None]:
        # The search locks the rows that it finds. The transaction of the claim may stay open for
        # hours, and other workers would skip them as long.
        connection.exec_driver_sql(f"SAVEPOINT {_SEARCH}")
        found = self._find_starts(connection, now)
        connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {_SEARCH}")
        connection.exec_driver_sql(f"RELEASE SAVEPOINT {_SEARCH}")
        return found

    def _search(self, lanes: _Lanes) -> dict[str, Any]:
        """Return the parameters that say in which lanes to look, and for which types."""
        if self._starts.starts and monotonic() < self._starts.until:
            parameters = {**lanes.parameters, **lanes.since(self._starts.starts)}
        else:
            parameters = lanes.parameters
        if self._filter is None:
            return parameters
        return {**parameters, "known": list(self._filter.types() or ())}

    def _find_starts(self, connection: Connection, now: datetime) -> dict[Lane, datetime | None]:
        parameters = {**self._search(self._lanes), "now": now}
        rows = connection.execute(self._first_due, parameters).all()
        return {
            (queue, priority): None if at == postgresql_claim.EARLIEST else at or now - EARLIER
            for queue, priority, at in rows
        }

    def _everywhere(self) -> dict[str, Any]:
        return _Lanes.of(self.queues, many=self._many).parameters

    def next_due(self, connection: Connection, now: datetime) -> NextDue:
        """Return what comes due next; see :meth:`.Store.next_due`."""
        parameters = {**self._search(self._lanes), "now": now}
        overdue, at = connection.execute(self._next_due, parameters).one()
        return NextDue(bool(overdue), at)

    # Settle.

    def _archive_successes(self, connection: Connection, ids: Sequence[Any], now: datetime) -> int:
        return connection.execute(self._archive, self._successes(ids, now)).rowcount

    @staticmethod
    def _successes(ids: Sequence[Any], now: datetime) -> dict[str, Any]:
        return {"ids": list(ids), "status": SUCCEEDED.status.value, "now": now}

    def _archive_each(
        self, connection: Connection, ended: Sequence[Ended], now: datetime, *, wait: bool
    ) -> set[Any]:
        parameters = {
            **self._held(job for job, _ in ended),
            "attempts": [job.attempts - 1 + outcome.counted for job, outcome in ended],
            "times": [job.process_at for job, _ in ended],
            "statuses": [outcome.status.value for _, outcome in ended],
            "errors": [outcome.error for _, outcome in ended],
            "now": now,
        }
        results = [getattr(outcome, "result", None) for _, outcome in ended] if self.keeping else []
        if kept := any(result is not None for result in results):
            parameters["results"] = results
        return set(connection.scalars(self._archive_held[wait, kept], parameters))

    def _reschedule_each(
        self, connection: Connection, returned: Sequence[Returned], *, wait: bool
    ) -> set[Any]:
        parameters = {
            **self._held(row.job for row in returned),
            "attempts": [row.attempts for row in returned],
            "times": [row.process_at for row in returned],
            "errors": [row.error for row in returned],
            "deaths": [row.deaths for row in returned],
            "endings": [row.ended_as for row in returned],
            "ended": [row.ended_at for row in returned],
            "refusals": [row.refusal for row in returned],
        }
        return set(connection.scalars(self._reschedule_held[wait], parameters))

    def _remove_markers(
        self, connection: Connection, marked: Iterable[Any], archived: Iterable[Any]
    ) -> None:
        # The statement that archives jobs has removed their markers.
        gone = set(archived)
        if ids := [job_id for job_id in marked if job_id not in gone]:
            connection.execute(self._unmark, {"ids": ids})

    def count_deaths(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> None:
        """Write the deaths of locked jobs."""
        values = {"ids": [job.job_id for job in jobs], "deaths": [job.deaths for job in jobs]}
        connection.execute(self._count_deaths, values)

    # Leases.

    def _lease_each(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime, lease_id: Any
    ) -> None:
        parameters = {
            "ids": [job.job_id for job in jobs],
            "deaths": [job.deaths for job in jobs],
            "until": until,
            "lease": lease_id,
        }
        connection.execute(self._lease, parameters)

    def _extend_each(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime
    ) -> set[Lease]:
        rows = connection.execute(self._extend, {**self._held(jobs), "until": until})
        return {(row.job_id, row.lease_id) for row in rows}

    def _held_among(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> set[Lease]:
        if not jobs:
            return set()
        rows = connection.execute(self._still_held, self._held(jobs))
        return {(row.job_id, row.lease_id) for row in rows}

    def release(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> None:
        """Undo leases; see :meth:`.Store.release`."""
        if jobs:
            times = [job.process_at for job in jobs]
            connection.execute(self._release, {**self._held(jobs), "times": times})

    def _held(self, jobs: Iterable[ClaimedJob]) -> dict[str, list[Any]]:
        """Return the parameters by which a statement finds the rows that the worker still holds."""
        listed = list(jobs)
        held: dict[str, list[Any]] = {
            "ids": [job.job_id for job in listed],
            "held": [job.attempts - 1 for job in listed],
        }
        if self.leased:
            held["leases"] = [job.lease_id for job in listed]
        return held


class _Lanes(NamedTuple):
    """The lanes in which a worker looks for jobs, the most urgent first."""

    queues: Sequence[str]
    lanes: Sequence[Lane] | None
    """None if the statements find the lanes of many queues."""
    parameters: dict[str, Any]

    @classmethod
    def of(cls, queues: Sequence[str], *, many: bool) -> Self:
        if many:
            return cls(queues, None, {"queues": list(queues), **{name: [] for name in _SINCE}})
        lanes = [(queue, priority) for queue in queues for priority in PRIORITIES]
        parameters = {
            "queues": [queue for queue, _ in lanes],
            "priorities": [priority for _, priority in lanes],
            "since": [None] * len(lanes),
        }
        return cls(queues, lanes, parameters)

    def since(self, starts: Mapping[Lane, datetime | None]) -> dict[str, Any]:
        """Return the parameters that say where to start in each lane."""
        if self.lanes is not None:
            return {"since": [starts.get(lane) for lane in self.lanes]}
        known = [(*lane, at) for lane, at in starts.items() if at is not None]
        columns = zip(*known, strict=True) if known else ((), (), ())
        return {name: list(values) for name, values in zip(_SINCE, columns, strict=True)}


_SEARCH: Final = "proletarian_search"

_SINCE: Final = "since_queues", "since_priorities", "since"
"""The parameters that say where to start in the lanes for which that is known."""
