"""Deciding what becomes of a job whose attempt raised: retry, failure, cancellation, interruption.

The rule itself is :func:`.outcome_of`. This module finds the retry strategy of the job's type, and
calls the functions of the user that take part in the decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from ..callbacks import call_user_function
from ..clock import Clock
from ..database.error_codes import said_by_driver
from ..errors import ArchiveRefusedError, JobCancelledError, WorkerDiedError
from ..handlers.registry import Handlers
from ..lifecycle.archive_refusal import refused
from ..lifecycle.claimed import ClaimedJob
from ..lifecycle.outcomes import (
    INTERRUPTED,
    Cancelled,
    Failed,
    FormatFunction,
    Interrupted,
    Outcome,
    Refused,
    error_text,
    outcome_of,
    storable,
)
from ..liveness.poison import MAX_DEATHS
from ..retry import RetryFunction, RetryStrategy, as_strategy
from ..store.base import Store
from ..telemetry.events import Events
from ..tracebacks import from_the_handler
from .report import Failure, Report, Reporter
from .rows import load_row


class OutcomeDecider:
    """Decides the outcomes of failed attempts, and adds them to the report of the transaction.

    :param retry: the strategy of job types for which ``handlers`` have none.
    :param format_error: returns the text to keep of an error.
    :param stopping: returns whether the worker was requested to stop.
    :param max_deaths: see :class:`.QueueWorker`.
    """

    def __init__(
        self,
        store: Store,
        handlers: Handlers,
        *,
        retry: RetryFunction | RetryStrategy | None,
        format_error: FormatFunction,
        reporter: Reporter,
        events: Events,
        now: Clock,
        stopping: Callable[[], bool],
        max_deaths: int = MAX_DEATHS,
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._retry = retry
        self._format_error = format_error
        self._reporter = reporter
        self._events = events
        self._now = now
        self._stopping = stopping
        self._max_deaths = max_deaths

    def fail(
        self, connection: Connection, job: ClaimedJob, error: Exception, report: Report
    ) -> None:
        """Decide the outcome of an attempt that raised ``error``, and add it to the results."""
        report.results.append((job, self.decide(connection, job, error, report)))

    def decide(
        self, connection: Connection, job: ClaimedJob, error: Exception, report: Report
    ) -> Outcome:
        """Return the outcome of an attempt that raised ``error``; add the failure to the report.

        The traceback of the error begins with the handler from now on.
        """
        error = from_the_handler(error)
        # A crash or a request to cancel counts even if the worker was requested to stop.
        if self._stopping() and not isinstance(error, JobCancelledError | WorkerDiedError):
            return INTERRUPTED
        function, strategy = self._retries_of(job)
        if isinstance(error, WorkerDiedError):
            function = None  # no attempt has failed
        row = None
        if function is not None or self._reporter.needs_rows:
            row, _ = load_row(self._store, connection, job)
        outcome: Outcome
        try:
            if function is not None:
                strategy = as_strategy(call_user_function(function, row, error))
            outcome = outcome_of(
                error,
                attempts=job.attempts,
                strategy=strategy,
                now=self._now(),
                text=self._text_of,
            )
        except Exception as strategy_error:
            strategy_error.__context__ = strategy_error.__context__ or error
            self._events.emit("retry-strategy-error", strategy_error, **job.about())
            outcome = Failed(self._text_of(strategy_error))
        if not isinstance(outcome, Interrupted):
            report.failures.append(Failure(job, error, outcome, row))
        return outcome

    def _retries_of(self, job: ClaimedJob) -> tuple[RetryFunction | None, RetryStrategy | None]:
        function = self._handlers.retry_function(job.job_type)
        if function is not None:
            return function, None
        handler = self._handlers.find(job.job_type, self._store.job_model)
        strategy = (handler and handler.retry) or self._handlers.retry
        if strategy is not None:
            return None, strategy
        return (self._retry, None) if callable(self._retry) else (None, self._retry)

    def max_deaths(self, job: ClaimedJob) -> int:
        """Return how many deaths fail a job of this type."""
        handler = self._handlers.find(job.job_type, self._store.job_model)
        return (handler and handler.max_deaths) or self._max_deaths

    def refuse(
        self,
        job: ClaimedJob,
        outcome: Failed | Cancelled,
        refusal: Exception,
        report: Report,
        ended_at: datetime | None,
    ) -> Refused:
        """Return the outcome of a job whose row the archive rejects; add it to the report.

        :param ended_at: when the job ended, if the archive rejected its row before.
        """
        outcome_now = refused(outcome, self._text_of(refusal), self._now(), ended_at)
        report.failures = [
            replace(failure, outcome=outcome_now) if failure.job == job else failure
            for failure in report.failures
            if not (failure.job == job and isinstance(failure.error, ArchiveRefusedError))
        ]
        error = ArchiveRefusedError(
            f"the archive refuses a job that has ended: {said_by_driver(refusal)}"
        )
        # Kept for callbacks, but not logged: it has the values of the row, of which one is the
        # payload.
        error.__context__, error.__suppress_context__ = refusal, True
        report.failures.append(Failure(job, error, outcome_now))
        return outcome_now

    def report_ended(
        self,
        connection: Connection,
        job: ClaimedJob,
        outcome: Failed | Cancelled,
        last_error: str | None,
        report: Report,
    ) -> None:
        """Add to the report that a job ended earlier, and that the archive accepts it only now.

        :param last_error: the error with which the job ended.
        """
        row = None
        if self._reporter.needs_rows:
            row, _ = load_row(self._store, connection, job)
        error = ArchiveRefusedError(
            f"the archive has refused this job, which ended with:\n"
            f"{last_error or outcome.status.value}"
        )
        report.failures.append(Failure(job, error, outcome, row))

    def _text_of(self, error: BaseException) -> str:
        """Return the text to keep of an error; an empty text if there is none."""
        if isinstance(error, WorkerDiedError) and error.__cause__ is None:
            return error_text(error)  # it contains no data of the user
        try:
            text = call_user_function(self._format_error, error)
            return "" if text is None else storable(text)
        except Exception as format_error:
            self._events.emit("callback-error", format_error)
            return type(error).__qualname__
