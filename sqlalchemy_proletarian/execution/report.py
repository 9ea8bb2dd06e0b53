"""Reporting what a committed transaction did: events, and the ``on_failed`` callback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..callbacks import call_user_function
from ..errors import ArchiveRefusedError
from ..lifecycle.claimed import ClaimedJob, Result
from ..lifecycle.outcomes import (
    INTERRUPTED,
    Cancelled,
    Failed,
    Outcome,
    Refused,
    Retried,
    Snoozed,
    Succeeded,
)
from ..lifecycle.run import Call
from ..telemetry.events import Events

FailedFunction: TypeAlias = Callable[[Any, Exception], object]
"""Called with the archived job and the exception of its last attempt."""


@dataclass(frozen=True)
class Failure:
    """An attempt that raised.

    :param row: the mapped object of the job, if a callback needs it.
    """

    job: ClaimedJob
    error: Exception
    outcome: Outcome
    row: Any = None


@dataclass
class Report:
    """What a transaction does, to be published when it has committed."""

    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def clear(self) -> None:
        """Remove everything, because the transaction was rolled back."""
        self.results, self.failures = [], []


class Reporter:
    """Publishes reports.

    :param on_failed: called for each job that has failed permanently.
    """

    def __init__(self, events: Events, on_failed: FailedFunction | None) -> None:
        self.needs_rows: bool = on_failed is not None
        """Whether failures need the mapped object of their job."""
        self._events = events
        self._on_failed = on_failed

    def starting(self, job: ClaimedJob) -> None:
        """Report that the handler of a job is about to run."""
        if self._events.is_enabled(logging.DEBUG):
            self._events.emit("handling-job", **job.about())

    def split(self, call: Call, error: BaseException) -> None:
        """Report that a call of a batch handler raised, and that its jobs run again."""
        data = {"job_type": call.job.job_type, "jobs": len(call.ready)}
        self._events.emit("batch-split", error, **data)

    def publish(self, report: Report) -> None:
        """Report what a committed transaction did; call ``on_failed``."""
        emit = self._events.emit
        if self._events.is_enabled(logging.DEBUG):
            for job, outcome in report.results:
                if isinstance(outcome, Succeeded):
                    emit("job-finished", **job.about())
        for job, outcome in report.results:
            if outcome is INTERRUPTED:
                emit("job-interrupted", **job.about())
        for failure in report.failures:
            self._publish_failure(failure)

    def _publish_failure(self, failure: Failure) -> None:
        emit, about, outcome = self._events.emit, failure.job.about(), failure.outcome
        if isinstance(outcome, Snoozed):
            emit("job-snoozed", **about, process_at=outcome.process_at)
            return
        if isinstance(outcome, Cancelled):
            emit("job-cancelled", **about)
            return
        if isinstance(outcome, Refused) and isinstance(failure.error, ArchiveRefusedError):
            emit("archive-refused", failure.error, **about, process_at=outcome.process_at)
            return
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
            call_user_function(self._on_failed, failure.row, failure.error)
        except Exception as error:
            self._events.emit("failed-job-callback-error", error, **failure.job.about())
