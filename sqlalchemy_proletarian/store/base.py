"""The store: all statements that a worker sends about jobs, for one pair of tables.

A worker holds a job in one of two ways. In transaction mode the claiming transaction locks the rows
until it settles them. In lease mode the claim moves ``process_at`` to the end of the lease and
writes a ``lease_id``; only the worker that knows it may settle the row.

Every method takes a Connection and neither commits nor rolls back: the caller owns the transaction.
(A Session would do, but takes 150 µs more per statement: half the cost of a job that runs alone.)
Statements are built once, so SQLAlchemy and the driver keep them prepared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Dialect, Select, Table, select
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import DBAPIError

from ..database.dialects import Database, require_release
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
from ..models.foreign_keys import check_cascades, check_references
from ..models.job_classes import child_tables, job_table
from ..models.mixins import ArchivedJobMixin, JobMixin
from ..models.preflight import check_tables
from ..models.requirements import TableUse, explanation_of
from ..wakeup.announce import announce_ends_on
from . import claim_filter as filters
from .chain import Chain
from .claim_filter import MAX_COUNTED, ClaimFilter, LaneStarts
from .conditions import claim_again, endings
from .loading import JobLoader
from .paused_queues import select_paused
from .statement_cache import compile_once
from .table_uses import table_uses

if TYPE_CHECKING:
    from .shares import QueueShares

Lease: TypeAlias = tuple[Any, Any]
"""The ids of a job and of its lease."""


class Store(ABC):
    """The statements for one pair of tables, and for the queues that one worker serves.

    Make one with :func:`.open_store`.

    :param queues: names of the queues, the most urgent first.
    :param running: the table of running markers, if the worker uses one.
    :param paused: the table of paused queues, if the worker reads one.
    :param prunes: whether the worker prunes the archive.
    :param leased: whether the worker holds jobs by leases.
    :param claim_filter: which job types are claimed; None for all.
    :param weights: by queue, if the queues share the worker by weight.
    :param keeping: the job types whose results are kept; more may be added later.
    """

    _of_ids: ColumnElement[bool]
    """The condition on the rows whose ids are in the parameter ``ids``."""
    _unknown_types: Select[*tuple[Any, ...]]

    def __init__(
        self,
        job_model: type[JobMixin],
        archived_job_model: type[ArchivedJobMixin],
        queues: Sequence[str],
        running: Table | None = None,
        *,
        paused: Table | None = None,
        prunes: bool = False,
        database: Database,
        leased: bool = False,
        claim_filter: ClaimFilter | None = None,
        weights: Mapping[str, int] | None = None,
        keeping: Collection[str] = frozenset(),
    ) -> None:
        self.database = database
        self.job_model = job_model
        self.queues: tuple[str, ...] = tuple(queues)
        self.open_queues: tuple[str, ...] = self.queues
        """The queues that are not paused."""
        self.leased = leased
        self.shares: QueueShares | None = None
        """Decides the order of the queues in each claim; None if it is always the same."""
        if weights is not None:
            from .shares import QueueShares  # in memory only where it is used

            self.shares = QueueShares(weights)
        self.keeping = keeping
        self._detailed = weights is not None
        """Whether claims return the queue and the due time of each job."""
        self._filter = claim_filter
        self._starts: LaneStarts = claim_filter or LaneStarts()
        self._slow = False
        self._job = job_table(job_model)
        self._archived: Table = sa_inspect(archived_job_model).local_table
        self._children = tuple(child_tables(job_model))
        self._running = running
        self.table_name: str = str(self._job)
        self.uses: tuple[TableUse, ...] = table_uses(
            self._job, self._archived, self._running, self._children, paused, prunes=prunes
        )
        self._paused = None if paused is None else select_paused(paused)
        self._checked = False
        self._prepare()
        self.rows: JobLoader = JobLoader(job_model, self._of_ids)
        if not leased:
            self._claim_again = claim_again(job_model, running, self._of_ids)
        self._endings = endings(self._job, self._of_ids)

    @abstractmethod
    def _prepare(self) -> None:
        """Build the statements."""

    def read_details(self) -> None:
        """Let claims return the queue and the due time of each job, which take time to read."""
        if not self._detailed:
            self._detailed = True
            self._prepare()

    def check_tables(self, connection: Connection) -> None:
        """Raise :class:`DatabaseNotReadyError` unless the tables fit the statements."""
        require_release(connection.dialect)
        check_tables(connection, self.uses)
        if not self._checked:
            check_cascades(connection, self.job_model)
            check_references(connection, self.job_model)
            self._compile(connection.dialect)
            self._checked = True

    def _compile(self, dialect: Dialect) -> None:
        for part in vars(self).values():
            for statement in part.values() if isinstance(part, dict) else (part,):
                compile_once(statement, dialect)

    # Transactions.

    @contextmanager
    def begin(self, connection: Connection) -> Generator[None]:
        """Begin a transaction of the worker's own.

        :raises DatabaseNotReadyError: if the database rejects one of the library's statements.
        """
        try:
            with self._transaction(connection):
                yield
        except DBAPIError as error:
            self.raise_explained(connection, error)
            raise

    def _transaction(self, connection: Connection) -> AbstractContextManager[object]:
        return self.database.begin(connection)

    def raise_explained(self, connection: Connection, error: DBAPIError) -> None:
        """Raise :class:`DatabaseNotReadyError` if that is what the error means."""
        explanation = explanation_of(error, connection, self.uses)
        if explanation is not None:
            raise explanation from error

    # Paused queues.

    def paused(self, connection: Connection) -> frozenset[str]:
        """Return which of the worker's queues are paused."""
        if self._paused is None:
            return frozenset()
        return frozenset(connection.scalars(self._paused, {"queues": self.queues}))

    def skip(self, paused: Collection[str]) -> None:
        """Claim no more jobs of these queues, and claim jobs of all others again."""
        self.open_queues = tuple(queue for queue in self.queues if queue not in paused)

    # Claim.

    def _queues_in_turn(self) -> tuple[str, ...]:
        """Return the queues that are not paused, in the order of the next claim."""
        return self.open_queues if self.shares is None else self.shares.order(self.open_queues)

    def forget_starts(self) -> None:
        """Let the next claim start at the beginning of each lane; see :mod:`.claim_filter`."""
        self._starts.forget()

    def _is_slow_again(self, started: float) -> bool:
        """Return whether a claim was slow, and the one before it as well.

        The first claim of an engine is slow because SQLAlchemy compiles its statement.
        """
        was_slow, self._slow = self._slow, perf_counter() - started > filters.SLOW
        return was_slow and self._slow

    @abstractmethod
    def claim(
        self, connection: Connection, limit: int, now: datetime, shared: datetime | None = None
    ) -> list[ClaimedJob]:
        """Lock up to ``limit`` due jobs and return them, the most urgent first.

        :param shared: the time by which leases have expired; required in lease mode.
        """

    def claim_again(
        self, connection: Connection, jobs: Sequence[ClaimedJob], now: datetime
    ) -> list[ClaimedJob]:
        """Lock jobs that were claimed and released, in transaction mode; return those still due."""
        ids = [job.job_id for job in jobs]
        rows: Iterable[Any] = connection.execute(self._claim_again, {"ids": ids, "now": now})
        found = {row[0]: ClaimedJob(*row) for row in rows}
        return [
            found[job.job_id]._replace(queue=job.queue, process_at=job.process_at)
            for job in jobs
            if job.job_id in found
        ]

    def chain(self, connection: Connection) -> Chain | None:  # noqa: ARG002 - see PostgreSQLStore
        """Return what commits and claims in one round trip; None if that is not possible."""
        return None

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
        """Commit the transaction, and claim jobs in the next one as :meth:`claim` does.

        :attr:`.Chain.committed` says whether the transaction was committed if this raises.

        :param archive: the ids of jobs that succeeded, and that are archived before the commit,
            with their markers; None if all jobs are settled.
        :param release: as for :meth:`.Chain.commit_and_claim`, and so is ``savepoint``.
        :raises OwnJobRemovedError: if the row of such a job does not exist any more.
        """
        raise NotImplementedError

    @abstractmethod
    def next_due(self, connection: Connection, now: datetime) -> NextDue:
        """Return whether jobs are due that others hold, and when the next job comes due."""

    def unknown_types(self, connection: Connection, now: datetime) -> dict[str, int]:
        """Return the number of due jobs by type, for the types that the worker does not claim."""
        if self._filter is None:
            return {}
        parameters = {"known": self._filter.known(), "now": now, "most": MAX_COUNTED}
        rows = connection.execute(self._unknown_types, self._everywhere() | parameters)
        return {row.job_type: row.jobs for row in rows}

    def _everywhere(self) -> dict[str, Any]:
        """Return the parameters that stand for all queues."""
        return {"queues": list(self.queues)}

    def reclaim(self, connection: Connection, job: ClaimedJob) -> bool:
        """Lock one job again; return whether it is still as it was when it was claimed."""
        model = self.job_model
        statement = (
            select(model.job_id)
            .where(model.job_id == job.job_id, model.attempts == job.attempts - 1)
            .with_for_update(skip_locked=True)
        )
        return connection.execute(statement).first() is not None

    def free_keys(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> list[ClaimedJob]:
        """Free the unique keys that are taken only while their locked jobs are waiting.

        Return the jobs without those whose key another transaction has locked: it wants to commit
        before the job runs.
        """
        from .unique_keys import free_keys  # few workers have such jobs

        ids = [job.job_id for job in jobs if job.queued_key is not None]
        keys = [job.queued_key for job in jobs if job.queued_key is not None]
        freed = free_keys(connection, self._job, self.queues, keys, ids)
        return [job for job in jobs if job.queued_key is None or job.job_id in freed]

    # Read.

    def endings(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> dict[Any, Ending]:
        """Return how jobs ended that wait for the archive, by job id."""
        ids = [job.job_id for job in jobs]
        rows = connection.execute(self._endings, {"ids": ids})
        return {row.job_id: Ending(row.error, row.ended_at) for row in rows}

    # Settle.

    def settle(
        self,
        connection: Connection,
        results: Sequence[Result],
        now: datetime,
        *,
        marked: Iterable[Any] = (),
    ) -> None:
        """Write the outcomes of locked jobs: to the archive, or back to their queue.

        The row of a job that was interrupted, or that has no result, does not change.

        :param marked: ids of the jobs whose running markers are removed.
        :raises OwnJobRemovedError: if the row of a job that succeeded does not exist any more.
        """
        successes = [job.job_id for job, outcome in results if outcome is SUCCEEDED]
        if successes and 0 <= self._archive_successes(connection, successes, now) < len(successes):
            raise OwnJobRemovedError
        if len(successes) < len(results):
            rest = [
                (job, outcome)
                for job, outcome in results
                if outcome is not SUCCEEDED and outcome is not INTERRUPTED
            ]
            written = self._write(connection, rest, now)
            if any(isinstance(end, Succeeded) and job.job_id not in written for job, end in rest):
                raise OwnJobRemovedError
        self._remove_markers(connection, marked, successes)

    def settle_leased(
        self, connection: Connection, results: Sequence[Result], now: datetime, *, wait: bool
    ) -> set[Any]:
        """Write the outcomes of leased jobs; return the ids of the jobs whose lease was not lost.

        A job that was interrupted is due again, as it was before the claim.

        :param wait: wait for rows that others have locked; otherwise skip them.
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
            if self.keeping and any(job.job_type in self.keeping for job, _ in ended):
                announce_ends_on(connection, self.job_model)
        returned = [
            Returned.of(job, outcome)
            for job, outcome in results
            if isinstance(outcome, Retried | Refused | Snoozed | Interrupted)
        ]
        if returned:
            written |= self._reschedule_each(connection, returned, wait=wait)
        return written

    @abstractmethod
    def _archive_successes(self, connection: Connection, ids: Sequence[Any], now: datetime) -> int:
        """Archive locked jobs and return their number; less than 0 if the driver cannot tell."""

    @abstractmethod
    def _archive_each(
        self, connection: Connection, ended: Sequence[Ended], now: datetime, *, wait: bool
    ) -> set[Any]:
        """Archive held jobs, with the results that are kept, and return their ids."""

    @abstractmethod
    def _reschedule_each(
        self, connection: Connection, returned: Sequence[Returned], *, wait: bool
    ) -> set[Any]:
        """Return held jobs to their queue and return their ids."""

    @abstractmethod
    def _remove_markers(
        self, connection: Connection, marked: Iterable[Any], archived: Iterable[Any]
    ) -> None:
        """Remove markers.

        :param archived: ids of jobs that :meth:`_archive_successes` was called with.
        """

    @abstractmethod
    def count_deaths(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> None:
        """Write the deaths of locked jobs."""

    # Leases.

    def lease(
        self, connection: Connection, jobs: Iterable[ClaimedJob], until: datetime
    ) -> list[ClaimedJob]:
        """Lease locked jobs, write their deaths, and return the jobs with their lease."""
        lease_id = uuid4()
        leased = [job._replace(lease_id=lease_id) for job in jobs]
        if leased:
            self._lease_each(connection, leased, until, lease_id)
        return leased

    @abstractmethod
    def _lease_each(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime, lease_id: Any
    ) -> None:
        """Write the lease and the deaths of locked jobs."""

    def extend(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime
    ) -> Sequence[ClaimedJob]:
        """Extend the leases of jobs, and return the jobs whose lease is lost."""
        kept = self._extend_each(connection, jobs, until)
        rest = [job for job in jobs if lease_of(job) not in kept]
        kept |= self._held_among(connection, rest)
        return [job for job in rest if lease_of(job) not in kept]

    @abstractmethod
    def _extend_each(
        self, connection: Connection, jobs: Sequence[ClaimedJob], until: datetime
    ) -> set[Lease]:
        """Extend the leases of the jobs that no other session has locked, and return these."""

    def still_held(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> set[Any]:
        """Return the ids of the jobs whose lease is not lost, locked by others or not."""
        return {job_id for job_id, _ in self._held_among(connection, jobs)}

    @abstractmethod
    def _held_among(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> set[Lease]:
        """Return the leases that are not lost."""

    @abstractmethod
    def release(self, connection: Connection, jobs: Sequence[ClaimedJob]) -> None:
        """Undo the leases of jobs, if they were committed: the jobs are due as they were."""


def lease_of(job: ClaimedJob) -> Lease:
    """Return what identifies the lease on a job."""
    return job.job_id, job.lease_id
