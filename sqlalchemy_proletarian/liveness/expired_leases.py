"""Jobs whose lease expired: which of them may run now, with how many others, and which fail.

An expired lease shows that a run never ended. The marker of its worker says how many jobs that
worker held. If it held one, the job has one more death (:mod:`.poison`). If it held several, the
cause of the crash is unknown, and they run again with an eighth as many jobs. So a job that crashes
its workers runs alone after a few crashes, and the other jobs do not wait for each other.

Without markers, every job whose lease expired has one more death. A job that one more death would
fail runs alone, so no other job fails with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from ..lifecycle.claimed import ClaimedJob
from .markers import CrashMarkers, Verdict, verdict_of
from .poison import deaths_to_fail, is_last_chance, with_death


@dataclass
class Judged:
    """What becomes of claimed jobs."""

    jobs: list[ClaimedJob] = field(default_factory=list)
    """The jobs that may run, with the deaths to write."""
    poison: list[tuple[ClaimedJob, str | None]] = field(default_factory=list)
    """The jobs that fail by the poison rule, each with the last worker that crashed, if known."""
    verdict: Verdict = field(default_factory=Verdict)


class ExpiredLeases:
    """Judges claimed jobs whose lease expired.

    :param markers: None if the worker uses no markers.
    :param max_deaths: returns how many deaths fail a job.
    """

    def __init__(
        self, markers: CrashMarkers | None, max_deaths: Callable[[ClaimedJob], int]
    ) -> None:
        self._markers = markers
        self._max_deaths = max_deaths

    def judge(
        self, connection: Connection, jobs: Sequence[ClaimedJob], *, trusting: bool
    ) -> Judged:
        """Return what becomes of claimed jobs; remove the markers of the jobs that fail.

        :param trusting: whether a worker that is alive would have extended its leases by now. It
            may not, shortly after an outage.
        """
        verdict = self._verdict(connection, jobs, trusting=trusting)
        judged = Judged(verdict=verdict)
        for claimed in jobs:
            if claimed.job_id in verdict.undecided:
                continue
            job = with_death(claimed) if claimed.job_id in verdict.died else claimed
            max_deaths = self._limit(job) if job.deaths else 0
            if job is not claimed and job.deaths >= max_deaths:
                judged.poison.append((job, verdict.died[job.job_id]))
                continue
            if is_last_chance(job, max_deaths):
                verdict.suspect([job.job_id], 1)
            judged.jobs.append(job)
        if judged.poison and self._markers is not None:
            self._markers.clear(connection, [job.job_id for job, _ in judged.poison])
        return judged

    def _limit(self, job: ClaimedJob) -> int:
        return deaths_to_fail(self._max_deaths(job), may_share=not self._markers_in_use())

    def _markers_in_use(self) -> bool:
        return self._markers is not None and self._markers.in_use

    def _verdict(
        self, connection: Connection, jobs: Sequence[ClaimedJob], *, trusting: bool
    ) -> Verdict:
        if self._markers is None or not self._markers.in_use:
            died: dict[Any, str | None] = {job.job_id: None for job in jobs if job.expired}
            return Verdict(died=died, undecided=set() if trusting else set(died))
        markers = self._markers.found(connection, jobs)
        if not trusting:
            return Verdict(undecided={marker.job_id for marker in markers})
        return verdict_of(jobs, markers, in_batches=False)
