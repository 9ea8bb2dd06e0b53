"""Transaction mode: claim, perform, settle and commit due jobs in one transaction.

The rows stay locked while their handlers run. When the connection ends, for whatever reason, the
server releases the locks and the jobs are due again. What happens if the transaction fails is in
:mod:`.recovery`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ...clock import Clock
from ...database.connections import sever
from ...database.error_codes import is_undone
from ...lifecycle.claimed import NOTHING_WAITS, ClaimedJob, NextDue, Result
from ...lifecycle.outcomes import SUCCEEDED
from ...lifecycle.run import Run
from ...liveness.handler_connections import HandlerConnection
from ...liveness.markers import BatchMarkers
from ...store.base import Store
from ...store.chain import SAVEPOINT, Chain
from ...wakeup.announce import has_jobs
from ..archive_refusal import CautiousSettling
from ..connection_state import ConnectionState
from ..decide import OutcomeDecider
from ..perform import JobExecutor, set_errors
from ..report import Reporter
from .batch import Batch
from .batch_size import BatchSize
from .recovery import TransactionRecovery
from .session import BatchSession

if TYPE_CHECKING:
    from ...limits.limiter import Admission, Limiter

LAST_CHAINED: Final = 0.25
"""Seconds after which a poll claims no more jobs, whatever the batch window: between polls a worker
finds out which queues are paused."""


class TransactionRunner:
    """Runs the jobs of one thread or task, each batch in a transaction of one connection.

    :param make_session: makes the handlers' sessions.
    :param handler_connection: makes the connection known to other workers.
    :param on_claim: called when jobs are claimed, before they run, with whether there may be more.
    :param limiter: the limits of the handlers; None if they have none.
    """

    def __init__(
        self,
        *,
        store: Store,
        executor: JobExecutor,
        decider: OutcomeDecider,
        reporter: Reporter,
        recovery: TransactionRecovery,
        batch_size: BatchSize,
        make_session: Callable[..., Session],
        now: Clock,
        stopping: Callable[[], bool],
        markers: BatchMarkers | None = None,
        handler_connection: HandlerConnection | None = None,
        on_claim: Callable[[bool], object] = lambda more: None,  # noqa: ARG005
        limiter: Limiter | None = None,
    ) -> None:
        self.next_due: NextDue = NOTHING_WAITS
        self.ran: int = 0
        self.tainted: Connection | None = None
        self._store = store
        self._executor = executor
        self._decider = decider
        self._reporter = reporter
        self._recovery = recovery
        self._batch_size = batch_size
        self._make_session = make_session
        self._now = now
        self._stopping = stopping
        self._markers = markers
        self._handler_connection = handler_connection
        self._on_claim = on_claim
        self._limiter = limiter
        self._settling = CautiousSettling(store, decider)
        self._batch = Batch()
        self._connection: Connection | None = None
        self._chain: Chain | None = None
        self._state: ConnectionState | None = None
        self._session: BatchSession | None = None
        self._given_up = False
        self._query_may_run = False
        """Whether the server may still run a query on a connection that was lost or severed."""

    @property
    def busy(self) -> bool:
        """Whether it must count a failed attempt, or end a lost connection."""
        return self._recovery.pending is not None or self._query_may_run

    # One transaction.

    def poll(self, connection: Connection) -> bool:
        """Claim, perform, settle and commit due jobs; return whether there were any.

        After an error, the connection may be unusable: the next poll needs another one.
        """
        batch = self._batch = Batch()
        self._use(connection)
        if self._state is not None:
            self._state.rolled_back = False
        if self._recovery.pending is not None:
            self._recovery.count_pending(connection, batch)
            self._publish(batch)
            return True
        last = perf_counter() + LAST_CHAINED
        try:
            with self._store.begin(connection):
                self._claim_and_perform(connection, batch)
                until = min(last, perf_counter() + self._batch_size.window)
                proven = False
                while perf_counter() < until and self._can_chain(batch):
                    batch = self._commit_and_perform(connection, batch, proven=proven)
                    proven = True
                self._settle(connection, batch)
                if not batch.claimed:
                    since = batch.claimed_at or self._now()
                    self.next_due = self._store.next_due(connection, since)
        except BaseException as error:
            if not self._recover(connection, self._batch, error):
                raise
        finally:
            if self._state is not None and self._state.tainted:
                self.tainted = self._state.connection
        self._publish(self._batch)
        if self._batch.admission is not None and not connection.invalidated:
            self._free_places(connection, self._batch.admission)
        return self._batch.claimed > 0

    def run_due(self, connection: Connection, batch: Batch) -> None:
        """Claim, perform and settle due jobs; the caller commits.

        :param batch: is updated while it happens, so that it is valid if this raises.
        """
        batch.is_own = False
        self._claim_and_perform(connection, batch)
        self._settle(connection, batch)

    def _claim_and_perform(self, connection: Connection, batch: Batch) -> None:
        limit = self._batch_size.limit()
        batch.claimed_at = self._now()
        claimed = self._store.claim(connection, limit, batch.claimed_at)
        self._perform_claimed(connection, claimed, limit, batch)

    def _can_chain(self, batch: Batch) -> bool:
        """Return whether to commit a batch together with the next claim.

        Not if there is a failure to report, while the next jobs would be locked. Not if the batch
        has enqueued jobs: SQLAlchemy's COMMIT announces them, and the ends of jobs whose results
        are kept. Not after a rollback: the driver then deallocates the prepared statements.
        """
        if self._chain is None or has_jobs(self._chain.connection):
            return False
        if not batch.claimed or batch.failures or batch.settled_first.results or self._stopping():
            return False
        keeping = self._store.keeping
        if keeping and any(job.job_type in keeping for job, _ in batch.results):
            return False
        if batch.admission is not None:  # its places are to be freed
            return False
        state = self._state
        return state is None or not (state.tainted or state.rolled_back)

    def _commit_and_perform(self, connection: Connection, done: Batch, *, proven: bool) -> Batch:
        """Settle and commit a batch, and claim and perform the next one in the next transaction.

        :param proven: whether the prepared statements exist, so that the same message may settle.
        """
        # A rollback to a SAVEPOINT releases the locks behind it, and with them places.
        savepoint = done.session is not None and self._limiter is None
        limit = self._batch_size.limit()
        archive = self._successes_only(done) if proven else None
        if archive is None:
            self._settle(connection, done)
        else:
            self._confirm_marker(done)
        chain = cast("Chain", self._chain)
        now = self._now()
        batch = Batch(claimed_at=now, has_savepoint=savepoint)
        try:
            claimed = self._store.commit_and_claim(
                chain,
                limit,
                now,
                archive,
                release=done.has_savepoint,
                savepoint=savepoint,
            )
        finally:
            if chain.committed:
                self._batch = batch
                self._publish(done)
        self._perform_claimed(connection, claimed, limit, batch)
        return batch

    @staticmethod
    def _successes_only(batch: Batch) -> list[Any] | None:
        """Return the ids of the jobs of a batch that only has to be archived; otherwise None."""
        if batch.stale:
            return None
        ids = [job.job_id for job, outcome in batch.results if outcome is SUCCEEDED]
        if len(ids) < len(batch.results) or not set(BatchMarkers.ids_of(batch.marked)) <= set(ids):
            return None
        return ids

    def _perform_claimed(
        self, connection: Connection, claimed: Sequence[ClaimedJob], limit: int, batch: Batch
    ) -> None:
        jobs = self._accept(connection, claimed, limit, batch)
        jobs = self._mark(connection, self._batch_size.together(jobs), batch)
        if jobs:
            self._perform(connection, jobs, batch)

    def _publish(self, batch: Batch) -> None:
        """Report what a committed batch did."""
        if batch.settled_first.results:
            self._reporter.publish(batch.settled_first)
        if batch.results:
            self._reporter.publish(batch)
            if self._recovery.owed or self._recovery.losses.counts:
                self._recovery.forget(batch.results)
        self.ran += len(batch.results) + len(batch.settled_first.results)

    # Its steps.

    def _accept(
        self, connection: Connection, claimed: Sequence[ClaimedJob], limit: int, batch: Batch
    ) -> Sequence[ClaimedJob]:
        """Return the claimed jobs that have to run."""
        if self._stopping():  # requested meanwhile: the commit releases the jobs
            claimed = []
        batch.claimed = len(claimed)
        if claimed:
            self._on_claim(len(claimed) == limit)
        if self._limiter is not None and claimed:
            claimed = self._admit(connection, claimed, batch, self._limiter)
        if any(job.queued_key is not None for job in claimed):
            claimed = self._free_keys(connection, claimed, batch)
        if any(job.ended_as for job in claimed):
            ended = [job for job in claimed if job.ended_as]
            write = partial(self._write, connection)
            self._settling.settle_ended(connection, ended, batch.settled_first, write)
            claimed = [job for job in claimed if not job.ended_as]
        if self._recovery.owed:
            claimed = self._recovery.without_owed(connection, claimed, batch)
        return claimed

    def _free_keys(
        self, connection: Connection, claimed: Sequence[ClaimedJob], batch: Batch
    ) -> Sequence[ClaimedJob]:
        """Free the keys of jobs whose keys are taken only while they wait; return the jobs to run.

        Others see that a key is free when the transaction commits, which must not take as long as
        the handlers. So the commit comes first, and the next claim finds the jobs without keys.
        """
        free = self._store.free_keys(connection, claimed)
        batch.claimed = len(free)
        if batch.is_own and any(job.queued_key is not None for job in free):
            return []
        return free

    def _admit(
        self,
        connection: Connection,
        jobs: Sequence[ClaimedJob],
        batch: Batch,
        limiter: Limiter,
    ) -> Sequence[ClaimedJob]:
        """Return the jobs that may run now, by the limits of their types."""
        batch.admission = limiter.admit(connection, jobs, partial(self._claim_more, connection))
        return jobs if batch.admission is None else batch.admission.jobs

    def _claim_more(self, connection: Connection, limit: int) -> Sequence[ClaimedJob]:
        return self._store.claim(connection, limit, self._now())

    def _free_places(self, connection: Connection, admission: Admission) -> None:
        """Let the jobs be due that wait for the places of a transaction that has ended."""
        if self._limiter is not None:
            freed = dict.fromkeys(admission.names.values(), self._batch_size.limit())
            self._limiter.after_commit(connection, freed=freed, parked=admission.parked)

    def _mark(
        self, connection: Connection, jobs: Sequence[ClaimedJob], batch: Batch
    ) -> Sequence[ClaimedJob]:
        """Mark jobs as running and return them; return none if a worker crashed on one of them."""
        if self._markers is None or not jobs:
            return jobs
        batch.marked = jobs
        if self._handler_connection is not None:
            self._handler_connection.announce(connection, jobs[0].job_id)
        verdict = self._markers.place(jobs, self._now())
        if verdict is None:
            return jobs
        batch.marked = ()
        self._batch_size.run_alone(len(verdict.suspects) + len(verdict.died))
        if verdict.died:
            self._recovery.count_deaths(connection, jobs, verdict.died, batch)
        return ()

    def _perform(self, connection: Connection, jobs: Sequence[ClaimedJob], batch: Batch) -> None:
        """Run the handlers of jobs, one after the other, until the batch window has passed."""
        started = perf_counter()
        end = started + self._batch_size.window
        batch.runs = self._executor.prepare(connection, jobs)
        admission = batch.admission
        if admission is not None:
            set_errors(batch.runs, admission.errors)
        open_session = partial(self._open_session, connection, batch)
        late = False
        for run in batch.runs:
            if late and run.end_reason is None:
                continue  # the commit releases it
            if admission is not None and not self._may_start(run, admission):
                continue
            job, batch.run = run.job, run
            batch.suspect = job
            try:
                self._executor.perform(run, open_session)
            except Exception as error:
                if connection.invalidated or is_undone(error):
                    if batch.session is not None and batch.session.broken:
                        batch.run = None
                    raise
                self._decider.fail(connection, job, error, batch)
            else:
                batch.results.append((job, run.success))
            if batch.session is not None and batch.session.state.tainted:
                batch.tainting_run, late = run, True  # no other job may use the connection
            finished = perf_counter()
            self._batch_size.record(job.job_type, finished - started)
            late = late or finished > end or self._stopping()
            started = finished
        batch.run = None
        batch.suspect = jobs[0] if len(jobs) == 1 else None
        if batch.session is not None:
            self._flush(connection, batch.session, batch)

    def _may_start(self, run: Run, admission: Admission) -> bool:
        if self._limiter is None or run.row_error is not None or run.end_reason is not None:
            return True
        return self._limiter.start(run.job, admission)

    def _open_session(
        self, connection: Connection, batch: Batch, run: Run
    ) -> AbstractContextManager[Any]:
        if batch.session is None:
            batch.session = self._session_on(connection)
            batch.session.restart(SAVEPOINT if batch.has_savepoint else None)
        return batch.session.savepoint(run)

    def _session_on(self, connection: Connection) -> BatchSession:
        if self._session is None or self._session.connection is not connection:
            if self._state is None or self._state.connection is not connection:
                self._state = ConnectionState(connection)
            self._session = BatchSession(connection, self._make_session, self._state)
        return self._session

    def _flush(self, connection: Connection, session: BatchSession, batch: Batch) -> None:
        """Flush the pending objects of the handlers; the jobs whose objects fail have failed."""
        failed = {run.job: error for run, error in session.flush().items()}
        if not failed:
            return
        if connection.invalidated:
            raise next(iter(failed.values()))
        results, batch.results = batch.results, []
        for job, outcome in results:
            if job in failed:
                self._decider.fail(connection, job, failed[job], batch)
            else:
                batch.results.append((job, outcome))

    def _settle(self, connection: Connection, batch: Batch) -> None:
        """Write the outcomes of a batch, and remove its markers."""
        if not batch.claimed:
            return
        self._confirm_marker(batch)
        if batch.admission is not None and self._limiter is not None:
            more, ran = partial(self._claim_more, connection), batch.results
            self._limiter.park_unstarted(
                connection, batch.admission, more, [job.job_id for job, _ in ran]
            )
        marked = [*BatchMarkers.ids_of(batch.marked), *batch.stale] if self._markers else ()
        self._store.settle(connection, batch.results, self._now(), marked=marked)

    def _confirm_marker(self, batch: Batch) -> None:
        if self._markers is not None and batch.marked:
            self._markers.confirm()

    def _write(self, connection: Connection, results: Sequence[Result]) -> None:
        self._store.settle(connection, results, self._now())

    # Errors, and the end.

    def _use(self, connection: Connection) -> None:
        """Note which connection is used; a new one replaces one that was lost."""
        if self._connection not in (None, connection, self.tainted):
            if self._markers is not None:
                self._markers.distrust()
            if self._handler_connection is not None:
                self._handler_connection.replace(connection)
                self._query_may_run = False
        if connection is not self._connection:
            self._connection, self._chain = connection, self._store.chain(connection)

    def _recover(self, connection: Connection, batch: Batch, error: BaseException) -> bool:
        """Return whether a failed transaction needs no further attention."""
        self._session = None
        self._query_may_run = self._handler_connection is not None and connection.invalidated
        self._batch_size.run_alone(batch.claimed)
        if self._given_up:
            return False
        self._withdraw_markers(batch)
        return self._recovery.recover(connection, batch, error)

    def _withdraw_markers(self, batch: Batch) -> None:
        """Remove the markers of a batch whose transaction failed: this worker has not crashed."""
        if self._markers is not None and batch.marked:
            self._markers.withdraw(batch.marked)

    def close(self) -> None:
        """Stop watching the connection, which belongs to the caller."""
        if self._state is not None:
            self._state.close()
            self._state = None

    def patience(self) -> float | None:
        """Return the number of seconds until a rate allows the next start; None for no limit."""
        return None if self._limiter is None else self._limiter.patience()

    def running(self) -> Iterable[Run]:
        """Return the run whose handler is running."""
        return [self._batch.run] if self._batch.run else []

    def held(self) -> Iterable[Run]:
        """Return the runs of the open transaction, whether they have begun or not."""
        return self._batch.runs

    def give_up(self) -> int:
        """Sever the connection, so that the server rolls back; return how many handlers are left.

        The markers are removed first, so that the next worker does not count a crash.
        """
        self._given_up = True
        self._withdraw_markers(self._batch)
        connection = self._connection
        if connection is None:
            return 0
        held = connection.in_transaction() and self._batch.claimed > 0
        sever(connection)
        self._query_may_run = held and self._handler_connection is not None
        return int(held)
