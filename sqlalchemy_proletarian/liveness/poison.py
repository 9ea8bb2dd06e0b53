"""The poison rule: a job whose handler crashes its worker fails after ``max_deaths`` crashes.

A crash of a worker is not a failed attempt of its jobs, and is not counted as one. But a job may be
the cause of the crash. So the row of a job counts in ``deaths`` how many workers in a row crashed
while they ran that job and no other, and the job fails when there were ``max_deaths`` of them. If
the worker ran several jobs, the cause is unknown: nothing is counted, and the jobs run again with
fewer others.

The threads or tasks of a worker in transaction mode do not know what the others run, and without
markers nobody does. A death may then be counted for a job that was not alone. So a job that one
more death would fail runs alone.

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

_LEAST_IF_SHARED: Final = 2
"""The least number of deaths that fails a job whose first death another job may have caused."""


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


def deaths_to_fail(max_deaths: int, *, may_share: bool) -> int:
    """Return how many deaths fail a job.

    :param may_share: whether its worker may have run other jobs when it crashed. It has run none if
        one more death fails the job: see :func:`is_last_chance`.
    """
    return max(max_deaths, _LEAST_IF_SHARED) if may_share else max_deaths


def is_last_chance(job: ClaimedJob, max_deaths: int) -> bool:
    """Return whether one more death fails the job: it then runs alone, so that it is the cause."""
    return 0 < job.deaths >= max_deaths - 1


def poison_error(job: ClaimedJob, worker: str | None) -> WorkerDiedError:
    """Return the error of a job that fails by the poison rule.

    :param worker: the last worker that crashed, if a marker names it.
    """
    what = f"died or lost the lease while running attempt {job.attempts} of this job"
    if job.deaths == 1:
        name = f" (it was {worker})" if worker else ""
        return WorkerDiedError(f"a worker {what} and no other{name}")
    name = f" ({worker})" if worker else ""
    return WorkerDiedError(
        f"{job.deaths} workers in a row {what}; the last one{name} ran no other job"
    )
