"""What passes between a store and those who run its jobs: claims, how they ended, what waits."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from .outcomes import Cancelled, Failed, Outcome, Succeeded


class ClaimedJob(NamedTuple):
    """What running a job takes; its whole row is loaded for handlers that ask for it.

    ``attempts`` counts this run; ``marked``: a worker that is gone has left its marker;
    ``process_at``: when the job came due, where it is leased; ``has_ended``: see :mod:`.refusals`.
    """

    job_id: Any
    job_type: str
    payload: str
    attempts: int
    marked: bool = False
    process_at: datetime | None = None
    has_ended: bool = False

    @property
    def attempt(self) -> tuple[Any, int]:
        """Which attempt at which job it is."""
        return self.job_id, self.attempts

    def about(self) -> dict[str, Any]:
        """Return what events about the job carry."""
        return {"job_id": self.job_id, "job_type": self.job_type, "attempt": self.attempts}


Result: TypeAlias = tuple[ClaimedJob, Outcome]
Ended: TypeAlias = tuple[ClaimedJob, Succeeded | Failed | Cancelled]
Returned: TypeAlias = tuple[ClaimedJob, int, datetime | None, str | None]
"""A job that goes back to its queue: with the attempts that count, when it is due, its error."""


class NextDue(NamedTuple):
    """What waits in the lanes of a worker that has found nothing to claim.

    ``overdue``: due jobs exist, so other workers hold them. ``at``: when the next one comes due.
    """

    overdue: bool
    at: datetime | None


NOTHING_WAITS = NextDue(overdue=False, at=None)
