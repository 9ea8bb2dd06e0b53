"""What follows when the transaction of a batch fails.

Its jobs run again one by one. If one job is the cause, its attempt has failed, and that is counted
in a transaction of its own. Without this, a job that undoes every transaction that it runs in would
run forever.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection

from ...clock import Clock
from ...database.connections import is_due_to_loss, is_lost
from ...database.error_codes import is_conflict
from ...database.prepared import is_deallocated
from ...errors import DatabaseNotReadyError, JobCancelledError
from ...lifecycle.claimed import ClaimedJob, Result
from ...liveness.connection_losses import ConnectionLosses
from ...liveness.poison import poison_error, with_death
from ...runtime.base import Runtime
from ...store.base import Store
from ...telemetry.events import Events
from ..archive_refusal import CautiousSettling
from ..decide import OutcomeDecider
from .batch import Batch

_RECLAIM_TIMEOUT: Final = 5.0
"""Seconds for which a job is reclaimed whose connection was closed. The server checks every two
seconds whether the connection is still there, while it runs a query. A worker that stops waits a
tenth as long."""

_RECLAIM_INTERVAL: Final = 0.05


OwedAttempts: TypeAlias = dict[tuple[Any, int, Any], Exception]
"""The errors of failed attempts that are not counted yet, by :attr:`.ClaimedJob.key`.

