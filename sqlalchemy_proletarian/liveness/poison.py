"""What the death of a worker means for the job that it ran: one rule for every way to hold jobs.

A death is not a failure of the job, and uses up no attempt. But a job may be what kills its
workers. So the row of a job counts the workers in a row that died while they ran that job and no
other, and the job fails when there have been as many as ``max_deaths``. Where several jobs ran,
nobody knows which of them it was: nothing is counted, and they run again among fewer.

A worker that loses a lease, because it was frozen or could not reach the database, is as good as
dead for that job.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from ..errors import WorkerDiedError
from ..lifecycle.claimed import ClaimedJob
from ..store.markers import Marker

MAX_DEATHS: Final = 3


class Evidence(Enum):
    """What a marker says about a job that is due."""

    NONE = auto()
    """Nothing: the server was restarted, or the worker lost a connection and lives."""
    ALONE = auto()
    """Its worker died while it ran this job and no other."""
    AMONG_OTHERS = auto()
    """Its worker died while it ran several jobs, this one among them."""


def evidence_of(job: ClaimedJob, marker: Marker) -> Evidence:
    """Return what a marker that was found on a job says about it.

    A worker that lives can lose a connection, and with it the lock on a job. It loses a lease only
    if it does not work.
    """
    if marker.older_than_server or (marker.alive and not job.expired):
        return Evidence.NONE
    return Evidence.ALONE if marker.batch_size == 1 else Evidence.AMONG_OTHERS


def with_death(job: ClaimedJob) -> ClaimedJob:
    """Return a job with one death more."""
    return job._replace(deaths=job.deaths + 1)


def is_last_chance(job: ClaimedJob, max_deaths: int) -> bool:
    """Return whether one death more fails a job: it runs alone then, so that it is to blame."""
    return 0 < job.deaths >= max_deaths - 1


def poison_error(job: ClaimedJob, worker: str | None) -> WorkerDiedError:
    """Return the error with which a job fails that has used up its deaths.

    :param worker: the last worker that died, where a marker names it.
    """
    who = "a worker" if job.deaths == 1 else f"{job.deaths} workers in a row"
    last = f" (the last one was {worker})" if worker else ""
    return WorkerDiedError(
        f"{who} died or lost the lease while running attempt {job.attempts} of this job and no "
        f"other{last}"
    )
