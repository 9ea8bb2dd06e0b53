"""The worker's SQL, all of it: claim, settle, load, and when the next job is due.

Jobs are held in one of two ways. By the claiming transaction, which locks their rows until it
settles them; or by a lease: the claim moves ``process_at`` to the lease's end and writes a
``lease_id``, and only the worker that knows it may settle the row.

Every function takes a Connection and neither commits nor rolls back: the caller owns the
transaction. (A Session would do as well, for 150 µs more a statement: half the cost of a job that
runs alone.) Statements are built once per store, so that SQLAlchemy and the driver keep them
prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import wraps
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from sqlalchemy import Connection, Select, Table, select
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, lazyload
from sqlalchemy.orm.attributes import set_committed_value

from ..clock import uuid7
from ..database.dialects import POSTGRESQL, Database, require_release
from ..errors import OwnJobRemovedError
from ..lifecycle.claimed import ClaimedJob, Ended, Ending, NextDue, Result, Returned
from ..lifecycle.outcomes import (
    INTERRUPTED,
    SUCCEEDED,
    Cancelled,
    Failed,
    Interrupted,
    Refused,
    Retried,
    Snoozed,
    Succeeded,
)
from ..models.job_classes import check_cascades, check_references, child_tables, class_of, job_table
from ..models.mixins import PRIORITIES, ArchivedJobMixin, JobMixin
from ..models.requirements import check, explained, uses_of
from . import postgresql_statements as statements
from .claim_filter import MOST, KnownTypes

P = ParamSpec("P")
ReturnT = TypeVar("ReturnT")
StoreT = TypeVar("StoreT", bound="Store")

Lease: TypeAlias = tuple[Any, Any]
"""The ids of a job and of its lease."""


def explains(
    method: Callable[Concatenate[StoreT, Connection, P], ReturnT],
) -> Callable[Concatenate[StoreT, Connection, P], ReturnT]:
    """Make the database's refusals errors of ours: see :mod:`.readiness`."""

    @wraps(method)
    def explaining(
        self: StoreT, connection: Connection, /, *args: P.args, **kwargs: P.kwargs
    ) -> ReturnT:
        with explained(connection, *self.uses):
            return method(self, connection, *args, **kwargs)

    return explaining


