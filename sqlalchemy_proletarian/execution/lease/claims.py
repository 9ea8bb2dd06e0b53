"""Claiming jobs in lease mode: as many as there are free places, in the transaction of a poll."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from ...clock import Clock
from ...lifecycle.claimed import NOTHING_WAITS, ClaimedJob, NextDue
from ...lifecycle.run import Run
from ...liveness.expired_leases import ExpiredLeases, Judged
from ...liveness.markers import CrashMarkers
from ...store.base import Store
from ..perform import JobExecutor
from ..report import Report
from .settle import LeaseSettling


class LeaseClaims:
    """Claims, leases and marks the jobs of one worker; the caller owns the transaction.

    :param concurrency: how many handlers run at a time.
    :param shared_time: the clock by which all workers measure leases; see :class:`.SharedClock`.
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
    ) -> None:
        self.places: int = concurrency
        """How many handlers may run now: fewer after a crash."""
        self.suspects: set[Run] = set()
        """The runs of jobs that ran with others when their worker crashed."""
        self.next_due: NextDue = NOTHING_WAITS
        """When to look for jobs again, after a claim that did not fill the free places."""
        self.undecided: int = 0
        """How many jobs must not run yet: their worker may still reconnect."""
        self._store = store
        self._executor = executor
        self._settling = settling
        self._expired = expired
        self._markers = markers
        self._now = now
        self._shared_time = shared_time
        self._all_places = concurrency

    def claim(
        self,
        connection: Connection,
        free: int,
        running: int,
        until: datetime,
        report: Report,
        *,
        ends: datetime | None,
        trusting: bool,
    ) -> tuple[list[Run], bool]:
        """Lease due jobs; return their runs, and whether there may be more jobs to claim.

        :param free: how many places are free, and ``running`` how many are taken.
        :param until: when the new leases expire.
        :param ends: when the first lease of the running jobs expires.
        :param trusting: as for :meth:`.ExpiredLeases.judge`.
        """
        now, shared = self._now(), self._shared_time()
        if ends is not None:  # do not claim a job that this worker still runs
            shared = min(shared, ends - timedelta.resolution)
        limit = free + self.undecided
        found = self._store.claim(connection, limit, now, shared)
        self.next_due = NOTHING_WAITS
        if len(found) < limit:
            self.next_due = self._store.next_due(connection, now)
        claimed = [job for job in found if not job.ended_as]
        if len(claimed) < len(found):
            ended = [job for job in found if job.ended_as]
            self._settling.archive_ended(connection, ended, report)
        judged = self._judge(connection, claimed, report, trusting=trusting)
        room = max(0, self.places - running)
        jobs: Sequence[ClaimedJob] = judged.jobs[:room]
        if any(job.queued_key is not None for job in jobs):
            jobs = self._store.free_keys(connection, jobs)
        leased = self._store.lease(connection, jobs, until)
        if leased and self._markers is not None:
            self._markers.place(connection, leased, running + len(leased), shared)
        runs = self._executor.prepare(connection, leased)
        suspects = judged.verdict.suspects
        if suspects:
            self.suspects.update(run for run in runs if run.job.job_id in suspects)
        undecided, self.undecided = self.undecided, len(judged.verdict.undecided)
        settled = len(found) > len(claimed) or bool(judged.poison)
        more = settled or self.undecided > undecided or len(runs) == free
        return runs, more

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
            self.places = min(self._all_places, judged.verdict.together)
        elif not self.suspects:
            self.places = self._all_places
        return judged
