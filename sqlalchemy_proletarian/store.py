"""The worker's SQL, all of it: claim, settle, load, and when the next job is due.

Jobs are held in one of two ways. By the claiming transaction, which locks their rows until it
settles them; or by a lease: the claim moves ``process_at`` to the lease's end and counts the
attempt, and only who knows the number of that attempt may settle the row.

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
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Select, Table, select
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, lazyload
from sqlalchemy.orm.attributes import set_committed_value

from . import statements
from .claims import ClaimedJob, Ended, NextDue, Result, Returned
from .dialects import POSTGRESQL, Database, require_release
from .errors import OwnJobRemovedError
from .job_classes import check_cascades, check_references, child_tables, class_of, job_table
from .models import PRIORITIES, ArchivedJobMixin, JobMixin
from .outcomes import (
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
from .readiness import check, explained, uses_of

P = ParamSpec("P")
ReturnT = TypeVar("ReturnT")
StoreT = TypeVar("StoreT", bound="Store")


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
    ) -> None:
        self.database = database
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
        self._errors = select(job.c.job_id, job.c.error).where(self._of_ids)

    def _prepare(self) -> None:
        """Build the statements."""
        job, archived, running = self._job, self._archived, self._running
        children = self._children
        self._lanes = {
            "queues": [queue for queue in self.queues for _ in PRIORITIES],
            "priorities": [priority for _ in self.queues for priority in PRIORITIES],
        }
        self._claim = statements.claim(self.job_model, running, leased=self.leased)
        self._next_due = statements.next_due(self.job_model)
        self._archive_successes = statements.archive_successes(job, archived, running, children)
        self._archive_given = {
            wait: statements.archive_each(job, archived, children, wait=wait)
            for wait in (True, False)
        }
        if running is not None:
            self._remove_markers = statements.remove_markers(running)
        self._reschedule_given = {
            wait: statements.reschedule(job, wait=wait) for wait in (True, False)
        }
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
        parameters = {**self._lanes, "now": now, "limit": limit}
        if self.leased:
            parameters["shared"] = shared
        rows = connection.execute(self._claim, parameters).all()
        if self.leased:
            return [
                ClaimedJob(row[0], row[1], row[2], row[3] + 1, row[6], row[5], row[4])
                for row in rows
            ]
        return [
            ClaimedJob(row[0], row[1], row[2], row[3] + 1, row[5], None, row[4]) for row in rows
        ]

    @explains
    def lease(self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime) -> None:
        """Hold claimed jobs beyond the transaction, and count the attempt."""
        if jobs:
            connection.execute(
                self._lease,
                {
                    "ids": [job.job_id for job in jobs],
                    "attempts": [job.attempts for job in jobs],
                    "until": until,
                },
            )

    @explains
    def extend(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime
    ) -> Sequence[ClaimedJob]:
        """Hold leased jobs longer, and return those whose lease is lost."""
        kept = self._extended(connection, jobs, until)
        kept |= self.still_held(connection, [job for job in jobs if job.job_id not in kept])
        # Whoever has taken a lapsed job from themselves holds one attempt of it, the last.
        last = {job.job_id: job.attempts for job in sorted(jobs, key=lambda job: job.attempts)}
        return [job for job in jobs if job.job_id not in kept or job.attempts < last[job.job_id]]

    def _extended(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime
    ) -> set[Any]:
        return set(connection.scalars(self._extend, {**self._held(jobs), "until": until}))

    @explains
    def still_held(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> set[Any]:
        """Return the ids of those jobs that are held, whether or not somebody has locked them."""
        return set(connection.scalars(self._still_held, self._held(jobs))) if jobs else set()

    @explains
    def give_back(
        self, connection: Connection, claims: Sequence[tuple[ClaimedJob, datetime]]
    ) -> None:
        """Undo claims, given with the ends of their leases, of which nobody knows if they count."""
        if claims:
            jobs = [job for job, _ in claims]
            times = [job.process_at for job in jobs]
            ends = [end for _, end in claims]
            connection.execute(self._give_back, {**self._held(jobs), "times": times, "ends": ends})

    @explains
    def errors(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> dict[Any, str | None]:
        """Return what the rows tell of the last attempt that failed, by job id."""
        ids = [job.job_id for job in jobs]
        return {row.job_id: row.error for row in connection.execute(self._errors, {"ids": ids})}

    def _held(self, jobs: Iterable[ClaimedJob]) -> dict[str, list[Any]]:
        """Return what tells that the rows are still the caller's."""
        uncounted = 0 if self.leased else 1
        listed = list(jobs)
        return {
            "ids": [job.job_id for job in listed],
            "held": [job.attempts - uncounted for job in listed],
        }

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
            (
                job,
                job.attempts - 1 + outcome.counted,
                outcome.process_at or job.process_at,
                outcome.error,
            )
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
            **self._held(job for job, *_ in returned),
            "attempts": [attempts for _, attempts, _, _ in returned],
            "times": [process_at for _, _, process_at, _ in returned],
            "errors": [error for *_, error in returned],
        }
        return set(connection.scalars(self._reschedule_given[wait], parameters))

    @explains
    def next_due(self, connection: Connection, now: datetime) -> NextDue:
        """Return what waits in the worker's lanes."""
        overdue, at = connection.execute(self._next_due, {**self._lanes, "now": now}).one()
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
