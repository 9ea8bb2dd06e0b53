"""Claiming jobs in lease mode: as many as there are free places, in the transaction of a poll."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from ...clock import Clock
from ...lifecycle.claimed import NOTHING_WAITS, ClaimedJob, NextDue
from ...lifecycle.run import Run
from ...liveness.expired_leases import ExpiredLeases, Judged
from ...liveness.markers import CrashMarkers
from ...store.base import Store
from ..perform import JobExecutor, set_errors
from ..report import Report
from .settle import LeaseSettling

if TYPE_CHECKING:
    from ...limits.limiter import Admission, Limiter


class LeaseClaims:
    """Claims, leases and marks the jobs of one worker; the caller owns the transaction.

    :param concurrency: how many handlers run at a time.
    :param shared_time: the clock by which all workers measure leases; see :class:`.SharedClock`.
    :param limiter: the limits of the handlers; None if they have none.
    """

    def __init__(
        self,
        *,
        store: Store,
        executor: JobExecutor,
        settling: LeaseSettling,
        expired: ExpiredLeases,
        markers: CrashMarkers | None,
        now: Clock,
        shared_time: Clock,
        concurrency: int,
        limiter: Limiter | None,
    ) -> None:
        self.places: int = concurrency
        """How many handlers may run now: fewer after a crash."""
        self.suspects: set[Run] = set()
        """The runs of jobs that ran with others when their worker crashed."""
        self.next_due: NextDue = NOTHING_WAITS
        """When to look for jobs again, after a claim that did not fill the free places."""
        self.undecided: int = 0
        """How many jobs must not run yet: their worker may still reconnect."""
        self.admission: Admission | None = None
        """Which of the jobs that were claimed last may run by their limits, if any has a limit."""
        self._limiter = limiter
        self._store = store
        self._executor = executor
        self._settling = settling
        self._expired = expired
        self._markers = markers
        self._now = now
        self._shared_time = shared_time
        self._all_places = concurrency
        self._most_jobs: int | None = None
        """How many jobs may run at a time, after a crash; None for no limit but that of calls."""
        self._call_size = 0

    def taken(self, running: Sequence[Run]) -> int:
        """Return how many places the running jobs take: a call of a batch handler takes one."""
        if not self._executor.batch_sizes:
            return len(running)
        return len({run.call or run for run in running})

    def free(self, running: Sequence[Run]) -> int:
        """Return how many places are free."""
        free = self.places - self.taken(running)
        return free if self._most_jobs is None else min(free, self._most_jobs - len(running))

    def claim(
        self,
        connection: Connection,
        running: Sequence[Run],
        until: datetime,
        report: Report,
        *,
        ends: datetime | None,
        trusting: bool,
    ) -> tuple[list[Run], bool]:
        """Lease due jobs; return what to start, and whether there may be more jobs to claim.

        A run is returned for each job, or a call for several jobs of a batch handler.

        :param until: when the new leases expire.
        :param ends: when the first lease of the running jobs expires.
        :param trusting: as for :meth:`.ExpiredLeases.judge`.
        """
        now, shared = self._now(), self._shared_time()
        if ends is not None:  # do not claim a job that this worker still runs
            shared = min(shared, ends - timedelta.resolution)
        free = self.free(running)
        limit = max(free, self._call_size) + self.undecided
        found = self._store.claim(connection, limit, now, shared)
        self.next_due = NOTHING_WAITS
        if len(found) < limit:
            self.next_due = self._store.next_due(connection, now)
        claimed = [job for job in found if not job.ended_as]
        if len(claimed) < len(found):
            ended = [job for job in found if job.ended_as]
            self._settling.archive_ended(connection, ended, report)
        admission, more = None, partial(self._claim_more, connection, now, shared)
        if self._limiter is not None and claimed:
            admission = self._limiter.admit(connection, claimed, more, shared)
        if admission is not None:
            claimed = list(admission.jobs)
        judged = self._judge(connection, claimed, report, trusting=trusting)
        jobs = self._fitting(judged.jobs, running)
        if self._limiter is not None and admission is not None:
            self.admission = admission
            jobs = self._limiter.start_leased(connection, jobs, admission, more)
        if any(job.queued_key is not None for job in jobs):
            jobs = self._store.free_keys(connection, jobs)
        leased = self._store.lease(connection, jobs, until)
        if self._limiter is not None and admission is not None:
            self._limiter.record(connection, leased, admission)
        if leased and self._markers is not None:
            self._markers.place(connection, leased, len(running) + len(leased), shared)
        runs = self._executor.prepare(connection, leased)
        if admission is not None:
            set_errors(runs, admission.errors)
        suspects = judged.verdict.suspects
        if suspects:
            self.suspects.update(run for run in runs if run.job.job_id in suspects)
        undecided, self.undecided = self.undecided, len(judged.verdict.undecided)
        settled = len(found) > len(claimed) or bool(judged.poison)
        units = self._executor.grouped(runs)
        # Jobs of a batch handler that are due may fit into fewer places than there are.
        full = len(units) == free or len(runs) >= limit > free
        return units, settled or self.undecided > undecided or full

    def _claim_more(
        self, connection: Connection, now: datetime, shared: datetime, limit: int
    ) -> list[ClaimedJob]:
        return self._store.claim(connection, limit, now, shared)

    def _fitting(self, jobs: Sequence[ClaimedJob], running: Sequence[Run]) -> Sequence[ClaimedJob]:
        """Return the claimed jobs for which there are places."""
        places = max(0, self.places - self.taken(running))
        sizes = self._executor.batch_sizes
        if not sizes:
            return jobs[:places]
        if jobs:  # if there was a job of a batch handler, there probably are more
            self._call_size = max(sizes.get(job.job_type, 0) for job in jobs)
        fitting = self._executor.calls.fitting(jobs, places)
        if self._most_jobs is None:
            return fitting
        return fitting[: max(0, self._most_jobs - len(running))]

    def _judge(
        self,
        connection: Connection,
        claimed: Sequence[ClaimedJob],
        report: Report,
        *,
        trusting: bool,
    ) -> Judged:
        """Decide which of the claimed jobs may run, and how many at a time."""
        if not any(job.expired or job.marked or job.deaths for job in claimed):
            judged = Judged(list(claimed))
        else:
            judged = self._expired.judge(connection, claimed, trusting=trusting)
            self._settling.fail_poison(connection, judged.poison, report)
        if judged.verdict.together is not None:
            self._most_jobs = judged.verdict.together
            self.places = min(self._all_places, self._most_jobs)
        elif not self.suspects:
            self.places, self._most_jobs = self._all_places, None
        return judged
