"""What passes between a store and those who run its jobs: claims, how they ended, what waits."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from .outcomes import (
    Cancelled,
    Failed,
    Interrupted,
    Outcome,
    Refused,
    Retried,
    Snoozed,
    Succeeded,
)


class ClaimedJob(NamedTuple):
    """What running a job takes; its whole row is loaded for handlers that ask for it.

    The fields up to ``marked`` are those of the claim's SELECT, in its order.
    """

    job_id: Any
    job_type: str
    payload: str
    attempts: int
    """The number of this attempt, from 1."""
    deaths: int = 0
    """Workers in a row that died while they ran this job alone."""
    expired: bool = False
    """Whether the job was leased, and the lease expired."""
    ended_as: str | None = None
    """The status of a job that has ended and that the archive refused."""
    marked: bool = False
    """Whether a worker has left a running marker."""
    process_at: datetime | None = None
    """When the job came due, where it is leased."""
    lease_id: Any = None
    """The lease of the worker that claimed the job, where it is leased."""

    @property
    def key(self) -> tuple[Any, int, Any]:
        """What tells this attempt, under this lease, from all others."""
        return self.job_id, self.attempts, self.lease_id

    def about(self) -> dict[str, Any]:
        """Return what events about the job carry."""
        return {"job_id": self.job_id, "job_type": self.job_type, "attempt": self.attempts}


Result: TypeAlias = tuple[ClaimedJob, Outcome]
Ended: TypeAlias = tuple[ClaimedJob, Succeeded | Failed | Cancelled]


class Returned(NamedTuple):
    """What is written to the row of a job that goes back to its queue.

    An ``error`` of None keeps the last one.
    """

    job: ClaimedJob
    attempts: int
    process_at: datetime | None
    error: str | None = None
    deaths: int = 0
    ended_as: str | None = None
    ended_at: datetime | None = None
    refusal: str | None = None

    @classmethod
    def of(cls, job: ClaimedJob, outcome: Retried | Refused | Snoozed | Interrupted) -> Returned:
        """Return what an outcome makes of a job."""
        attempts = job.attempts - 1 + outcome.counted
        process_at = outcome.process_at or job.process_at
        if isinstance(outcome, Refused):
            return cls(
                job,
                attempts,
                process_at,
                outcome.error,
                job.deaths,
                outcome.ended_as,
                outcome.ended_at,
                outcome.refusal,
            )
        deaths = job.deaths if isinstance(outcome, Interrupted) else 0
        return cls(job, attempts, process_at, outcome.error, deaths)


class Ending(NamedTuple):
    """What the row of a job says that has ended and waits for the archive."""

    error: str | None
    ended_at: datetime | None


class NextDue(NamedTuple):
    """What waits in the lanes of a worker that has found nothing to claim.

    ``overdue``: due jobs exist, so other workers hold them. ``at``: when the next one comes due.
    """

    overdue: bool
    at: datetime | None


NOTHING_WAITS = NextDue(overdue=False, at=None)
