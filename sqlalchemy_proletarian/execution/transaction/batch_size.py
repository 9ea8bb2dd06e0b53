"""How many jobs share one transaction: as many as are expected to finish within the batch window.

Fast jobs share a commit. A slow job, or one of a type that the worker has not run yet, runs in a
transaction of its own, so that it delays no other job and holds no other job's lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from ...lifecycle.claimed import ClaimedJob

_WEIGHT: Final = 0.2
"""The weight of the latest duration in the moving average of a job type."""


class BatchSize:
    """The moving average duration of each job type, and what it means for the size of batches.

    :param most: the maximum number of jobs per transaction; 1 means one transaction per job.
    :param window: how long a transaction with several jobs may take.
    :param call_sizes: the batch handlers. A call of one is not limited by the window: its function
        takes all the jobs that are due.
    """

    def __init__(
        self, most: int, window: timedelta, call_sizes: Mapping[str, int] | None = None
    ) -> None:
        self.most = most
        self.call_sizes: Mapping[str, int] = {} if call_sizes is None else call_sizes
        """How many jobs a call of a batch handler has at most, by job type."""
        self.window: float = window.total_seconds()
        self._seconds: dict[str, float] = {}
        self._recent = self.window
        self._alone = 0
        self._call_size = 1
        self._reached: dict[str, int] = {}
        """How many jobs a call may have by now, by job type. A new worker begins with one, and
        doubles the number: if its calls crash it again and again, the job to blame is soon alone.
        """

    def limit(self) -> int:
        """Return how many jobs to claim next."""
        if self._alone:
            self._alone -= 1
            return 1
        return max(self._call_size, min(self.most, int(self.window / max(self._recent, 1e-9))))

    def run_alone(self, count: int) -> None:
        """Claim the next ``count`` jobs one by one, because running them together failed."""
        self._alone = count

    def record(self, job_type: str, seconds: float) -> None:
        """Add the duration of a run to the averages."""
        known = self._seconds.get(job_type)
        mean = seconds if known is None else known + _WEIGHT * (seconds - known)
        self._seconds[job_type] = mean
        self._recent += _WEIGHT * (seconds - self._recent)

    def fits(self, job: ClaimedJob) -> bool:
        """Return whether the job is expected to leave time for other jobs in the window.

        A job during which a worker crashed runs alone, so that only it can cause the next crash.
        """
        if job.deaths:
            return False
        if job.job_type in self.call_sizes:
            return True
        return self._seconds.get(job.job_type, self.window) < self.window

    def of_one_kind(self, jobs: Sequence[ClaimedJob]) -> Sequence[ClaimedJob]:
        """Return the claimed jobs that may share a transaction as far as batch handlers go.

        A call may take longer than the window. So it shares the transaction only with jobs of its
        own type.
        """
        first = jobs[0]
        size = self.call_sizes.get(first.job_type)
        if size is None:
            self._call_size = 1
            return [job for job in jobs if job.job_type not in self.call_sizes]
        reached = self._reached.get(first.job_type, 1)
        self._call_size = reached  # the next jobs are probably a batch handler's, too
        if first.deaths:
            return jobs
        same = [job for job in jobs if job.job_type == first.job_type and not job.deaths]
        if len(same) < reached or reached >= size:
            return same
        self._call_size = self._reached[first.job_type] = min(size, 2 * reached)
        return same[:reached]

    def together(self, jobs: Sequence[ClaimedJob]) -> Sequence[ClaimedJob]:
        """Return the claimed jobs that may share this transaction.

        If the first job must run alone, none are returned: the caller releases all of them, and
        claims one.
        """
        if len(jobs) < 2:  # noqa: PLR2004 - a single job delays no other
            return jobs
        if not self.fits(jobs[0]):
            self._alone = max(self._alone, 1)
            return ()
        return [job for job in jobs if self.fits(job)]
