"""The values that pass between the store and the code that runs jobs."""

from __future__ import annotations

import json
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
    """What a worker needs of a job to run it.

    The mapped object is loaded only for handlers that ask for it. The fields up to ``marked`` are
    the columns of the claim's SELECT, in order.
    """

    job_id: Any
    job_type: str
    payload: str
    attempts: int
    """The number of this attempt, from 1."""
    deaths: int = 0
    """How many workers in a row crashed while they ran only this job."""
    expired: bool = False
    """Whether the job was leased, and its lease expired."""
    ended_as: str | None = None
    """The status of a job that ended, and whose row the archive rejected."""
    queued_key: str | None = None
    """The unique key, if it has to be free before the job runs."""
    headers: str | None = None
    """The headers as JSON."""
    marked: bool = False
    """Whether the job has a running marker of another worker."""
    process_at: datetime | None = None
    """When the job came due; in transaction mode only if it is read, see :attr:`queue`."""
    lease_id: Any = None
    """The lease of the worker that claimed the job, in lease mode."""
    queue: str | None = None
    """The queue, if the worker's queues have weights or its runs are observed."""

    @property
    def key(self) -> tuple[Any, int, Any]:
        """What identifies this attempt under this lease."""
        return self.job_id, self.attempts, self.lease_id

    def about(self) -> dict[str, Any]:
        """Return the data of events about the job."""
        about = {"job_id": self.job_id, "job_type": self.job_type, "attempt": self.attempts}
        if self.headers is not None:
            about["headers"] = _decoded(self.headers)
        return about


def _decoded(headers: str) -> Any:
    try:
        return json.loads(headers)
    except ValueError:  # a column type of the user's, for example an encrypted one
        return headers


Result: TypeAlias = tuple[ClaimedJob, Outcome]
Ended: TypeAlias = tuple[ClaimedJob, Succeeded | Failed | Cancelled]


class Returned(NamedTuple):
    """The new values of the row of a job that returns to its queue.

    An ``error`` of None keeps the last error.
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
        """Return the new values of a job with this outcome."""
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
    """What the row says of a job that ended and waits for the archive."""

    error: str | None
    ended_at: datetime | None


class NextDue(NamedTuple):
    """When a worker that found no job to claim has to look again.

    :param overdue: whether due jobs exist, which other workers hold.
    :param at: when the next job comes due.
    """

    overdue: bool
    at: datetime | None


NOTHING_WAITS = NextDue(overdue=False, at=None)
