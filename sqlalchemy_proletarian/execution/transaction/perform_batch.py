"""Running the handlers of the jobs of one transaction, in a session that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ...database.error_codes import is_undone
from ...lifecycle.claimed import ClaimedJob
from ...lifecycle.run import Call, Run
from ...store.chain import SAVEPOINT
from ..connection_state import ConnectionState
from ..decide import OutcomeDecider
from ..invoke import OpenSession
from ..perform import JobExecutor, set_errors
from .batch import Batch
from .batch_size import BatchSize
from .session import BatchSession

if TYPE_CHECKING:
    from ...limits.limiter import Admission, Limiter


class BatchPerformer:
    """Runs the jobs that one thread or task has claimed, and decides their outcomes.

    :param make_session: makes the handlers' sessions.
    :param limiter: the limits of the handlers; None if they have none.
    """

    def __init__(
        self,
        *,
        executor: JobExecutor,
        decider: OutcomeDecider,
        batch_size: BatchSize,
        make_session: Callable[..., Session],
        stopping: Callable[[], bool],
        limiter: Limiter | None,
    ) -> None:
        self._limiter = limiter
        self._executor = executor
        self._decider = decider
        self._batch_size = batch_size
        self._make_session = make_session
        self._stopping = stopping
        self._state: ConnectionState | None = None
        self._session: BatchSession | None = None

    # The state of the connection.

    def begin(self) -> None:
        """Note that a poll begins."""
        if self._state is not None:
            self._state.rolled_back = False

    @property
    def tainted(self) -> Connection | None:
        """The connection, if a handler has changed its state permanently."""
        state = self._state
        return state.connection if state is not None and state.tainted else None

    @property
    def was_rolled_back(self) -> bool:
        """Whether anything was rolled back since the poll began."""
        return self._state is not None and self._state.rolled_back

    def forget_session(self) -> None:
        """Use another session, because the transaction failed."""
        self._session = None

    def close(self) -> None:
        """Stop watching the connection."""
        if self._state is not None:
            self._state.close()
            self._state = None

    # The jobs of a transaction.

    def perform(self, connection: Connection, jobs: Sequence[ClaimedJob], batch: Batch) -> None:
        """Run the handlers of jobs, one after the other, until the batch window has passed."""
        started = perf_counter()
        end = started + self._batch_size.window
        batch.runs = self._executor.prepare(connection, jobs)
        admission = batch.admission
        if admission is not None:
            set_errors(batch.runs, admission.errors)
        open_session = partial(self._open_session, connection, batch)
        late = False
        units = self._executor.grouped(batch.runs)
        for run in units:
            if late and not run.keep_ended():
                continue  # the commit releases it
            if admission is not None and not self._may_start(run, admission):
                continue
            job, batch.run = run.job, run
            jobs_of_run = 1
            if isinstance(run, Call):
                jobs_of_run = len(run.runs)
                units += self._perform_call(connection, run, open_session, batch)
            else:
                batch.suspect = job
                try:
                    self._executor.perform(run, open_session)
                except Exception as error:
                    self._require_transaction(connection, error, batch)
                    self._decider.fail(connection, job, error, batch)
                else:
                    batch.results.append((job, run.success))
            if batch.session is not None and batch.session.state.tainted:
                batch.tainting_run, late = run, True  # no other job may use the connection
            finished = perf_counter()
            self._batch_size.record(job.job_type, (finished - started) / jobs_of_run)
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

    @staticmethod
    def _require_transaction(connection: Connection, error: Exception, batch: Batch) -> None:
        """Raise an error again if it undid the transaction."""
        if connection.invalidated or is_undone(error):
            if batch.session is not None and batch.session.broken:
                batch.run = None
            raise error

    def _perform_call(
        self, connection: Connection, call: Call, open_session: OpenSession, batch: Batch
    ) -> Sequence[Run]:
        """Call the function of a batch handler; return the calls that must follow."""
        batch.suspect = None if call.sole is None else call.job
        failure = None
        try:
            self._executor.calls.perform(call, open_session)
        except Exception as error:
            self._require_transaction(connection, error, batch)
            failure = error
        again = self._executor.calls.conclude(call, failure)
        undecided = set(again)
        for run in call.runs:
            if run in call.errors:
                self._decider.fail(connection, run.job, call.errors[run], batch)
            elif run not in undecided:
                batch.results.append((run.job, run.success))
        return self._executor.grouped(again) if again else ()

    def split(self, run: Run | None, error: BaseException) -> bool:
        """Let the jobs of a call that undid its transaction run in smaller calls.

        :param run: what ran then.
        :return: False if it was no call of several jobs.
        """
        if not isinstance(run, Call) or run.sole is not None or not isinstance(error, Exception):
            return False
        self._executor.calls.split(run, error)
        return True

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
