"""Running markers: which worker runs which job, and which jobs it ran when it crashed.

A row lock vanishes with the process that held it, and so does every trace of what that process did.
So a worker writes a marker for the jobs that it is about to run, and deletes it in the transaction
that settles them. A worker that claims a job with a marker knows that the run never ended. What
that means for the job is decided in :mod:`.poison`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from ..database.cluster import Cluster
from ..database.connections import close_own_connection, is_lost, own_connection
from ..database.prepared import PreparedStatement, receive, send_text
from ..lifecycle.claimed import ClaimedJob
from ..runtime.backoff import LONGEST_PAUSE
from ..runtime.base import Runtime
from ..store.markers import Marker, MarkerTable
from .poison import Evidence, evidence_of

P = ParamSpec("P")
ReturnT = TypeVar("ReturnT")

RECONNECT_TIME: Final = LONGEST_PAUSE + 1
"""Seconds in which other workers reconnect after an outage, before they count as crashed."""

_SUSPECT: Final = 0
"""The batch size in the marker of a job that must run alone, after a crash in a larger batch."""

_SHRINK: Final = 8
"""After a crash among others, jobs run again with this fraction of as many jobs."""

_CONNECTION_END: Final = 0.05
"""Seconds in which the server notices that the connections of a killed worker are gone."""

_CONNECTION_START: Final = 0.3
"""Seconds in which a worker that lost its connections listens again, whatever its handlers do."""


@dataclass
class Verdict:
    """What the markers of other workers say about claimed jobs."""

    died: dict[Any, str | None] = field(default_factory=dict)
    """The jobs that ran alone when their worker crashed: the worker by job id, None if unknown."""
    suspects: list[Any] = field(default_factory=list)
    """The ids of jobs that ran with others when their worker crashed."""
    together: int | None = None
    """How many jobs a worker may run at a time while it runs suspects."""
    undecided: set[Any] = field(default_factory=set)
    """The ids of jobs that must not run yet: their worker may still reconnect."""

    def __bool__(self) -> bool:
        return bool(self.died or self.suspects)

    def suspect(self, ids: Iterable[Any], together: int) -> None:
        """Add jobs that must run with fewer others."""
        self.suspects.extend(ids)
        self.together = min(together, self.together or together)


class CrashMarkers:
    """Writes, reads and removes the markers of one worker; the caller owns the transaction.

    :param worker: the identity of the worker, by which others find out whether it is alive.
    :param cluster: in a cluster nobody finds out, so there are no markers.
    """

    def __init__(self, table: MarkerTable, worker: str, cluster: Cluster | None = None) -> None:
        self._table = table
        self._worker = worker
        self._cluster = cluster

    @property
    def in_use(self) -> bool:
        """Whether workers write markers."""
        return self._cluster is None or not self._cluster.found

    def place(
        self, connection: Connection, jobs: Sequence[ClaimedJob], size: int, now: datetime
    ) -> None:
        """Mark jobs as running.

        :param size: how many jobs the worker runs, these included.
        """
        if not self.in_use:
            return
        if size > len(jobs):
            self._table.grow(connection, self._worker, size)
        self._table.place(connection, [job.job_id for job in jobs], self._worker, size, now)

    def found(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> Sequence[Marker]:
        """Return the markers of other workers on claimed jobs."""
        marked = [job.job_id for job in jobs if job.marked and self.in_use]
        return self._table.find(connection, marked) if marked else ()

    def suspect(
        self, connection: Connection, ids: Sequence[Any], worker: str, now: datetime
    ) -> None:
        """Mark jobs so that each runs alone next time."""
        self._table.suspect(connection, ids, worker, _SUSPECT, now)

    def remove(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> None:
        """Remove this worker's markers of jobs."""
        if self.in_use:
            self._table.remove(connection, [job.job_id for job in jobs], self._worker)

    def clear(self, connection: Connection, ids: Sequence[Any]) -> None:
        """Remove the markers of jobs, of any worker."""
        self._table.remove(connection, ids)


