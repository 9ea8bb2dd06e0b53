"""Transaction mode: claim, perform, settle and commit due jobs in one transaction.

The rows stay locked while their handlers run. When the connection ends, for whatever reason, the
server releases the locks and the jobs are due again. What happens if the transaction fails is in
:mod:`.recovery`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ...clock import Clock
from ...database.connections import sever
from ...lifecycle.claimed import NOTHING_WAITS, ClaimedJob, NextDue, Result
from ...lifecycle.run import Run
from ...liveness.handler_connections import HandlerConnection
from ...liveness.markers import BatchMarkers
from ...store.base import Store
from ...store.chain import Chain
from ...wakeup.announce import has_jobs
from ..archive_refusal import CautiousSettling
from ..decide import OutcomeDecider
from ..perform import JobExecutor
from ..report import Reporter
from .batch import Batch
from .batch_size import BatchSize
from .exclusive import ExclusiveRuns
from .perform_batch import BatchPerformer
from .recovery import TransactionRecovery

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
    :param exclusive: shared by all runners of the worker; None if there is only one.
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
        exclusive: ExclusiveRuns | None = None,
    ) -> None:
        self.next_due: NextDue = NOTHING_WAITS
        self.ran: int = 0
        self.tainted: Connection | None = None
        self.reached: bool = True
        self._store = store
        self._reporter = reporter
        self._recovery = recovery
        self._batch_size = batch_size
        self._now = now
        self._stopping = stopping
        self._markers = markers
        self._handler_connection = handler_connection
        self._on_claim = on_claim
        self._limiter = limiter
        self._exclusive = exclusive
        self._settling = CautiousSettling(store, decider)
        self._performer = BatchPerformer(
            executor=executor,
            decider=decider,
            batch_size=batch_size,
            make_session=make_session,
            stopping=stopping,
            limiter=limiter,
        )
        self._batch = Batch()
        self._connection: Connection | None = None
        self._chain: Chain | None = None
        self._chosen: Sequence[ClaimedJob] = ()
        """The jobs of a batch handler to claim next."""
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
        self._performer.begin()
        if self._recovery.pending is not None:
            self._recovery.count_pending(connection, batch)
            self._publish(batch)
            return True
        if self._exclusive is None:
            return self._run_due(connection)
        if not self._exclusive.enter(self):
            return False
        try:
            return self._run_due(connection)
        finally:
            self._exclusive.leave(self)

    def _run_due(self, connection: Connection) -> bool:
        batch = self._batch
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
            self.tainted = self._performer.tainted or self.tainted
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
        batch.claimed_at = self._now()
        claimed: Sequence[ClaimedJob] = ()
        limit = 0
        if self._chosen:
            chosen, self._chosen = self._chosen, ()
            claimed = self._store.claim_again(connection, chosen, batch.claimed_at)
            limit = len(claimed)  # the other jobs are due, too
        if not claimed:
            limit = self._batch_size.limit()
            claimed = self._store.claim(connection, limit, batch.claimed_at)
        self._perform_claimed(connection, claimed, limit, batch)

    def _can_chain(self, batch: Batch) -> bool:
        """Return whether to commit a batch together with the next claim.

        Not if there is a failure to report, while the next jobs would be locked. Not if the batch
        has enqueued jobs: SQLAlchemy's COMMIT announces them, and the ends of jobs whose results
        are kept. Not after a rollback: the driver then deallocates the prepared statements.
        """
        if self._chain is None or self._chosen or has_jobs(self._chain.connection):
            return False
        if self._exclusive is not None and self._exclusive.is_requested:
            return False
        if not batch.claimed or batch.failures or batch.settled_first.results or self._stopping():
            return False
        keeping = self._store.keeping
        if keeping and any(job.job_type in keeping for job, _ in batch.results):
            return False
        if batch.admission is not None:  # its places are to be freed
            return False
        return not (self._performer.tainted or self._performer.was_rolled_back)

    def _commit_and_perform(self, connection: Connection, done: Batch, *, proven: bool) -> Batch:
        """Settle and commit a batch, and claim and perform the next one in the next transaction.

        :param proven: whether the prepared statements exist, so that the same message may settle.
        """
        # A rollback to a SAVEPOINT releases the locks behind it, and with them places.
        savepoint = done.session is not None and self._limiter is None
        limit = self._batch_size.limit()
        archive = done.successes_only() if proven else None
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

    def _perform_claimed(
        self, connection: Connection, claimed: Sequence[ClaimedJob], limit: int, batch: Batch
    ) -> None:
        jobs = self._accept(connection, claimed, limit, batch)
        if jobs and self._batch_size.call_sizes:
            jobs = self._of_one_kind(jobs)
        jobs = self._mark(connection, self._batch_size.together(jobs), batch)
        if jobs:
            self._performer.perform(connection, jobs, batch)

    def _of_one_kind(self, jobs: Sequence[ClaimedJob]) -> Sequence[ClaimedJob]:
        """Return the jobs that may run in this transaction; none if it would hold others back.

        In that case, this transaction releases all of them, and the next one claims the jobs of a
        batch handler only: the others are free while its call takes its time.
        """
        kind = self._batch_size.of_one_kind(jobs)
        if len(kind) < len(jobs) and kind[0].job_type in self._batch_size.call_sizes:
            self._chosen = kind
            return ()
        return kind

    def _publish(self, batch: Batch) -> None:
        """Report what a committed batch did."""
        if batch.settled_first.results:
            self._reporter.publish(batch.settled_first)
        if batch.results:
            self._reporter.publish(batch)
            if self._recovery.owed or self._recovery.losses.counts:
                self._recovery.forget(batch.results)
        self._reporter.undone(batch.runs)  # of a call that is repeated after the next claim
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
        if self._exclusive is not None and self._exclusive.must_wait(self, jobs):
            return ()
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
        self._performer.forget_session()
        self._chosen = ()
        self._query_may_run = self._handler_connection is not None and connection.invalidated
        if not self._performer.split(batch.run, error):
            self._batch_size.run_alone(batch.claimed)
        self._reporter.undone(batch.runs, error)
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
        self._performer.close()

    def patience(self) -> float | None:
        """Return the number of seconds until a rate allows the next start; None for no limit."""
        return None if self._limiter is None else self._limiter.patience()

    @property
    def in_handler(self) -> bool:
        """Whether the thread or task that polls runs a handler, or waits for those of others."""
        waits = self._exclusive is not None and self in self._exclusive.waiting
        return waits or self._batch.run is not None

    def handling(self) -> int:
        """Return how many jobs have a handler that runs; any thread may ask."""
        run = self._batch.run
        return 0 if run is None else len(run.members)

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
