"""Running markers: which worker runs which job, and whether the last one died on it.

A row lock is gone with the process that held it, and so is every trace of what it was doing. So a
worker commits a marker before it runs a batch, on a connection of its own, and deletes it in the
transaction that settles the batch. A worker that claims a job with a marker knows that the batch
was not settled; what that means for the job is decided in :mod:`.deaths`. A larger batch has one
marker, on its first job, which says how many there were. The worker that finds it marks the others
as suspects too, and a suspect runs alone. (A marker for each of a hundred jobs in every batch would
cost half the throughput.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from ..database.connections import let_go, own_connection
from ..lifecycle.claimed import ClaimedJob
from ..runtime.doorbell import LONGEST_PAUSE
from ..runtime.threads import Waiting
from ..store.markers import MarkerTable
from .poison import Evidence, evidence_of

P = ParamSpec("P")
ReturnT = TypeVar("ReturnT")

SUSPECT = 0
"""The batch size in the marker of a job that is to run alone, after a death in a larger batch."""

_LAST_BREATH = 0.05
"""Seconds in which the server notices that a killed worker's connections are gone."""

_GRACE = 0.3
"""Seconds in which a living worker that was cut off listens again, whatever its handlers do."""

RETURN = LONGEST_PAUSE + 1
"""Seconds that other workers are given to come back after an outage, before they count as dead."""


@dataclass
class Stale:
    """What the markers of other workers say about the jobs of a batch."""

    died: dict[Any, str] = field(default_factory=dict)
    """Jobs that ran alone when their worker died: the worker's name by job id."""
    suspects: int = 0
    """How many of the jobs ran in a larger batch when their worker died."""

    def __bool__(self) -> bool:
        return bool(self.died or self.suspects)


class Markers:
    """Places and removes the markers of one worker that holds jobs by transactions.

    :param worker: the worker's identity, by which others find out whether it lives.
    """

    def __init__(self, engine: Engine, table: MarkerTable, worker: str, waiting: Waiting) -> None:
        self._engine = engine
        self._table = table
        self._worker = worker
        self._waiting = waiting
        self._lock = waiting.lock()
        self._connection: Connection | None = None
        self._trust_at = monotonic()

    def place(self, jobs: Sequence[ClaimedJob], now: datetime) -> Stale | None:
        """Mark a batch; or return what other markers say of its jobs, if that is anything.

        Then nothing is marked: the batch is not to run as it is.
        """
        with self._lock:
            if any(job.marked for job in jobs) and (stale := self._judge(jobs, now)):
                return stale
            self._do(self._table.place, [jobs[0].job_id], self._worker, len(jobs), now)
        return None

    def _judge(self, jobs: Sequence[ClaimedJob], now: datetime) -> Stale:
        ids = [job.job_id for job in jobs]
        marked = [job.job_id for job in jobs if job.marked]
        found = self._do(self._table.find, marked)
        if monotonic() < self._trust_at:
            return Stale()
        for alive, seconds in ((True, _LAST_BREATH), (False, _GRACE)):
            if any(row.alive is alive and not row.older_than_server for row in found):
                self._waiting.flag().wait(seconds)
                found = self._do(self._table.find, marked)
        stale = Stale()
        claimed = {job.job_id: job for job in jobs}
        for row in found:
            job = claimed[row.job_id]
            evidence = evidence_of(job, row)
            if evidence is Evidence.ALONE:
                stale.died[row.job_id] = row.worker
            elif evidence is Evidence.AMONG_OTHERS and len(jobs) > 1:
                # A leased job has a marker of its own. In a transaction it was the first of its
                # batch: the others come behind it.
                together = 1 if job.expired else max(row.batch_size, 1)
                first = ids.index(row.job_id)
                suspects = ids[first : first + together]
                stale.suspects += len(suspects)
                self._do(self._table.suspect, suspects, row.worker, SUSPECT, now)
        return stale

    @staticmethod
    def of(jobs: Sequence[ClaimedJob]) -> list[Any]:
        """Return the ids of those jobs of a batch that have a marker."""
        return [job.job_id for n, job in enumerate(jobs) if n == 0 or job.marked]

    def doubt(self) -> None:
        """Note that this worker was cut off: others that cannot be seen may be so, too."""
        self._trust_at = monotonic() + RETURN

    def withdraw(self, jobs: Sequence[ClaimedJob]) -> None:
        """Remove the markers of a batch whose transaction failed while this worker lives on."""
        with self._lock, suppress(Exception):  # whatever a driver says where it cannot connect
            self._do(self._table.remove, self.of(jobs))

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _do(
        self, work: Callable[Concatenate[Connection, P], ReturnT], *args: P.args, **kwargs: P.kwargs
    ) -> ReturnT:
        if self._connection is None:
            self._connection = own_connection(
                self._engine, self._worker, isolation_level="AUTOCOMMIT"
            )
            self._table.set_up(self._connection)
        try:
            return work(self._connection, *args, **kwargs)
        except BaseException:
            self._drop()
            self.doubt()
            raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            let_go(connection)