def verdict_of(
    jobs: Sequence[ClaimedJob], markers: Iterable[Marker], *, in_batches: bool
) -> Verdict:
    """Return what markers say about claimed jobs.

    :param in_batches: whether one marker stands for a batch of jobs, as in transaction mode. It is
        on the first job of the batch, and the others are claimed behind it.
    """
    verdict = Verdict()
    ids = [job.job_id for job in jobs]
    claimed = {job.job_id: job for job in jobs}
    for marker in markers:
        job = claimed[marker.job_id]
        evidence = evidence_of(job, marker)
        if evidence is Evidence.ALONE:
            verdict.died[marker.job_id] = marker.worker
        elif evidence is Evidence.AMONG_OTHERS:
            if in_batches:
                size = 1 if job.expired else max(marker.batch_size, 1)
                first = ids.index(marker.job_id)
                verdict.suspect(ids[first : first + size], 1)
            else:
                together = max(1, marker.batch_size // _SHRINK) if job.expired else 1
                verdict.suspect([marker.job_id], together)
    return verdict


class BatchMarkers:
    """The markers of one worker in transaction mode, written on a connection of their own.

    They are committed before the batch runs. A batch has one marker, on its first job, which says
    how many jobs there are: a marker for each of a hundred jobs would cost half the throughput.

    :param worker: the identity of the worker, by which others find out whether it is alive.
    """

    def __init__(self, engine: Engine, table: MarkerTable, worker: str, runtime: Runtime) -> None:
        self._engine = engine
        self._table = table
        self._markers = CrashMarkers(table, worker)
        self._worker = worker
        self._runtime = runtime
        self._lock = runtime.lock()
        self._connection: Connection | None = None
        self._prepared: PreparedStatement | None = None
        self._sent: str | None = None
        """The text whose answer was not received yet."""
        self._trust_at = monotonic()

    def place(self, jobs: Sequence[ClaimedJob], now: datetime) -> Verdict | None:
        """Mark a batch as running; or return what other markers say about its jobs, if anything.

        In that case nothing is marked, and the batch must not run as it is.
        """
        with self._lock:
            if any(job.marked for job in jobs) and (verdict := self._judge(jobs, now)):
                return verdict
            self._do(self._place, [jobs[0].job_id], self._worker, len(jobs), now)
        return None

    def _place(self, connection: Connection, *marker: Any) -> None:
        """Mark a batch, without waiting for the answer if the driver supports that.

        The server has received the marker all the same before the first handler starts.
        """
        if self._prepared is None:
            self._table.place(connection, *marker)
        else:
            self._sent = self._table.place_text(self._prepared, *marker)
            send_text(connection, self._sent)

    def confirm(self) -> None:
        """Wait until the marker of the batch is written, so that it can be deleted."""
        with self._lock:
            if self._sent is None:
                return
            try:
                self._do(lambda connection: None)  # noqa: ARG005
            except DBAPIError as error:
                # The jobs have run: their marker has no use any more.
                if not is_lost(error):
                    raise

    def _judge(self, jobs: Sequence[ClaimedJob], now: datetime) -> Verdict:
        found = self._do(self._markers.found, jobs)
        if monotonic() < self._trust_at:
            return Verdict()
        for alive, seconds in ((True, _CONNECTION_END), (False, _CONNECTION_START)):
            if any(marker.alive is alive and not marker.older_than_server for marker in found):
                self._runtime.flag().wait(seconds)
                found = self._do(self._markers.found, jobs)
        verdict = Verdict()
        for marker in found:
            one = verdict_of(jobs, [marker], in_batches=True)
            verdict.died |= one.died
            if one.suspects and len(jobs) > 1:
                verdict.suspect(one.suspects, 1)
                self._do(self._markers.suspect, one.suspects, marker.worker, now)
        return verdict

    @staticmethod
    def ids_of(jobs: Sequence[ClaimedJob]) -> list[Any]:
        """Return the ids of the jobs of a batch that have a marker."""
        return [job.job_id for n, job in enumerate(jobs) if n == 0 or job.marked]

    def distrust(self) -> None:
        """Trust no marker for a while: this worker lost a connection, so others may have, too."""
        self._trust_at = monotonic() + RECONNECT_TIME

    def withdraw(self, jobs: Sequence[ClaimedJob]) -> None:
        """Remove the markers of a batch whose transaction failed, because this worker is alive."""
        # Drivers raise errors of any class when they cannot connect.
        with self._lock, suppress(Exception):
            self._do(self._markers.clear, self.ids_of(jobs))

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
            self._prepared = self._table.prepare_place(self._connection)
        sent, self._sent = self._sent, None
        try:
            if sent is not None:
                receive(self._connection, sent).check()
            return work(self._connection, *args, **kwargs)
        except BaseException:
            self._drop()
            self.distrust()
            raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._prepared = self._sent = None
        if connection is not None:
            close_own_connection(connection)
