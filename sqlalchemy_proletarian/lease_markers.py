"""Running markers of jobs that are held by leases, one a job, written where the job is claimed.

What a marker says that is found on a job which is due, stands in :mod:`.lapses`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    DateTime,
    Integer,
    Row,
    Table,
    Text,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from .markers import find
from .statements import array, of_ids, remove_markers
from .store import ClaimedJob


class LeaseMarkers:
    """Places, finds and removes the markers of one worker; the caller owns the transaction.

    :param worker: what the worker's connections carry as ``application_name``.
    """

    def __init__(self, running: Table, worker: str) -> None:
        self._worker = worker
        mine = running.c.worker == bindparam("me", type_=Text)
        beside: Any = bindparam("beside", type_=Integer)
        given = select(
            func.unnest(array("ids", running.c.job_id.type)),
            bindparam("me", type_=Text),
            beside,
            bindparam("now", type_=DateTime(timezone=True)),
        )
        placed = insert(running).from_select(
            ["job_id", "worker", "batch_size", "started_at"], given
        )
        self._place = placed.on_conflict_do_update(
            index_elements=[running.c.job_id],
            set_={name: placed.excluded[name] for name in ("worker", "batch_size", "started_at")},
        )
        # Not one by one more: it is the order of magnitude that counts. A marker that is locked is
        # being removed, in the transaction of a handler that nobody here waits for.
        fewer = (
            select(running.c.job_id)
            .where(mine, running.c.batch_size * 2 <= beside)
            .with_for_update(skip_locked=True)
            .cte("fewer")
            .prefix_with("MATERIALIZED")
        )
        self._joined = (
            update(running).where(running.c.job_id == fewer.c.job_id).values(batch_size=beside)
        )
        self._remove = delete(running).where(of_ids(running), mine)
        self._clear = remove_markers(running)
        self._find = find(running)

    def place(
        self, connection: Connection, jobs: Sequence[ClaimedJob], beside: int, now: datetime
    ) -> None:
        """Mark leased jobs.

        :param beside: how many jobs the worker holds now, these included.
        """
        common = {"me": self._worker, "beside": beside}
        if beside > len(jobs):
            connection.execute(self._joined, common)
        ids = [job.job_id for job in jobs]
        connection.execute(self._place, {**common, "ids": ids, "now": now})

    def found(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> Sequence[Row[Any]]:
        """Return the markers that somebody has left on jobs."""
        marked = [job.job_id for job in jobs if job.marked]
        return connection.execute(self._find, {"ids": marked}).all() if marked else ()

    def clear(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> None:
        """Remove the markers of jobs, whoever wrote them."""
        connection.execute(self._clear, {"ids": [job.job_id for job in jobs]})

    def remove(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> None:
        """Remove this worker's markers of jobs that it holds no longer."""
        ids = [job.job_id for job in jobs]
        connection.execute(self._remove, {"ids": ids, "me": self._worker})
