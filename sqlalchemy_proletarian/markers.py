"""Running markers: which worker runs which job, and whether the last one died on it.

A row lock is gone with the process that held it, and so is every trace of what it was doing. So a
worker commits a marker per job before it runs a batch, on a connection of its own, and deletes it
in the transaction that settles the job. Who holds a job's lock and finds a marker knows that its
writer is dead. The marker of a batch of one says that this job killed its worker: the attempt
counts. The marker of a larger batch makes the job a suspect that runs alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from time import sleep
from typing import Any

from sqlalchemy import (
    ARRAY,
    Connection,
    DateTime,
    Engine,
    Integer,
    Text,
    bindparam,
    column,
    delete,
    func,
    literal_column,
    select,
    table,
    text,
)
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .connect import own_connection
from .models import RunningJobMixin
from .store import ClaimedJob

_LAST_BREATH = 0.05
"""Seconds in which the server notices that a killed worker's connections are gone."""


@dataclass
class Stale:
    """Jobs of a batch whose last worker died, by what its marker says."""

    killers: dict[Any, str] = field(default_factory=dict)
    """Ran alone when its worker died: the worker's name by job id."""
    suspects: set[Any] = field(default_factory=set)
    """Ran in a batch with others when its worker died."""


class Markers:
    """Places and removes the markers of one worker.

    :param name: the worker's name; its connections carry it as ``application_name``.
    """

    def __init__(self, engine: Engine, running_job_model: type[RunningJobMixin], name: str) -> None:
        self._engine = engine
        self._name = name
        self._lock = Lock()
        self._connection: Connection | None = None
        self.table = running = sa_inspect(running_job_model).local_table
        ids = bindparam("ids", type_=ARRAY(running.c.job_id.type))
        given = (
            func.unnest(ids)
            .table_valued(column("job_id", running.c.job_id.type), name="given")
            .render_derived()
        )
        fresh = insert(running).from_select(
            ["job_id", "worker", "batch_size", "started_at"],
            select(
                given.c.job_id,
                bindparam("worker", type_=Text),
                bindparam("batch_size", type_=Integer),
                bindparam("now", type_=DateTime(timezone=True)),
            ),
        )
        among = running.c.job_id == func.any(ids)
        self._place = fresh.on_conflict_do_nothing().returning(running.c.job_id)
        self._take_over = fresh.on_conflict_do_update(
            index_elements=[running.c.job_id],
            set_={name: fresh.excluded[name] for name in ("worker", "batch_size", "started_at")},
        )
        activity = table("pg_stat_activity", column("application_name", Text))
        self._found = select(
            running.c.job_id,
            running.c.worker,
            running.c.batch_size,
            # A worker outlives a restart of the database, its markers then say nothing.
            (running.c.started_at < func.pg_postmaster_start_time()).label("void"),
            select(literal_column("1"))
            .select_from(activity)
            .where(activity.c.application_name == func.left(running.c.worker, 63))
            .exists()
            .label("alive"),
        ).where(among)
        self._remove = delete(running).where(among)

    def place(self, jobs: Sequence[ClaimedJob], now: datetime) -> Stale:
        """Mark jobs whose locks this worker holds, and return what stale markers say of them.

        A suspect that is alone in ``jobs`` is taken over, to run alone.
        """
        stale = Stale()
        ids = [job.job_id for job in jobs]
        parameters = {"worker": self._name, "batch_size": len(ids), "now": now}
        with self._lock:
            placed = self._execute(self._place, {"ids": ids, **parameters}).scalars().all()
            if len(placed) == len(ids):
                return stale
            left = list(set(ids) - set(placed))
            taken_over = []
            for job_id, worker, batch_size, void in self._dead(left):
                if batch_size == 1 and not void:
                    stale.killers[job_id] = worker
                elif void or len(ids) == 1:
                    taken_over.append(job_id)
                else:
                    stale.suspects.add(job_id)
            if taken_over:
                self._execute(self._take_over, {"ids": taken_over, **parameters})
        return stale

    def _dead(self, ids: list[Any]) -> list[tuple[Any, str, int, bool]]:
        found = self._execute(self._found, {"ids": ids}).all()
        if any(row.alive for row in found):
            sleep(_LAST_BREATH)
            found = self._execute(self._found, {"ids": ids}).all()
        # A marker whose worker lives is void too: it lost the lock with a connection, not its life.
        return [(row.job_id, row.worker, row.batch_size, row.void or row.alive) for row in found]

    def remove(self, session: Session, jobs: Iterable[ClaimedJob]) -> None:
        """Remove the markers of jobs in the transaction that settles them."""
        session.execute(self._remove, {"ids": [job.job_id for job in jobs]})

    def withdraw(self, jobs: Iterable[ClaimedJob]) -> None:
        """Remove the markers of jobs whose transaction failed while this worker lives on."""
        with self._lock, suppress(DBAPIError):
            self._execute(self._remove, {"ids": [job.job_id for job in jobs]})

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _execute(self, statement: Any, parameters: dict[str, Any]) -> Any:
        if self._connection is None:
            self._connection = own_connection(
                self._engine, self._name, isolation_level="AUTOCOMMIT"
            )
            self._connection.execute(text("SET synchronous_commit = off"))
        try:
            return self._connection.execute(statement, parameters)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(DBAPIError):
                connection.close()
