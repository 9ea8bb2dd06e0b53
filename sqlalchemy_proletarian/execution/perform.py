"""What a run of a job is, whoever holds the job: resolve, call, decide the outcome, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Connection
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import DBAPIError

from ..callbacks import tamed
from ..clock import Clock, require_aware
from ..database.connections import is_lost
from ..database.error_codes import code_of
from ..errors import (
    ArchiveRefusedError,
    DatabaseNotReadyError,
    JobCancelledError,
    JobInterruptedError,
    WorkerDiedError,
)
from ..handlers.registry import Handler, Handlers
from ..lifecycle.claimed import ClaimedJob, Result
from ..lifecycle.outcomes import (
    INTERRUPTED,
    SUCCEEDED,
    Cancelled,
    Failed,
    FormatFunction,
    Interrupted,
    Outcome,
    Refused,
    Retried,
    Snoozed,
    error_text,
    outcome_of,
    refused,
    storable,
)
from ..lifecycle.run import Run
from ..liveness.connection_losses import Losses
from ..liveness.poison import MAX_DEATHS
from ..models.job_classes import attach, class_of
from ..retry import Discard, RetryFunction, RetryStrategy, as_strategy
from ..runtime.threads import Waiting
from ..serializers.json_serializer import Serializer
from ..store.base import Store
from ..telemetry.events import Events

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
class Report:
    """What a transaction did, told when it has committed."""

    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def clear(self) -> None:
        """Forget what the transaction would have done: it is rolled back."""
        self.results, self.failures = [], []


class Performer:
    """Runs claimed jobs, and decides what becomes of them.

    :param retry: what a job type does for which ``handlers`` say nothing.
    :param stopping: tells whether the worker was asked to stop.
    :param waiting: calls the handlers.
    :param max_deaths: see :class:`.QueueWorker`.
    """

    def __init__(
        self,
        store: Store,
        handlers: Handlers,
        *,
        serializer: Serializer,
        retry: RetryFunction | RetryStrategy | None,
        on_failed: FailedFunction | None,
        format_error: FormatFunction,
        events: Events,
        clock: Clock,
        stopping: Callable[[], bool],
        waiting: Waiting,
        max_deaths: int = MAX_DEATHS,
    ) -> None:
        self.store = store
        self._handlers = handlers
        self._serializer = serializer
        self._retry = retry
        self._on_failed = on_failed
        self._format_error = format_error
        self.events = events
        self._clock = clock
        self.stopping = stopping
        self.waiting = waiting
        self._max_deaths = max_deaths
        self.losses = Losses()
        self.owed: dict[tuple[Any, int, Any], Exception] = {}
        """Why attempts have failed whose transactions are undone: who locks the job next, of all
        desks, counts it."""

    def now(self) -> datetime:
        """Return the time by the worker's clock."""
        return require_aware("clock()", self._clock())

    def runs(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> list[Run]:
        """Return a run for each job, with its row where the handler asks for it."""
        runs = [Run(job) for job in jobs]
        wanted = [run for run in runs if self._needs_row(run.job)]
        if not wanted:
            return runs
        try:
            rows = self.store.load(connection, [run.job for run in wanted])
        except Exception as error:
            if not _is_of_the_row(error):
                raise
            for run in wanted:  # one of them, and it must not be the others' misfortune
                run.row, run.row_error = self._load(connection, run.job)
        else:
            for run in wanted:
                run.row = rows.get(run.job.job_id)
        for run in wanted:
            if run.row is None and run.row_error is None:
                model = class_of(self.store.job_model, run.job.job_type)
                run.row_error = Discard(
                    f"the job is no complete {model.__qualname__}: its row in "
                    f"{sa_inspect(model).local_table} is missing"
                )
        return runs

    def _load(self, connection: Connection, job: ClaimedJob) -> tuple[Any, Exception | None]:
        try:
            return self.store.load(connection, [job]).get(job.job_id), None
        except Exception as error:
            if not _is_of_the_row(error):
                raise
            return None, error

    def _handler(self, job: ClaimedJob) -> Handler[Any, ..., Any] | None:
        handler = self._handlers.find(job.job_type)
        # A registry may serve several job tables; a class of another one says nothing about this.
        return handler if handler is None or handler.serves(self.store.job_model) else None

    def _needs_row(self, job: ClaimedJob) -> bool:
        handler = self._handler(job)
        return handler is not None and handler.needs_job

    def perform(self, run: Run, session: Callable[[Run], AbstractContextManager[Any]]) -> None:
        """Run a job's handler.

        :param session: opens the handler's session, if it takes one.
        :raises Exception: if the attempt has not succeeded.
        """
        if run.asked is not None:
            raise run.asked
        job = run.job
        handler = self._handler(job)
        if handler is None:
            msg = f"no handler is registered for {job.job_type!r}"
            raise JobInterruptedError(msg)
        if self.events.wants("handling-job"):
            self.events.emit("handling-job", **job.about())
        if run.row_error is not None:
            raise run.row_error
        payload = handler.decode(job.payload, self._serializer)
        if not handler.needs_session:
            self.waiting.call(run, handler, payload, None)
            return
        with session(run) as opened:
            if run.row is not None:
                attach(opened, run.row)
            self.waiting.call(run, handler, payload, opened)

    def failed(
        self, connection: Connection, job: ClaimedJob, error: Exception, report: Report
    ) -> None:
        """Decide what becomes of a job whose run raised ``error``, and note it in the report."""
        report.results.append((job, self.outcome(connection, job, error, report)))

    def outcome(
        self, connection: Connection, job: ClaimedJob, error: Exception, report: Report
    ) -> Outcome:
        """Return what becomes of a job whose run raised ``error``; the report notes the failure."""
        # A death, or somebody's wish, is none the less for the worker's being asked to stop.
        if self.stopping() and not isinstance(error, JobCancelledError | WorkerDiedError):
            return INTERRUPTED
        decide, strategy = self._retries_of(job)
        if isinstance(error, WorkerDiedError):
            decide = None  # what ended the job was no attempt's failure
        row = None
        if decide is not None or self._on_failed is not None:
            row, _ = self._load(connection, job)
        outcome: Outcome
        try:
            if decide is not None:
                strategy = as_strategy(tamed(decide, row, error))
            outcome = outcome_of(
                error,
                attempts=job.attempts,
                strategy=strategy,
                now=self.now(),
                text=self.text_of,
            )
        except Exception as strategy_error:
            strategy_error.__context__ = strategy_error.__context__ or error
            self.events.emit("retry-strategy-error", strategy_error, **job.about())
            outcome = Failed(self.text_of(strategy_error))
        if not isinstance(outcome, Interrupted):
            report.failures.append(Failure(job, error, outcome, row))
        return outcome

    def refused(
        self,
        job: ClaimedJob,
        outcome: Failed | Cancelled,
        refusal: Exception,
        report: Report,
        ended_at: datetime | None,
    ) -> Refused:
        """Return what becomes of a job that the archive refuses; the report notes the refusal.

        :param ended_at: when the job ended, if the archive refused its row before.
        """
        outcome_now = refused(outcome, self.text_of(refusal), self.now(), ended_at)
        report.failures = [
            replace(failure, outcome=outcome_now) if failure.job == job else failure
            for failure in report.failures
            if not (failure.job == job and isinstance(failure.error, ArchiveRefusedError))
        ]
        error = ArchiveRefusedError("the archive refuses a job that has ended")
        error.__cause__ = refusal
        report.failures.append(Failure(job, error, outcome_now))
        return outcome_now

    def ended(
        self,
        connection: Connection,
        job: ClaimedJob,
        outcome: Failed | Cancelled,
        said: str | None,
        report: Report,
    ) -> None:
        """Note that a job has ended some time ago, and was refused by the archive since then.

        :param said: the error with which it ended.
        """
        row = None
        if self._on_failed is not None:
            row, _ = self._load(connection, job)
        error = ArchiveRefusedError(
            f"the archive has refused this job, which ended with:\n{said or outcome.status.value}"
        )
        report.failures.append(Failure(job, error, outcome, row))

    def text_of(self, error: BaseException) -> str:
        """Return what is kept of an error: an empty text where that is nothing."""
        if isinstance(error, WorkerDiedError) and error.__cause__ is None:
            return error_text(error)  # no handler has written any of it
        try:
            text = tamed(self._format_error, error)
            return "" if text is None else storable(text)
        except Exception as format_error:
            self.events.emit("callback-error", format_error)
            return type(error).__qualname__

    def max_deaths(self, job: ClaimedJob) -> int:
        """Return how many workers in a row may die while they run a job of this type alone."""
        handler = self._handler(job)
        return (handler and handler.max_deaths) or self._max_deaths

    def _retries_of(self, job: ClaimedJob) -> tuple[RetryFunction | None, RetryStrategy | None]:
        handler = self._handler(job)
        decide = self._handlers.retry_function(job.job_type)
        if decide is not None:
            return decide, None
        strategy = (handler and handler.retry) or self._handlers.retry
        if strategy is not None:
            return None, strategy
        return (self._retry, None) if callable(self._retry) else (None, self._retry)

    def tell(self, report: Report) -> None:
        """Say what a committed transaction did; call ``on_failed`` for what failed for good."""
        emit = self.events.emit
        if self.events.wants("job-finished"):
            for job, outcome in report.results:
                if outcome is SUCCEEDED:
                    emit("job-finished", **job.about())
        for job, outcome in report.results:
            if outcome is INTERRUPTED:
                emit("job-interrupted", **job.about())
        for failure in report.failures:
            about = failure.job.about()
            outcome = failure.outcome
            if isinstance(outcome, Snoozed):
                emit("job-snoozed", **about, process_at=outcome.process_at)
                continue
            if isinstance(outcome, Cancelled):
                emit("job-cancelled", **about)
                continue
            if isinstance(outcome, Refused) and isinstance(failure.error, ArchiveRefusedError):
                emit("archive-refused", failure.error, **about, process_at=outcome.process_at)
                continue
            emit("handle-job-exception", failure.error, **about)
            if isinstance(outcome, Retried):
                emit("retrying", **about, process_at=outcome.process_at)
            elif isinstance(outcome, Failed):
                emit("not-retrying", **about)
                self._call_on_failed(failure)

    def _call_on_failed(self, failure: Failure) -> None:
        if self._on_failed is None:
            return
        try:
            tamed(self._on_failed, failure.row, failure.error)
        except Exception as error:
            self.events.emit("failed-job-callback-error", error, **failure.job.about())


def _is_of_the_row(error: Exception) -> bool:
    """Tell whether what was read could not be made an object: the database itself is content."""
    if isinstance(error, DBAPIError):
        return code_of(error) is None and not is_lost(error)
    return not isinstance(error, DatabaseNotReadyError)
