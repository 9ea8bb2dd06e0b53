"""Reporting what a committed transaction did: events, and the ``on_failed`` callback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from ..callbacks import call_user_function
from ..errors import ArchiveRefusedError, JobCancelledError
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
from ..lifecycle.run import Call, Run
from ..telemetry.events import Events
from ..telemetry.observers import ObservedRun, Observers
from .observe import observed_run, undone

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
    runs: Sequence[Run] = ()
    """The runs whose outcomes may be among the results."""

    def clear(self) -> None:
        """Remove everything, because the transaction was rolled back."""
        self.results, self.failures = [], []


class Reporter:
    """Publishes reports.

    :param on_failed: called for each job that has failed permanently.
    """

    def __init__(
        self, events: Events, on_failed: FailedFunction | None, observers: Observers
    ) -> None:
        self.needs_rows: bool = on_failed is not None
        """Whether failures need the mapped object of their job."""
        self._events = events
        self._on_failed = on_failed
        self._observers = observers

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
        everything = bool(self._observers) or self._events.is_enabled(logging.INFO)
        if not (everything or report.failures or _any_interrupted(report)):
            return
        ended = _ended(report)
        by_job = {run.job_id: run for run in ended}
        for failure in report.failures:
            self._publish_failure(failure, by_job.get(failure.job.job_id))
        for (job, outcome), run in zip(report.results, ended, strict=True):
            if outcome is INTERRUPTED:
                self._events.emit("job-interrupted", **(job.about() | run.times()))
            elif everything and isinstance(outcome, Succeeded | Failed | Cancelled):
                queue = {} if run.queue is None else {"queue": run.queue}
                about: dict[str, Any] = {
                    **job.about(),
                    **queue,
                    **run.times(),
                    "outcome": outcome.name,
                }
                self._events.emit("job-finished", **about)
        if self._observers:
            self._observers.ended(ended)

    def undone(self, runs: Iterable[Run], error: BaseException | None = None) -> None:
        """Tell observers of runs that have no outcome, if any.

        :param error: why their transaction was rolled back.
        """
        if not self._observers:
            return
        left = [run for run in runs if run.observed is not None and not run.observed.outcome]
        for run in left:
            seen = cast("ObservedRun", run.observed)
            if isinstance(run.end_reason, JobCancelledError):
                seen.outcome = "cancelled"
            elif len(left) == 1:
                seen.error = error
        if left:
            undone(self._observers, [cast("ObservedRun", run.observed) for run in left])

    def _publish_failure(self, failure: Failure, run: ObservedRun | None) -> None:
        emit, about, outcome = self._events.emit, failure.job.about(), failure.outcome
        if run is not None:
            about |= run.times()
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


def _any_interrupted(report: Report) -> bool:
    return any(outcome is INTERRUPTED for _, outcome in report.results)


def _ended(report: Report) -> list[ObservedRun]:
    """Return the runs of the results, in order, as observers see them."""
    errors = {failure.job.job_id: failure.error for failure in report.failures}
    observed = {run.job.job_id: run.observed for run in report.runs}
    ended = []
    for job, outcome in report.results:
        run = observed.get(job.job_id) or observed_run(job)
        run.outcome, run.error = outcome.name, errors.get(job.job_id)
        ended.append(run)
    return ended
