"""Running markers: which worker runs which job, and whether the last one died on it.

A row lock is gone with the process that held it, and so is every trace of what it was doing. So a
worker commits a marker before it runs a batch, on a connection of its own, and deletes it in the
transaction that settles the batch. Who claims a job that has a marker knows that its writer is
dead. The marker of a batch of one says that this job killed its worker: the attempt counts. A
larger batch has one marker, on its first job, which says how many there were: whoever finds it
marks the others as suspects too, and a suspect runs alone. (A marker for each of a hundred jobs in
every batch would cost half the throughput.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Select,
    Table,
    Text,
    column,
    func,
    select,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import Insert, insert

from .connect import LISTENING, let_go, own_connection
from .statements import of_ids, remove_markers
from .store import ClaimedJob
from .waiting import Waiting
from .wakeup import LONGEST_PAUSE

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
    """What the markers of dead workers say about the jobs of a batch."""

    killers: dict[Any, str] = field(default_factory=dict)
    """Jobs that ran alone when their worker died: the worker's name by job id."""
    suspects: int = 0
    """How many of the jobs ran in a larger batch when their worker died."""


def place(running: Table) -> Insert:
    """Write markers, over those of others: parameters are the columns."""
    statement = insert(running)
    return statement.on_conflict_do_update(
        index_elements=[running.c.job_id],
        set_={
            column.name: statement.excluded[column.name]
            for column in running.c
            if not column.primary_key
        },
    )


def find(running: Table) -> Select[*tuple[Any, ...]]:
    """Return the markers of jobs, and what is known of those who wrote them: parameter ``ids``."""
    activity = table("pg_stat_activity", column("application_name", Text))
    return select(
        running.c.job_id,
        running.c.worker,
        running.c.batch_size,
        running.c.started_at,
        # A worker outlives a restart of the database; its markers then say nothing.
        (running.c.started_at < func.pg_postmaster_start_time()).label("older_than_server"),
        select(activity.c.application_name)
        .where(activity.c.application_name.in_([running.c.worker, running.c.worker + LISTENING]))
        .exists()
        .label("alive"),
    ).where(of_ids(running))


class Markers:
    """Places and removes the markers of one worker that holds jobs by transactions.

    :param worker: what the worker's connections carry as ``application_name``.
    """

    def __init__(self, engine: Engine, running: Table, worker: str, waiting: Waiting) -> None:
        self._engine = engine
        self._worker = worker
        self._waiting = waiting
        self._lock = waiting.lock()
        self._connection: Connection | None = None
        self._trust_at = monotonic()
        self._place = place(running)
        self._found = find(running)
        self._suspect = insert(running).on_conflict_do_update(
            index_elements=[running.c.job_id], set_={"batch_size": SUSPECT}
        )
        self._remove = remove_markers(running)

    def place(self, jobs: Sequence[ClaimedJob], now: datetime) -> Stale | None:
        """Mark a batch, and return what stale markers say of its jobs, if there are any.

        Nothing is marked where there are suspects in a larger batch.
        """
        with self._lock:
            marked = any(job.marked for job in jobs)
            stale = self._judge(jobs, now) if marked else None
            if stale is not None and stale.suspects:
                return stale  # they are not run now, and their marker must stay until they are
            self._execute(
                self._place,
                {
                    "job_id": jobs[0].job_id,
                    "worker": self._worker,
                    "batch_size": len(jobs),
                    "started_at": now,
                },
            )
        return stale

    def _judge(self, jobs: Sequence[ClaimedJob], now: datetime) -> Stale:
        ids = [job.job_id for job in jobs]
        marked = {"ids": [job.job_id for job in jobs if job.marked]}
        found = self._execute(self._found, marked).all()
        if monotonic() < self._trust_at:
            return Stale()
        for alive, seconds in ((True, _LAST_BREATH), (False, _GRACE)):
            if any(row.alive is alive and not row.older_than_server for row in found):
                self._waiting.flag().wait(seconds)
                found = self._execute(self._found, marked).all()
        stale = Stale()
        for row in found:
            if row.alive or row.older_than_server:
                continue  # its writer lost a connection, not its life
            if row.batch_size == 1:
                stale.killers[row.job_id] = row.worker
            elif len(jobs) > 1:
                # It was the first of its batch: the others come behind it.
                first = ids.index(row.job_id)
                suspects = ids[first : first + max(row.batch_size, 1)]
                stale.suspects += len(suspects)
                common = {"worker": row.worker, "batch_size": SUSPECT, "started_at": now}
                rows = [{"job_id": job_id, **common} for job_id in suspects]
                self._execute(self._suspect, rows)
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
            self._execute(self._remove, {"ids": self.of(jobs)})

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _execute(self, statement: Any, parameters: Any) -> Any:
        if self._connection is None:
            self._connection = own_connection(
                self._engine, self._worker, isolation_level="AUTOCOMMIT"
            )
            self._connection.execute(text("SET synchronous_commit = off"))
        try:
            return self._connection.execute(statement, parameters)
        except BaseException:
            self._drop()
            self.doubt()
            raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            let_go(connection)
