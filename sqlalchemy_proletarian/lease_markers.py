"""Running markers of jobs that are held by leases, one a job, written where the job is claimed.

A marker found on a job that is due says that somebody's lease ran out. If that worker is gone and
ran this job alone, the job killed it: the attempt, counted at the claim, has failed. If it ran
among others, nobody knows which of them it was: each gets its attempt back, and runs again among
an eighth as many. So a poison job is alone after a few deaths, and its neighbours need not wait
for one another. A worker that is still connected was frozen or cut off, which blames nobody; its
attempt stays counted, so that it cannot complete the job any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    Connection,
    DateTime,
    Integer,
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
from .statements import remove_markers
from .store import ClaimedJob

_SHRINK = 8


@dataclass
class Lapsed:
    """What the markers of lapsed leases say about claimed jobs."""

    killers: dict[Any, str] = field(default_factory=dict)
    """What to say, by job id, of jobs that ran alone when their worker died."""
    suspects: set[Any] = field(default_factory=set)
    """Ids of jobs that ran among others when their worker died."""
    together: int | None = None
    """How many jobs a worker may hold while it holds suspects."""


class LeaseMarkers:
    """Places, judges and removes the markers of one worker; the caller owns the transaction.

    :param worker: what the worker's connections carry as ``application_name``.
    """

    def __init__(self, running: Table, worker: str) -> None:
        self._worker = worker
        ids = bindparam("ids", type_=ARRAY(running.c.job_id.type))
        mine = running.c.worker == bindparam("me", type_=Text)
        beside: Any = bindparam("beside", type_=Integer)
        given = select(
            func.unnest(ids),
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
        self._joined = (
            update(running).where(mine, running.c.batch_size < beside).values(batch_size=beside)
        )
        self._remove = delete(running).where(running.c.job_id == func.any(ids), mine)
        self._clear = remove_markers(running)
        self._found = find(running)

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

    def judge(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> Lapsed:
        """Return what the markers on claimed jobs say; those that have been judged go."""
        lapsed = Lapsed()
        marked = [job.job_id for job in jobs if job.marked]
        if not marked:
            return lapsed
        for marker in connection.execute(self._found, {"ids": marked}):
            if marker.alive or marker.older_than_server:
                continue
            if marker.batch_size <= 1:
                lapsed.killers[marker.job_id] = (
                    f"the worker {marker.worker} died while it ran this job and no other"
                )
                continue
            lapsed.suspects.add(marker.job_id)
            together = max(1, marker.batch_size // _SHRINK)
            lapsed.together = min(together, lapsed.together or together)
        if lapsed.killers:
            connection.execute(self._clear, {"ids": list(lapsed.killers)})
        return lapsed

    def remove(self, connection: Connection, jobs: Iterable[ClaimedJob]) -> None:
        """Remove this worker's markers of jobs that it holds no longer."""
        ids = [job.job_id for job in jobs]
        connection.execute(self._remove, {"ids": ids, "me": self._worker})
