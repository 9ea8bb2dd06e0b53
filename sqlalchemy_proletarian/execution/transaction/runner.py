"""Jobs held by a transaction: claim → perform → settle → commit, and mend what went wrong.

The rows stay locked while their handlers run. When the connection ends, however it ends, the locks
are gone and the jobs are due.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from time import monotonic, perf_counter
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ...database.connections import is_due_to_loss, is_lost, sever
from ...database.error_codes import is_conflict, is_undone
from ...errors import DatabaseNotReadyError, JobCancelledError
from ...lifecycle.claimed import NOTHING_WAITS, ClaimedJob, NextDue, Result
from ...lifecycle.outcomes import SUCCEEDED
from ...lifecycle.run import Run
from ...liveness.markers import Markers
from ...liveness.orphans import Line
from ...liveness.poison import poison_error, with_death
from ...models.requirements import explained
from ..archive_refusal import settle_apart, settle_ended
from ..connection_state import SessionState
from ..perform import Performer, Report
from .batch_size import Pace
from .session import JobUnit

_PATIENCE = 5.0
"""Seconds for which a job is asked back whose connection was closed: a server that runs its query
looks at the line every two. A worker that stops waits a tenth of it."""

_BETWEEN_TRIES = 0.05


@dataclass
class Batch(Report):
    """What one transaction has in its hands.

    ``suspect`` is the job to blame when the transaction itself fails: the one that was running, or
    the only one there was.
    """

    claimed: int = 0
    marked: Sequence[ClaimedJob] = ()
    stale: Sequence[Any] = ()
    """Ids of jobs whose markers are those of other workers, and go with the commit."""
    claimed_at: datetime | None = None
    suspect: ClaimedJob | None = None
    runs: Sequence[Run] = ()
    run: Run | None = None
    changer: Run | None = None
    """The last run, which changed the state of the connection for good."""
    written: Report = field(default_factory=Report)
    """What was settled before it ran anything."""

    def clear(self) -> None:
        """Forget what the transaction would have done: it is rolled back."""
        super().clear()
        self.written.clear()

    def ended(self) -> int:
        """Return how many jobs were settled."""
        return len(self.results) + len(self.written.results)


class TransactionDesk:
    """Where one thread or task runs jobs, each batch in a transaction of one connection.

    :param make_session: makes the handlers' sessions.
    :param line: lets others find its connection.
    :param found: called when jobs are in hand, before they run, with whether there may be more.
    """

    def __init__(
        self,
        performer: Performer,
        *,
        make_session: Callable[..., Session],
        pace: Pace,
        markers: Markers | None = None,
        line: Line | None = None,
        found: Callable[[bool], object] = lambda more: None,  # noqa: ARG005
    ) -> None:
        self.due: NextDue = NOTHING_WAITS
        self.ran = 0
        self._performer = performer
        self._make_session = make_session
        self._pace = pace
        self._markers = markers
        self._line = line
        self._found = found
        self._batch = Batch()
        self._connection: Connection | None = None
        self._cut_short: ClaimedJob | None = None
        self._given_up = False
        self._state: SessionState | None = None
        self.tainted: Connection | None = None
        self._left = False
        """Whether the server may go on with a query on a line that was lost, or cut."""

    @property
    def busy(self) -> bool:
        """Whether it owes a job its failed attempt or has to end a line: else it holds nothing."""
        return self._cut_short is not None or self._left

    def poll(self, connection: Connection) -> bool:
        """Claim what is due, run and settle it, in one transaction; tell whether there was any.

        A connection on which a query was cancelled is no use any more: the caller takes another.
        """
        batch = self._batch = Batch()
        if self._connection not in (None, connection, self.tainted):
            if self._markers is not None:
                self._markers.doubt()
            if self._line is not None:
                self._line.replace(connection)
                self._left = False
        self._connection = connection
        if self._cut_short is not None:
            self._count_cut_short(connection, self._cut_short, batch)
            self._cut_short = None
            self._tell(batch)
            return True
        try:
            with self._performer.store.begin(connection):
                self.run_due(connection, batch)
                if not batch.claimed:
                    # As of the claim that found nothing: later jobs were not looked for.
                    since = batch.claimed_at or self._performer.now()
                    self.due = self._performer.store.next_due(connection, since)
        except BaseException as error:
            if not self._mend(connection, batch, error):
                raise
        finally:
            if self._state is not None and self._state.lasting:
                self.tainted = self._state.connection
        self._tell(batch)
        return batch.claimed > 0

    def _tell(self, batch: Batch) -> None:
        self._performer.tell(batch.written)
        self._performer.tell(batch)
        for job, _ in batch.results:
            self._performer.losses.forget(job.job_id)
            self._performer.owed.pop(job.key, None)
        self.ran += batch.ended()

    def run_due(self, connection: Connection, batch: Batch) -> None:
        """Claim due jobs, run them and settle them; the caller commits.

        :param batch: is told what happens as it happens, so that it is known if this raises.
        """
        performer, pace = self._performer, self._pace
        limit = pace.limit()
        batch.claimed_at = performer.now()
        claimed = performer.store.claim(connection, limit, batch.claimed_at)
        if performer.stopping():  # asked meanwhile: they go back with the commit
            claimed = []
        batch.claimed = len(claimed)
        if claimed:
            self._found(len(claimed) == limit)
            settle_ended(
                performer,
                connection,
                [job for job in claimed if job.ended_as],
                batch.written,
                partial(self._settle, connection),
            )
        to_run = [job for job in claimed if not (job.ended_as or self._pay(connection, job, batch))]
        jobs = self._mark(connection, pace.together(to_run), batch)
        self._run(connection, jobs, batch)
        if claimed:
            marked = [*Markers.of(batch.marked), *batch.stale]
            self._settle(connection, batch.results, marked=marked)

    def _pay(self, connection: Connection, job: ClaimedJob, batch: Batch) -> bool:
        """Count the failed attempt of a job that another desk has not got back yet, if so it is."""
        error = self._performer.owed.get(job.key)
        if error is not None:
            self._performer.failed(connection, job, error, batch)
        return error is not None

    def _settle(
        self, connection: Connection, results: Sequence[Result], marked: Iterable[Any] = ()
    ) -> None:
        performer = self._performer
        performer.store.settle(connection, results, performer.now(), marked=marked)

    def _mark(
        self, connection: Connection, jobs: Sequence[ClaimedJob], batch: Batch
    ) -> Sequence[ClaimedJob]:
        """Mark the jobs as running and return them; or none, if a worker died on one of them."""
        if self._markers is None or not jobs:
            return jobs
        batch.marked = jobs
        if self._line is not None:
            self._line.show(connection, jobs[0].job_id)
        with explained(connection, *self._performer.store.uses):
            stale = self._markers.place(jobs, self._performer.now())
        if stale is None:
            return jobs
        batch.marked = ()
        self._pace.run_alone(stale.suspects + len(stale.died))
        if stale.died:
            self._count_deaths(connection, jobs, stale.died, batch)
        return ()

    def _count_deaths(
        self,
        connection: Connection,
        jobs: Sequence[ClaimedJob],
        workers: Mapping[Any, str],
        batch: Batch,
    ) -> None:
        """Count the deaths before the jobs run again, because the next one would undo it.

        A job that has used up its deaths fails.

        :param workers: those that died, by job id.
        """
        performer = self._performer
        died = [with_death(job) for job in jobs if job.job_id in workers]
        performer.store.count_deaths(connection, died)
        batch.stale = [job.job_id for job in died]
        for job in died:
            if job.deaths >= performer.max_deaths(job):
                error = poison_error(job, workers[job.job_id])
                performer.failed(connection, job, error, batch)

    def _run(self, connection: Connection, jobs: Sequence[ClaimedJob], batch: Batch) -> None:
        performer, pace = self._performer, self._pace
        state = self._state_of(connection)
        unit = JobUnit(connection, self._make_session, state)
        started = perf_counter()
        overrun = started + pace.window
        batch.runs = performer.runs(connection, jobs)
        late = False
        for run in batch.runs:
            if late and run.asked is None:
                continue  # what has not started goes back to the queue with the commit
            job, batch.run = run.job, run
            batch.suspect = job
            try:
                performer.perform(run, unit.savepoint)
            except Exception as error:
                if connection.invalidated or is_undone(error):
                    if unit.broken:
                        batch.run = None
                    raise
                performer.failed(connection, job, error, batch)
            else:
                batch.results.append((job, SUCCEEDED))
            if state.lasting:  # nothing else may run on this connection
                batch.changer, late = run, True
            finished = perf_counter()
            pace.record(job.job_type, finished - started)
            late = late or finished > overrun or performer.stopping()
            started = finished
        batch.run = None
        batch.suspect = jobs[0] if len(jobs) == 1 else None
        if failed := {run.job: error for run, error in unit.flush().items()}:
            if connection.invalidated:
                raise next(iter(failed.values()))
            done, batch.results = batch.results, []
            for job, outcome in done:
                if job in failed:
                    performer.failed(connection, job, failed[job], batch)
                else:
                    batch.results.append((job, outcome))

    def close(self) -> None:
        """Let go of the connection, which is somebody else's."""
        if self._state is not None:
            self._state.close()
            self._state = None

    def _state_of(self, connection: Connection) -> SessionState:
        if self._state is None or self._state.connection is not connection:
            self._state = SessionState(connection)
        return self._state

    def _mend(self, connection: Connection, batch: Batch, error: BaseException) -> bool:
        """Deal with a transaction that failed; tell whether that was all there is to the error.

        Its jobs run again one by one, but for the one to blame: that one has failed.
        """
        performer = self._performer
        self._pace.run_alone(batch.claimed)
        self._left = self._line is not None and connection.invalidated
        if self._given_up:
            return False
        self._withdraw(batch)
        # The markers' connection may be the one that is lost, or cannot be made.
        lost = connection.invalidated or is_lost(error) or isinstance(error, OSError)
        alone = batch.runs[0] if len(batch.runs) == 1 else None
        run = batch.run or batch.changer or alone
        failure = None if run is None else self._failure_of(connection, run.job, error, lost=lost)
        if run is not None and failure is not None:
            self._cut_short = run.job
            performer.owed[run.job.key] = failure
            batch.clear()
            return True
        asked = isinstance(error, KeyboardInterrupt | CancelledError)
        # A database that refuses what every job needs says nothing about this one.
        refused = isinstance(error, DatabaseNotReadyError)
        if lost or asked or refused or performer.stopping():
            return False
        raised = {failure.job.job_id: failure.error for failure in batch.failures}
        batch.clear()
        # It met somebody else's lock in statements of ours: no job is to blame.
        met = batch.run is None and is_conflict(error)
        if batch.suspect is None or met:
            together = met or (batch.claimed > 1 and isinstance(error, Exception))
            if together:
                performer.events.emit("batch-undone", error, jobs=batch.claimed)
            return together
        # Where it is how the job ended that is refused, it has an error of its own.
        blamed = raised.get(batch.suspect.job_id, error)
        with performer.store.begin(connection):
            self._blame(connection, batch.suspect, blamed, batch)
        return isinstance(error, Exception)

    def _failure_of(
        self, connection: Connection, job: ClaimedJob, error: BaseException, *, lost: bool
    ) -> Exception | None:
        """Return why a job has failed whose transaction failed; None if it is not to blame."""
        if not isinstance(error, Exception):
            return None
        # What the worker may not do any more is the doing of the job that changed its role.
        changed = self._batch.changer is not None and self._batch.changer.job == job
        if self._is_cut_short(connection, error) or (changed and not lost):
            return error
        return self._performer.losses.count(job.job_id, error) if lost else None

    def _is_cut_short(self, connection: Connection, error: BaseException) -> bool:
        """Tell whether a handler, not the database, ended the connection it was using.

        SQLAlchemy closes a connection when a query on it is cancelled, as by a timeout.
        """
        if not connection.invalidated or not isinstance(error, Exception):
            return False
        if isinstance(error, DatabaseNotReadyError) or is_due_to_loss(error):
            return False
        return isinstance(error, JobCancelledError) or not self._performer.stopping()

    def _count_cut_short(self, connection: Connection, job: ClaimedJob, batch: Batch) -> None:
        owed, store = self._performer.owed, self._performer.store
        until = monotonic() + _PATIENCE
        while (error := owed.get(job.key)) is not None and monotonic() < until:
            with store.begin(connection):
                if self._blame(connection, job, error, batch):
                    break
            # The server may not have noticed yet that the other connection is closed.
            self._performer.waiting.flag().wait(_BETWEEN_TRIES)
            if self._performer.stopping():
                until = min(until, monotonic() + _PATIENCE / 10)
        owed.pop(job.key, None)

    def _blame(
        self, connection: Connection, job: ClaimedJob, error: BaseException, batch: Batch
    ) -> bool:
        """Count a failed attempt of the job whose transaction ``error`` undid, if nobody has it.

        Without this a job that undoes every transaction it runs in would run for ever.
        """
        performer = self._performer
        if not performer.store.reclaim(connection, job):
            return False
        if not isinstance(error, Exception):
            error = RuntimeError(f"the handler raised {error!r}")
        result = job, performer.outcome(connection, job, error, batch)
        settle_apart(performer, connection, result, batch, partial(self._settle, connection))
        return True

    def _withdraw(self, batch: Batch) -> None:
        """Take back the markers of a batch whose transaction failed: this process lives."""
        if self._markers is not None and batch.marked:
            self._markers.withdraw(batch.marked)

    def patience(self) -> float | None:
        """Return the most seconds until the next poll; None for as long as the worker likes."""
        return None

    def running(self) -> Iterable[Run]:
        """Return what runs at the moment."""
        return [self._batch.run] if self._batch.run else []

    def held(self) -> Iterable[Run]:
        """Return what is running, has run or is to run in the open transaction."""
        return self._batch.runs

    def give_up(self) -> int:
        """Let go of what is running; return how many handlers that leaves behind.

        It is rolled back: the server frees the locks when the line is cut.
        """
        # In this order: the next worker must not take it for a death.
        self._given_up = True
        self._withdraw(self._batch)
        connection = self._connection
        if connection is None:
            return 0
        held = connection.in_transaction() and self._batch.claimed > 0
        sever(connection)
        self._left = held and self._line is not None
        return int(held)
