"""Running claimed jobs in their transaction: resolve, run, decide the outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import perf_counter
from typing import Any, TypeAlias

from sqlalchemy import Connection

from .batch import Pace
from .clock import Clock, require_aware
from .errors import WorkerDiedError
from .events import Events
from .handlers import Handlers
from .markers import Markers
from .outcomes import (
    INTERRUPTED,
    SUCCEEDED,
    Failed,
    Outcome,
    Retried,
    Snoozed,
    error_text,
    outcome_of,
)
from .retry import RetryFunction, RetryLike, RetryStrategy, as_strategy
from .serializers import Serializer
from .store import ClaimedJob, NextDue, Result, Store, explain_missing_tables
from .unit import JobUnit

UNKNOWN_TYPE_DELAY = timedelta(minutes=1)
"""How long a job is put off whose type nobody registered here; another worker may know it."""

FailedFunction: TypeAlias = Callable[[Any, Exception], object]
"""Called with the archived job and the exception of its last attempt."""


@dataclass(frozen=True)
class Failure:
    """An attempt that raised, kept for what is said and called after the commit."""

    job: ClaimedJob
    error: Exception
    outcome: Outcome
    row: Any = None


@dataclass
class Batch:
    """What one transaction did.

    ``suspect`` is the job to blame when the transaction itself fails: the one that was running, or
    the only one there was.
    """

    claimed: int = 0
    marked: Sequence[ClaimedJob] = ()
    claimed_at: datetime | None = None
    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    suspect: ClaimedJob | None = None


class Performer:
    """Runs due jobs in a transaction that the caller owns; shared by workers and the REPL.

    :param stopping: tells whether the worker was asked to stop.
    :param retry: what a job type does for which ``handlers`` say nothing.
    """

    def __init__(
        self,
        store: Store,
        handlers: Handlers,
        *,
        serializer: Serializer,
        retry: RetryFunction | RetryLike | None,
        on_failed: FailedFunction | None,
        events: Events,
        clock: Clock,
        stopping: Callable[[], bool],
        markers: Markers | None = None,
    ) -> None:
        self.store = store
        self._markers = markers
        self.handlers = handlers
        self._serializer = serializer
        self._retry = retry if callable(retry) or retry is None else as_strategy(retry)
        self._on_failed = on_failed
        self._events = events
        self._clock = clock
        self._stopping = stopping

    def now(self) -> datetime:
        """Return the time by the worker's clock."""
        return require_aware("clock()", self._clock())

    def run_due(
        self,
        unit: JobUnit,
        pace: Pace,
        batch: Batch,
        *,
        found: Callable[[bool], object] = lambda more: None,  # noqa: ARG005
    ) -> None:
        """Claim due jobs, run them and settle them; the caller commits.

        :param batch: is told what happens as it happens, so that it is known if this raises.
        :param found: called when jobs are in hand, before they run, with whether there may be more.
        """
        limit = pace.limit()
        batch.claimed_at = self.now()
        with explain_missing_tables():
            claimed = self.store.claim(unit.connection, limit, batch.claimed_at)
        batch.claimed = len(claimed)
        if claimed:
            found(len(claimed) == limit)
        jobs = self._marked(unit, pace.together(claimed), pace, batch)
        self._run(unit, jobs, pace, batch)
        batch.suspect = jobs[0] if len(jobs) == 1 else None
        if batch.claimed:
            with explain_missing_tables():
                marked = Markers.of(batch.marked)
                self.store.settle(unit.connection, batch.results, self.now(), marked=marked)

    def _marked(
        self, unit: JobUnit, jobs: Sequence[ClaimedJob], pace: Pace, batch: Batch
    ) -> Sequence[ClaimedJob]:
        """Mark the jobs as running, settle those that killed their worker, return the others."""
        if self._markers is None or not jobs:
            return jobs
        batch.marked = jobs
        stale = self._markers.place(jobs, self.now())
        if stale is None:
            return jobs
        if stale.suspects:  # nobody knows which job of that batch it was: one by one
            pace.run_alone(stale.suspects)
            batch.marked = ()
            return ()
        for job in jobs:
            if worker := stale.killers.get(job.job_id):
                error = WorkerDiedError(
                    f"the worker {worker} died while it ran attempt {job.attempts} of this job "
                    f"and no other"
                )
                outcome = self._outcome(unit.connection, job, error, batch)
                batch.results.append((job, outcome))
        return [job for job in jobs if job.job_id not in stale.killers]

    def next_due(self, connection: Connection, batch: Batch) -> NextDue:
        """Return what waits, as of the claim that found nothing: later jobs were not looked for."""
        return self.store.next_due(connection, batch.claimed_at or self.now())

    def withdraw(self, batch: Batch) -> None:
        """Take back the markers of a batch whose transaction failed: this process lives."""
        if self._markers is not None and batch.marked:
            self._markers.withdraw(batch.marked)

    def blame(self, unit: JobUnit, error: BaseException, batch: Batch) -> None:
        """Count a failed attempt of the job whose transaction ``error`` undid; the caller commits.

        Without this a job that undoes every transaction it runs in would run for ever.
        """
        job, batch.results, batch.failures = batch.suspect, [], []
        if job is None or not self.store.reclaim(unit.connection, job):
            return
        if not isinstance(error, Exception):
            error = RuntimeError(f"the handler raised {error!r}")
        batch.results.append((job, self._outcome(unit.connection, job, error, batch)))
        self.store.settle(unit.connection, batch.results, self.now())

    def _run(self, unit: JobUnit, jobs: Sequence[ClaimedJob], pace: Pace, batch: Batch) -> None:
        connection = unit.connection
        rows = self.store.load(connection, [job for job in jobs if self._wants_row(job)])
        started = perf_counter()
        handling = self._events.wants("handling-job")
        overrun = started + pace.window
        for job in jobs:
            if handling:
                self._events.emit("handling-job", **_about(job))
            batch.suspect = job
            try:
                self._handle(job, unit, rows.get(job.job_id))
                outcome: Outcome = SUCCEEDED
            except Exception as error:
                outcome = self._outcome(connection, job, error, batch)
            batch.results.append((job, outcome))
            finished = perf_counter()
            pace.record(job.job_type, finished - started)
            if finished > overrun or self._stopping():
                break  # what has not started goes back to the queue with the commit
            started = finished
        if failed := unit.flush():
            batch.results = [
                (job, self._outcome(connection, job, failed[job.job_id], batch))
                if job.job_id in failed
                else (job, outcome)
                for job, outcome in batch.results
            ]

    def _wants_row(self, job: ClaimedJob) -> bool:
        handler = self.handlers.find(job.job_type)
        return handler is not None and handler.needs_job

    def _handle(self, job: ClaimedJob, unit: JobUnit, row: Any) -> None:
        handler = self.handlers.find(job.job_type)
        if handler is None:
            raise _UnknownTypeError(job.job_type)
        payload = handler.decode(job.payload, self._serializer)
        if not handler.needs_session:
            handler.run(payload, None, row)
            return
        with unit.savepoint(job.job_id) as joined:
            if row is not None:
                joined.add(row)
            handler.run(payload, joined, row)

    def _outcome(
        self, connection: Connection, job: ClaimedJob, error: Exception, batch: Batch
    ) -> Outcome:
        if isinstance(error, _UnknownTypeError):
            self._events.emit("job-type-unknown", **_about(job))
            return Snoozed(self.now() + UNKNOWN_TYPE_DELAY)
        if self._stopping():
            self._events.emit("job-interrupted", **_about(job))
            return INTERRUPTED
        handler = self.handlers.find(job.job_type)
        decide = self.handlers.retry_function(job.job_type)
        strategy: RetryStrategy | None = (handler and handler.retry) or self.handlers.retry
        if decide is None and strategy is None:
            decide, strategy = (self._retry, None) if callable(self._retry) else (None, self._retry)
        row = None
        if decide is not None or self._on_failed is not None:
            row = self.store.load(connection, [job]).get(job.job_id)
        outcome: Outcome
        try:
            if decide is not None:
                strategy = as_strategy(decide(row, error))
            outcome = outcome_of(error, attempts=job.attempts, strategy=strategy, now=self.now())
        except Exception as strategy_error:
            self._events.emit("retry-strategy-error", strategy_error, **_about(job))
            outcome = Failed(error_text(strategy_error))
        batch.failures.append(Failure(job, error, outcome, row))
        return outcome

    def report(self, batch: Batch) -> None:
        """Say what a committed batch did, and call ``on_failed`` for what failed for good."""
        if self._events.wants("job-finished"):
            for job, outcome in batch.results:
                if outcome is SUCCEEDED:
                    self._events.emit("job-finished", **_about(job))
        for failure in batch.failures:
            about = _about(failure.job)
            outcome = failure.outcome
            if isinstance(outcome, Snoozed):
                self._events.emit("job-snoozed", **about, process_at=outcome.process_at)
                continue
            self._events.emit("handle-job-exception", failure.error, **about)
            if isinstance(outcome, Retried):
                self._events.emit("retrying", **about, process_at=outcome.process_at)
            elif isinstance(outcome, Failed):
                self._events.emit("not-retrying", **about)
                self._call_on_failed(failure)

    def _call_on_failed(self, failure: Failure) -> None:
        if self._on_failed is None:
            return
        try:
            self._on_failed(failure.row, failure.error)
        except Exception as error:
            self._events.emit("failed-job-callback-error", error, **_about(failure.job))


class _UnknownTypeError(Exception):
    """Nobody registered the job's type."""


def _about(job: ClaimedJob) -> dict[str, Any]:
    return {"job_id": job.job_id, "job_type": job.job_type, "attempt": job.attempts}
