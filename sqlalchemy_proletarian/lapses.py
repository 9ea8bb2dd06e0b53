"""Leases that ran out: whether the job killed its worker, and how it runs again.

A marker on a job that is due tells of the worker whose lease ran out. If that worker is gone and
ran this job alone, the job killed it: the attempt, counted at the claim, has failed. If it ran
among others, nobody knows which of them it was: each gets its attempt back, and runs again among
an eighth as many. So a poison job is alone after a few deaths, and its neighbours need not wait
for one another. A worker that is still connected was frozen, or too busy to extend its leases: that
blames nobody, unless it happens again and again.

Without markers only the attempts tell: more of them than the strategy allows are left by a lease
that ran out, and by nothing else. Such a job runs once more, alone; then it has failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from .claims import ClaimedJob
from .lease_markers import LeaseMarkers
from .perform import Performer

TOLERATED = 3
"""How many attempts of a job may lose their lease to a living worker, beyond what its retry
strategy allows."""

_SHRINK = 8

_DEATH = re.compile(r"WorkerDiedError: .*\battempt (\d+) of this job\b")


@dataclass
class Lapsed:
    """What is known of claimed jobs whose last lease ran out."""

    killers: dict[Any, str] = field(default_factory=dict)
    """What to say, by job id, of jobs that have failed."""
    suspects: set[Any] = field(default_factory=set)
    """Ids of jobs that may have killed their worker."""
    given_back: set[Any] = field(default_factory=set)
    """Ids of those suspects whose last attempt does not count."""
    early: set[Any] = field(default_factory=set)
    """Ids of jobs to leave alone: their worker may be about to come back, and to go on."""
    together: int | None = None
    """How many jobs a worker may hold while it holds suspects."""

    def suspect(self, job: ClaimedJob, together: int) -> None:
        """Note a job that runs again among fewer."""
        self.suspects.add(job.job_id)
        self.together = min(together, self.together or together)


class Lapses:
    """Judges jobs whose lease ran out.

    :param markers: None where nobody places any.
    """

    def __init__(self, performer: Performer, markers: LeaseMarkers | None) -> None:
        self._performer = performer
        self._markers = markers

    def judge(
        self, connection: Connection, jobs: Sequence[ClaimedJob], *, trusting: bool
    ) -> Lapsed:
        """Return what is to become of claimed jobs; the markers of those that failed go.

        :param trusting: whether a worker that could extend its leases would have done so; after an
            outage it may not yet be back.
        """
        lapsed = Lapsed()
        if self._markers is None:
            self._by_attempts(connection, jobs, lapsed)
        else:
            self._by_markers(connection, self._markers, jobs, lapsed, trusting=trusting)
        return lapsed

    def _by_markers(
        self,
        connection: Connection,
        markers: LeaseMarkers,
        jobs: Sequence[ClaimedJob],
        lapsed: Lapsed,
        *,
        trusting: bool,
    ) -> None:
        claimed = {job.job_id: job for job in jobs}
        frozen: list[ClaimedJob] = []
        for marker in markers.found(connection, jobs):
            job = claimed[marker.job_id]
            # A lease ends after its marker was written; a job that a transaction held was due
            # before, and its attempt is not counted.
            leased = job.process_at is not None and job.process_at > marker.started_at
            if not trusting:
                lapsed.early.add(job.job_id)
            elif marker.alive or marker.older_than_server:
                if leased:
                    frozen.append(job)
            elif not leased:
                lapsed.suspect(job, 1)
            elif marker.batch_size > 1:
                lapsed.suspect(job, max(1, marker.batch_size // _SHRINK))
                lapsed.given_back.add(job.job_id)
            else:
                lapsed.killers[job.job_id] = (
                    f"the worker {marker.worker} died while it ran attempt {job.attempts - 1} of "
                    f"this job and no other"
                )
        for job, over in self._beyond(connection, frozen):
            if over > TOLERATED:
                lapsed.killers[job.job_id] = (
                    f"attempt {job.attempts - 1} of this job lost its lease, as others before it"
                )
        if lapsed.killers:
            markers.clear(connection, [claimed[job_id] for job_id in lapsed.killers])

    def _by_attempts(
        self, connection: Connection, jobs: Sequence[ClaimedJob], lapsed: Lapsed
    ) -> None:
        for job, over in self._beyond(connection, jobs):
            if over > 1:
                lapsed.killers[job.job_id] = (
                    f"attempt {job.attempts - 1} of this job never ended: its worker died or lost "
                    f"its lease"
                )
            elif over == 1:
                lapsed.suspect(job, 1)

    def _beyond(
        self, connection: Connection, jobs: Iterable[ClaimedJob]
    ) -> list[tuple[ClaimedJob, int]]:
        """Return how many attempts of each job are more than its retry strategy allows.

        Where only a function knows the strategy, or nobody, and the handler may ask for retries of
        its own, what counts is attempts that have left no error.
        """
        beyond: list[tuple[ClaimedJob, int]] = []
        unknown: list[ClaimedJob] = []
        for job in jobs:
            strategy = self._performer.strategy(job)
            if strategy is not None:
                beyond.append((job, job.attempts - 1 - strategy.retries))
            elif job.attempts > 1:
                unknown.append(job)
        errors = self._performer.store.errors(connection, unknown) if unknown else {}
        for job in unknown:
            error = errors.get(job.job_id)
            death = _DEATH.search(error) if error else None
            if death is not None or error is None:
                beyond.append((job, job.attempts - 1 - (int(death[1]) if death else 0)))
        return beyond
