"""Leased jobs that are due again: which of them may run now, with how many others, and which fail.

A lease that expired tells that a run never ended. The marker of its worker tells how many jobs that
worker held. If it was one, the job has one death more (:mod:`.deaths`). If it was several, nobody
knows which of them was to blame: they run again among an eighth as many. So a job that kills its
workers is alone after a few deaths, and its neighbours need not wait for one another.

Without markers every job whose lease expired has one death more. A job that one death more would
fail runs alone, so its neighbours never fail with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection

from ..execution.perform import Performer
from ..lifecycle.claimed import ClaimedJob
from .lease_markers import LeaseMarkers
from .poison import Evidence, evidence_of, is_last_chance, with_death

_SHRINK: Final = 8

_LEAST_WITHOUT_MARKERS: Final = 2
"""Deaths that fail a job at the least, where nobody knows whether it was alone the first time."""


@dataclass
class Judged:
    """What is known of claimed jobs, some of which were leased before."""

    jobs: list[ClaimedJob] = field(default_factory=list)
    """Those that may run, with the deaths that are to be written."""
    poison: list[tuple[ClaimedJob, str | None]] = field(default_factory=list)
    """Those that have used up their deaths, with the last worker that died."""
    suspects: set[Any] = field(default_factory=set)
    """Ids of jobs that may have killed their worker."""
    early: set[Any] = field(default_factory=set)
    """Ids of jobs to leave alone: their worker may be about to come back, and to go on."""
    together: int | None = None
    """How many jobs a worker may hold while it holds suspects."""

    def suspect(self, job: ClaimedJob, together: int) -> None:
        """Note a job that runs again among fewer."""
        self.suspects.add(job.job_id)
        self.together = min(together, self.together or together)


class Lapses:
    """Judges jobs whose lease expired.

    :param markers: None where nobody places any.
    """

    def __init__(self, performer: Performer, markers: LeaseMarkers | None) -> None:
        self._performer = performer
        self._markers = markers

    def judge(
        self, connection: Connection, jobs: Sequence[ClaimedJob], *, trusting: bool
    ) -> Judged:
        """Return what is to become of claimed jobs; the markers of those that failed go.

        :param trusting: whether a worker that could extend its leases would have done so; after an
            outage it may not yet be back.
        """
        judged = Judged()
        died = self._died(connection, jobs, judged, trusting=trusting)
        for claimed in jobs:
            if claimed.job_id in judged.early:
                continue
            job = with_death(claimed) if claimed.job_id in died else claimed
            max_deaths = self._max_deaths(job) if job.deaths else 0
            if job is not claimed and job.deaths >= max_deaths:
                judged.poison.append((job, died[job.job_id]))
                continue
            if is_last_chance(job, max_deaths):
                judged.suspect(job, 1)
            judged.jobs.append(job)
        if judged.poison and self._markers is not None:
            self._markers.clear(connection, [job for job, _ in judged.poison])
        return judged

    def _max_deaths(self, job: ClaimedJob) -> int:
        max_deaths = self._performer.max_deaths(job)
        return max_deaths if self._markers else max(max_deaths, _LEAST_WITHOUT_MARKERS)

    def _died(
        self,
        connection: Connection,
        jobs: Sequence[ClaimedJob],
        judged: Judged,
        *,
        trusting: bool,
    ) -> dict[Any, str | None]:
        """Return the worker that died, where its name is known, by the job that it ran alone."""
        if self._markers is None:
            died: dict[Any, str | None] = {job.job_id: None for job in jobs if job.expired}
            if not trusting:
                judged.early |= died.keys()
            return died
        died = {}
        claimed = {job.job_id: job for job in jobs}
        for marker in self._markers.found(connection, jobs):
            job = claimed[marker.job_id]
            evidence = evidence_of(job, marker)
            if not trusting:
                judged.early.add(job.job_id)
            elif evidence is Evidence.ALONE:
                died[job.job_id] = marker.worker
            elif evidence is Evidence.AMONG_OTHERS:
                # In a transaction the others have no marker of their own.
                judged.suspect(job, max(1, marker.batch_size // _SHRINK) if job.expired else 1)
        return died
