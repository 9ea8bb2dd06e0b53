"""Running markers of jobs that are held by leases, one a job, written where the job is claimed.

What a marker says that is found on a job which is due is decided in :mod:`.deaths`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection

from ..lifecycle.claimed import ClaimedJob
from ..store.markers import Marker, MarkerTable


class LeaseMarkers:
    """Places, finds and removes the markers of one worker; the caller owns the transaction.

    :param worker: the worker's identity, by which others find out whether it lives.
    """

    def __init__(self, table: MarkerTable, worker: str) -> None:
        self._table = table
        self._worker = worker

    def place(
        self, connection: Connection, jobs: Sequence[ClaimedJob], beside: int, now: datetime
    ) -> None:
        """Mark leased jobs.

        :param beside: how many jobs the worker holds now, these included.
        """
        if beside > len(jobs):
            self._table.grow(connection, self._worker, beside)
        self._table.place(connection, [job.job_id for job in jobs], self._worker, beside, now)

    def found(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> Sequence[Marker]:
        """Return the markers that somebody has left on jobs."""
        marked = [job.job_id for job in jobs if job.marked]
        return self._table.find(connection, marked) if marked else ()

    def clear(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> None:
        """Remove the markers of jobs, whoever wrote them."""
        self._table.remove(connection, [job.job_id for job in jobs])

    def remove(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> None:
        """Remove this worker's markers of jobs that it holds no longer."""
        self._table.remove(connection, [job.job_id for job in jobs], self._worker)