class Store:
    """The statements for one pair of tables and the queues that one worker serves.

    These are PostgreSQL's; :func:`.new_store` knows who has others.

    :param queues: names of the queues, the most urgent first.
    :param running: the table of running markers, if they are used.
    :param leased: whether jobs are held by leases.
    :param known: which types of jobs are claimed; None for all.
    """

    def __init__(
        self,
        job_model: type[JobMixin],
        archived_job_model: type[ArchivedJobMixin],
        queues: Sequence[str],
        running: Table | None = None,
        *,
        leased: bool = False,
        database: Database = POSTGRESQL,
        known: KnownTypes | None = None,
    ) -> None:
        self.database = database
        self._known = known
        self.job_model = job_model
        self.queues = tuple(queues)
        self._job = job_table(job_model)
        children = child_tables(job_model)
        self.table_name = str(self._job)
        self._running = running
        self.leased = leased
        self._archived = sa_inspect(archived_job_model).local_table
        self._children = children
        self._ready = False
        self._loads: dict[type[JobMixin], Select[*tuple[Any, ...]]] = {}
        self.uses = uses_of(self._job, self._archived, running, children)
        self._prepare()
        job = self._job
        ending = job.c.job_id, job.c.error, job.c.ended_at
        self._endings = select(*ending).where(self._of_ids)

    def _prepare(self) -> None:
        """Build the statements."""
        job, archived, running = self._job, self._archived, self._running
        children = self._children
        self._lanes = {
            "queues": [queue for queue in self.queues for _ in PRIORITIES],
            "priorities": [priority for _ in self.queues for priority in PRIORITIES],
        }
        filtered = self._known is not None
        self._claim = statements.claim(
            self.job_model, running, leased=self.leased, filtered=filtered
        )
        self._next_due = statements.next_due(self.job_model, filtered=filtered)
        self._first_known = statements.first_known(self.job_model)
        self._unknown_types = statements.unknown_types(self.job_model)
        self._archive_successes = statements.archive_successes(job, archived, running, children)
        self._archive_given = {
            wait: statements.archive_each(job, archived, children, leased=self.leased, wait=wait)
            for wait in (True, False)
        }
        if running is not None:
            self._remove_markers = statements.remove_markers(running)
        self._reschedule_given = {
            wait: statements.reschedule(job, leased=self.leased, wait=wait)
            for wait in (True, False)
        }
        self._count_deaths = statements.count_deaths(job)
        self._give_back = statements.give_back(job)
        self._lease = statements.lease(job)
        self._extend = statements.extend(job)
        self._still_held = statements.still_held(job)
        self._of_ids = statements.of_ids(job)

    def begin(self, connection: Connection) -> AbstractContextManager[object]:
        """Begin a transaction of the worker's own."""
        return self.database.begin(connection)

    @explains
    def claim(
        self, connection: Connection, limit: int, now: datetime, shared: datetime | None = None
    ) -> list[ClaimedJob]:
        """Lock up to ``limit`` due jobs and return them, the most urgent first.

        :param shared: the time by which leases have ended; needed where jobs are held by leases.
        """
        parameters = {**self._looking(), "now": now, "limit": limit}
        if self.leased:
            parameters["shared"] = shared
        started = perf_counter()
        claimed = [ClaimedJob(*row) for row in connection.execute(self._claim, parameters)]
        if self._known is not None and self._known.is_slow(perf_counter() - started):
            self._find_first_known(connection, self._known, now)
        return claimed

    def _looking(self) -> dict[str, Any]:
        """Return the parameters that say what a worker looks for, and where."""
        if self._known is None:
            return self._lanes
        lanes = [(queue, priority) for queue in self.queues for priority in PRIORITIES]
        since = [self._known.since(queue, priority) for queue, priority in lanes]
        return {**self._lanes, "since": since, "known": list(self._known.names())}

    def _find_first_known(self, connection: Connection, known: KnownTypes, now: datetime) -> None:
        started = perf_counter()
        rows = connection.execute(self._first_known, {**self._looking(), "now": now}).all()
        firsts = {(queue, priority): at for queue, priority, at in rows}
        known.start_at(firsts, now, perf_counter() - started)

    @explains
    def unknown_types(self, connection: Connection, now: datetime) -> dict[str, int]:
        """Return the types of due jobs that are not claimed here, with how many there are."""
        if self._known is None:
            return {}
        parameters = {"queues": list(self.queues), "known": list(self._known.names()), "now": now}
        rows = connection.execute(self._unknown_types, {**parameters, "most": MOST})
        return {row.job_type: row.jobs for row in rows}

    @explains
    def count_deaths(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> None:
        """Write how many workers have died on locked jobs."""
        values = {"ids": [job.job_id for job in jobs], "deaths": [job.deaths for job in jobs]}
        connection.execute(self._count_deaths, values)

    @explains
    def lease(
        self, connection: Connection, jobs: Iterable[ClaimedJob], until: datetime
    ) -> list[ClaimedJob]:
        """Lease locked jobs beyond the transaction, write their deaths, and return them so."""
        lease_id = uuid7()
        leased = [job._replace(lease_id=lease_id) for job in jobs]
        if leased:
            self._lease_all(connection, leased, until, lease_id)
        return leased

    def _lease_all(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime, lease_id: Any
    ) -> None:
        connection.execute(
            self._lease,
            {
                "ids": [job.job_id for job in jobs],
                "deaths": [job.deaths for job in jobs],
                "until": until,
                "lease": lease_id,
            },
        )

    @explains
    def extend(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime
    ) -> Sequence[ClaimedJob]:
        """Extend the leases of jobs, and return those whose lease is lost."""
        kept = self._extended(connection, jobs, until)
        kept |= self._held_among(connection, [job for job in jobs if lease_of(job) not in kept])
        return [job for job in jobs if lease_of(job) not in kept]

    def _extended(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime
    ) -> set[Lease]:
        rows = connection.execute(self._extend, {**self._held(jobs), "until": until})
        return {(row.job_id, row.lease_id) for row in rows}

    @explains
    def still_held(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> set[Any]:
        """Return the ids of those jobs that are held by their lease, locked by others or not."""
        return {job_id for job_id, _ in self._held_among(connection, jobs)}

    def _held_among(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> set[Lease]:
        if not jobs:
            return set()
        rows = connection.execute(self._still_held, self._held(jobs))
        return {(row.job_id, row.lease_id) for row in rows}

    @explains
    def give_back(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> None:
        """Undo leases of which nobody knows whether they were committed."""
        if jobs:
            times = [job.process_at for job in jobs]
            connection.execute(self._give_back, {**self._held(jobs), "times": times})

    @explains
    def endings(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> dict[Any, Ending]:
        """Return how jobs have ended that wait for the archive, by job id."""
        ids = [job.job_id for job in jobs]
        rows = connection.execute(self._endings, {"ids": ids})
        return {row.job_id: Ending(row.error, row.ended_at) for row in rows}

    def _held(self, jobs: Iterable[ClaimedJob]) -> dict[str, list[Any]]:
        """Return the parameters by which a statement finds rows that are still the caller's."""
        listed = list(jobs)
        held: dict[str, list[Any]] = {
            "ids": [job.job_id for job in listed],
            "held": [job.attempts - 1 for job in listed],
        }
        if self.leased:
            held["leases"] = [job.lease_id for job in listed]
        return held

    @explains
    def reclaim(self, connection: Connection, job: ClaimedJob) -> bool:
        """Lock one job again, as it was when it was claimed; tell whether it is still there."""
        model = self.job_model
        statement = (
            select(model.job_id)
            .where(model.job_id == job.job_id, model.attempts == job.attempts - 1)
            .with_for_update(skip_locked=True)
        )
        return connection.execute(statement).first() is not None

    @explains
    def load(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> dict[Any, Any]:
        """Return the rows of claimed jobs as detached objects, by job id.

        Their ``attempts`` count this run, and ``process_at`` is when it came due.
        """
        claimed = {job.job_id: job for job in jobs}
        of_class: dict[type[JobMixin], list[Any]] = {}
        for job in claimed.values():
            of_class.setdefault(class_of(self.job_model, job.job_type), []).append(job.job_id)
        found: list[Any] = []
        with Session(connection) as session:
            for model, ids in of_class.items():
                found += session.scalars(self._loading(model), {"ids": ids})
            session.expunge_all()
        for row in found:
            job = claimed[row.job_id]
            set_committed_value(row, "attempts", job.attempts)
            if job.process_at is not None:
                set_committed_value(row, "process_at", job.process_at)
        return {row.job_id: row for row in found}

    def _loading(self, model: type[JobMixin]) -> Select[*tuple[Any, ...]]:
        if model not in self._loads:
            # Relationships load in the handler's own session: what this one loads is let go.
            wanted = select(model).where(self._of_ids)
            self._loads[model] = wanted.options(lazyload("*"))
        return self._loads[model]

    @explains
    def settle(
        self,
        connection: Connection,
        results: Sequence[Result],
        now: datetime,
        *,
        marked: Iterable[Any] = (),
    ) -> None:
        """Write how locked jobs ended: finished ones to the archive, others back to their queue.

        A job that was interrupted, or has no result, stays as it was.

        :param marked: ids of jobs whose running markers go.
        :raises OwnJobRemovedError: if one that has succeeded is there no more.
        """
        successes = [job.job_id for job, outcome in results if outcome is SUCCEEDED]
        if successes and 0 <= self._archive_all(connection, successes, now) < len(successes):
            raise OwnJobRemovedError
        if len(successes) < len(results):
            rest = [
                (job, outcome)
                for job, outcome in results
                if outcome is not SUCCEEDED and outcome is not INTERRUPTED
            ]
            self._write(connection, rest, now)
        self._unmark(connection, marked, successes)

    @explains
    def settle_leased(
        self, connection: Connection, results: Sequence[Result], now: datetime, *, wait: bool
    ) -> set[Any]:
        """Write how leased jobs ended, and return the ids of those whose lease was not lost.

        A job that was interrupted is due again as it was before the claim.

        :param wait: for whoever has locked a job's row; otherwise that job is left out.
        """
        return self._write(connection, results, now, wait=wait)

    def _write(
        self, connection: Connection, results: Sequence[Result], now: datetime, *, wait: bool = True
    ) -> set[Any]:
        written: set[Any] = set()
        ended = [
            (job, outcome)
            for job, outcome in results
            if isinstance(outcome, Succeeded | Failed | Cancelled)
        ]
        if ended:
            written |= self._archive_each(connection, ended, now, wait=wait)
        returned = [
            Returned.of(job, outcome)
            for job, outcome in results
            if isinstance(outcome, Retried | Refused | Snoozed | Interrupted)
        ]
        if returned:
            written |= self._reschedule_each(connection, returned, wait=wait)
        return written

    def _archive_all(self, connection: Connection, ids: Sequence[Any], now: datetime) -> int:
        """Return how many rows were moved; less than 0 if the driver does not tell."""
        values = {"ids": ids, "status": SUCCEEDED.status.value, "now": now}
        return connection.execute(self._archive_successes, values).rowcount

    def _unmark(
        self, connection: Connection, marked: Iterable[Any], archived: Iterable[Any]
    ) -> None:
        """Remove markers: those of what was archived went with it."""
        gone = set(archived)
        if left := [job_id for job_id in marked if job_id not in gone]:
            connection.execute(self._remove_markers, {"ids": left})

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
        return set(connection.scalars(self._archive_given[wait], parameters))

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
        return set(connection.scalars(self._reschedule_given[wait], parameters))

    @explains
    def next_due(self, connection: Connection, now: datetime) -> NextDue:
        """Return what waits in the worker's lanes."""
        overdue, at = connection.execute(self._next_due, {**self._looking(), "now": now}).one()
        return NextDue(bool(overdue), at)

    def check_tables(self, connection: Connection) -> None:
        """Raise :class:`DatabaseNotReadyError` unless the tables are what the statements need."""
        require_release(connection.dialect)
        check(connection, self.uses)
        if not self._ready:
            check_cascades(connection, self.job_model)
            check_references(connection, self.job_model)
            statements.compile_all(vars(self).values(), connection.dialect)
            self._ready = True


def lease_of(job: ClaimedJob) -> Lease:
    """Return what tells a lease on a job from every other."""
    return job.job_id, job.lease_id