All runners of a worker share them: the one that locks the job next counts the attempt."""


class TransactionRecovery:
    """Recovers from failed transactions of one runner.

    :param owed: shared by all runners of the worker, as is ``losses``.
    :param max_deaths: returns how many deaths fail a job.
    """

    def __init__(
        self,
        *,
        store: Store,
        decider: OutcomeDecider,
        events: Events,
        runtime: Runtime,
        now: Clock,
        stopping: Callable[[], bool],
        losses: ConnectionLosses,
        owed: OwedAttempts,
        max_deaths: Callable[[ClaimedJob], int],
    ) -> None:
        self.pending: ClaimedJob | None = None
        """The job whose failed attempt this runner has to count before it claims another job."""
        self._store = store
        self._decider = decider
        self._events = events
        self._runtime = runtime
        self._now = now
        self._stopping = stopping
        self.losses = losses
        self.owed = owed
        self._max_deaths = max_deaths
        self._settling = CautiousSettling(store, decider)

    # In the transaction that claims.

    def without_owed(
        self, connection: Connection, jobs: Sequence[ClaimedJob], batch: Batch
    ) -> Sequence[ClaimedJob]:
        """Count failed attempts that another runner has not counted yet; return the other jobs."""
        rest: list[ClaimedJob] = []
        for job in jobs:
            error = self.owed.get(job.key)
            if error is None:
                rest.append(job)
            else:
                self._decider.fail(connection, job, error, batch)
        return rest

    def count_deaths(
        self,
        connection: Connection,
        jobs: Sequence[ClaimedJob],
        workers: Mapping[Any, str | None],
        batch: Batch,
    ) -> None:
        """Count the deaths before the jobs run again; fail the jobs that have too many.

        :param workers: the workers that crashed, by job id.
        """
        died = [with_death(job) for job in jobs if job.job_id in workers]
        self._store.count_deaths(connection, died)
        batch.stale = [job.job_id for job in died]
        for job in died:
            if job.deaths >= self._max_deaths(job):
                error = poison_error(job, workers[job.job_id])
                self._decider.fail(connection, job, error, batch)

    def forget(self, results: Sequence[Result]) -> None:
        """Forget earlier problems of jobs that were settled."""
        for job, _ in results:
            self.losses.forget(job.job_id)
            self.owed.pop(job.key, None)

    # After a transaction that failed.

    def recover(self, connection: Connection, batch: Batch, error: BaseException) -> bool:
        """Count the failed attempt of the job to blame; return whether that settles the matter."""
        # The connection that writes markers may be the one that was lost, or cannot be opened.
        lost = connection.invalidated or is_lost(error) or isinstance(error, OSError)
        alone = batch.runs[0] if len(batch.runs) == 1 else None
        run = batch.run or batch.tainting_run or alone
        shared = run is not None and run.sole is None
        if run is not None and not shared:
            failure = self._failure_of(connection, run.job, batch, error, lost=lost)
            if failure is not None:
                self.pending = run.job
                self.owed[run.job.key] = failure
                batch.clear()
                return True
        if shared and self._closed_by_handler(connection, error):
            lost = False
        interrupted = isinstance(error, KeyboardInterrupt | CancelledError)
        # An error that every job would meet is not the fault of this one.
        not_ready = isinstance(error, DatabaseNotReadyError)
        if lost or interrupted or not_ready or self._stopping():
            return False
        raised = {failure.job.job_id: failure.error for failure in batch.failures}
        batch.clear()
        # A conflict in the library's statements is not the fault of a job; nor is it if a prepared
        # one has gone.
        conflict = batch.run is None and (is_conflict(error) or is_deallocated(error))
        if batch.suspect is None or conflict:
            retried = conflict or (batch.claimed > 1 and isinstance(error, Exception))
            if retried:
                self._events.emit("batch-undone", error, jobs=batch.claimed)
            return retried
        # If the archive rejected a failed job, that job's own error is the one to keep.
        blamed = raised.get(batch.suspect.job_id, error)
        with self._store.begin(connection):
            self._count(connection, batch.suspect, blamed, batch)
        return isinstance(error, Exception)

    def _failure_of(
        self,
        connection: Connection,
        job: ClaimedJob,
        batch: Batch,
        error: BaseException,
        *,
        lost: bool,
    ) -> Exception | None:
        """Return why the attempt of a job failed with its transaction; None if it did not."""
        if not isinstance(error, Exception):
            return None
        # If a job changed the role, it is the cause of errors about privileges.
        tainted = batch.tainting_run is not None and batch.tainting_run.job == job
        if self._closed_by_handler(connection, error) or (tainted and not lost):
            return error
        return self.losses.count(job.job_id, error) if lost else None

    def _closed_by_handler(self, connection: Connection, error: BaseException) -> bool:
        """Return whether the handler, and not the database, ended the connection.

        SQLAlchemy closes a connection when a query on it is cancelled, as by a timeout.
        """
        if not connection.invalidated or not isinstance(error, Exception):
            return False
        if isinstance(error, DatabaseNotReadyError) or is_due_to_loss(error):
            return False
        return isinstance(error, JobCancelledError) or not self._stopping()

    def count_pending(self, connection: Connection, batch: Batch) -> None:
        """Count the failed attempt of the pending job, on another connection."""
        job = self.pending
        if job is None:
            return
        until = monotonic() + _RECLAIM_TIMEOUT
        while (error := self.owed.get(job.key)) is not None and monotonic() < until:
            with self._store.begin(connection):
                if self._count(connection, job, error, batch):
                    break
            # The server may not have noticed yet that the first connection is closed.
            self._runtime.flag().wait(_RECLAIM_INTERVAL)
            if self._stopping():
                until = min(until, monotonic() + _RECLAIM_TIMEOUT / 10)
        self.owed.pop(job.key, None)
        self.pending = None

    def _count(
        self, connection: Connection, job: ClaimedJob, error: BaseException, batch: Batch
    ) -> bool:
        """Count a failed attempt of a job, if no other session has locked it."""
        if not self._store.reclaim(connection, job):
            return False
        if not isinstance(error, Exception):
            error = RuntimeError(f"the handler raised {error!r}")
        result = job, self._decider.decide(connection, job, error, batch)
        self._settling.settle(connection, result, batch, partial(self._write, connection))
        return True

    def _write(self, connection: Connection, results: Sequence[Result]) -> None:
        self._store.settle(connection, results, self._now())
