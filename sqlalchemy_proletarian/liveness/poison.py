"""The poison rule: a job whose handler crashes its worker fails after ``max_deaths`` crashes.

A crash of a worker is not a failed attempt of its jobs, and is not counted as one. But a job may be
the cause of the crash. So the row of a job counts in ``deaths`` how many workers in a row crashed
while they ran that job and no other, and the job fails when there were ``max_deaths`` of them. If
the worker ran several jobs, the cause is unknown: nothing is counted, and the jobs run again with
fewer others.

A worker that loses a lease, because it was frozen or could not reach the database, counts as
crashed for that job.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from ..errors import WorkerDiedError
from ..lifecycle.claimed import ClaimedJob
from ..store.markers import Marker

MAX_DEATHS: Final = 3


class Evidence(Enum):
    """What the marker of another worker says about a claimed job."""

    NONE = auto()
    """Nothing: the server was restarted, or the worker lost a connection and is alive."""
    ALONE = auto()
    """The worker crashed while it ran this job and no other."""
    AMONG_OTHERS = auto()
    """The worker crashed while it ran several jobs, including this one."""


def evidence_of(job: ClaimedJob, marker: Marker) -> Evidence:
    """Return what a marker that was found on a claimed job says about it.

    A worker that is alive can lose a connection, and with it the lock on a job. It loses a lease
    only if it does not work any more.
    """
    if marker.older_than_server or (marker.alive and not job.expired):
        return Evidence.NONE
    return Evidence.ALONE if marker.batch_size == 1 else Evidence.AMONG_OTHERS


def with_death(job: ClaimedJob) -> ClaimedJob:
    """Return a job with one more death."""
    return job._replace(deaths=job.deaths + 1)


def is_last_chance(job: ClaimedJob, max_deaths: int) -> bool:
    """Return whether one more death fails the job: it then runs alone, so that it is the cause."""
    return 0 < job.deaths >= max_deaths - 1


def poison_error(job: ClaimedJob, worker: str | None) -> WorkerDiedError:
    """Return the error of a job that fails by the poison rule.

    :param worker: the last worker that crashed, if a marker names it.
    """
    who = "a worker" if job.deaths == 1 else f"{job.deaths} workers in a row"
    last = f" (the last one was {worker})" if worker else ""
    return WorkerDiedError(
        f"{who} died or lost the lease while running attempt {job.attempts} of this job and no "
        f"other{last}"
    )
