"""How many jobs share one transaction: as many as are expected to finish within the window.

Fast jobs share a commit; a slow job, and one of a type not met before, runs in a transaction of its
own, so that it holds up no other job and no other job's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from ...lifecycle.claimed import ClaimedJob

_WEIGHT = 0.2
"""How much the newest duration counts in the moving average of its job type."""


class Pace:
    """The moving average duration of each job type, and what follows from it for a batch.

    :param batch_size: the most jobs of one transaction; 1 is the strict mode.
    :param window: how long a transaction of many jobs may take.
    """

    def __init__(self, batch_size: int, window: timedelta) -> None:
        self.batch_size = batch_size
        self.window = window.total_seconds()
        self._seconds: dict[str, float] = {}
        self._recent = self.window
        self._alone = 0

    def limit(self) -> int:
        """Return how many jobs to claim next."""
        if self._alone:
            self._alone -= 1
            return 1
        return max(1, min(self.batch_size, int(self.window / max(self._recent, 1e-9))))

    def run_alone(self, count: int) -> None:
        """Claim the next ``count`` jobs one by one: something went wrong with them together."""
        self._alone = count

    def record(self, job_type: str, seconds: float) -> None:
        """Note how long a job took."""
        known = self._seconds.get(job_type)
        mean = seconds if known is None else known + _WEIGHT * (seconds - known)
        self._seconds[job_type] = mean
        self._recent += _WEIGHT * (seconds - self._recent)

    def fits(self, job: ClaimedJob) -> bool:
        """Return whether the job is expected to leave room for others in the window.

        One on which a worker has died runs alone, so that nobody else is to blame for the next.
        """
        return not job.deaths and self._seconds.get(job.job_type, self.window) < self.window

    def together(self, jobs: Sequence[ClaimedJob]) -> Sequence[ClaimedJob]:
        """Return those of the claimed jobs that may share this transaction.

        Nothing is returned when the first of them is to run alone: let go of all, claim one.
        """
        if len(jobs) < 2:  # noqa: PLR2004 - one job has nobody to wait for it
            return jobs
        if not self.fits(jobs[0]):
            self._alone = max(self._alone, 1)
            return ()
        return [job for job in jobs if self.fits(job)]
