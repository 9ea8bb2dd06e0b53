"""What :func:`.drain` returns: a value for each run of a job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from ..execution.report import Report
from ..handlers.registry import Handlers
from ..lifecycle import outcomes
from ..lifecycle.claimed import ClaimedJob
from ..serializers.json_serializer import Serializer
from .enqueued_jobs import decoded


class Outcome(StrEnum):
    """What became of a job after a run. The values are strings, so ``"success"`` equals SUCCESS.

    .. versionadded:: 0.1
    """

    SUCCESS = "success"
    """The handler returned. The job is archived."""
    RETRIED = "retried"
    """The attempt failed. The job runs again at ``process_at``."""
    FAILURE = "failure"
    """The attempt failed and no retry is left. The job is archived."""
    SNOOZED = "snoozed"
    """The handler raised :class:`.Snooze`. The job runs again at ``process_at``."""
    CANCELLED = "cancelled"
    """The handler raised :class:`.JobCancelledError`. The job is archived."""
    INTERRUPTED = "interrupted"
    """The handler raised :class:`.JobInterruptedError`. The job is due as it was."""
    REFUSED = "refused"
    """The job ended, but the archive rejects its row; see :class:`.ArchiveRefusedError`."""


_OUTCOMES: Final = {
    outcomes.Succeeded: Outcome.SUCCESS,
    outcomes.Retried: Outcome.RETRIED,
    outcomes.Failed: Outcome.FAILURE,
    outcomes.Snoozed: Outcome.SNOOZED,
    outcomes.Cancelled: Outcome.CANCELLED,
    outcomes.Interrupted: Outcome.INTERRUPTED,
    outcomes.Refused: Outcome.REFUSED,
}


@dataclass(frozen=True, slots=True)
class JobRun:
    """One run of a job.

    .. versionadded:: 0.1
    """

    job_type: str
    """The type of the job."""
    payload: Any
    """The payload, decoded for the handler; its text if it cannot be decoded."""
    attempt: int
    """The number of the attempt, from 1."""
    outcome: Outcome
    """What became of the job."""
    error: Exception | None
    """What the handler raised; None if it returned."""
    process_at: datetime | None
    """When the job runs again; None if it does not, or is due at once."""
    job_id: Any
    """The id of the job."""

    @property
    def failed(self) -> bool:
        """Whether the attempt failed, and counts: it is retried, or the job is a failure."""
        return self.outcome in (Outcome.RETRIED, Outcome.FAILURE, Outcome.REFUSED)


def runs_of(report: Report, handlers: Handlers, serializer: Serializer) -> list[JobRun]:
    """Return the runs that a transaction settled."""
    errors = {failure.job.key: failure.error for failure in report.failures}
    return [
        JobRun(
            job.job_type,
            _payload_of(job, handlers, serializer),
            job.attempts,
            _OUTCOMES[type(outcome)],
            errors.get(job.key),
            getattr(outcome, "process_at", None),
            job.job_id,
        )
        for job, outcome in report.results
    ]


def _payload_of(job: ClaimedJob, handlers: Handlers, serializer: Serializer) -> Any:
    try:
        return decoded(job.payload, handlers.find(job.job_type), serializer)
    except Exception:  # a serializer of the user's; its error is the run's
        return job.payload
