"""The SQL that deletes old rows of an archive, in batches that wait for no one.

The rows are visited in the order of the index on ``finished_at``, window by window. Each window
has a bounded number of rows, and is visited once, whether its rows are deleted or kept: a statement
never reads past many rows that stay, or past those that an earlier batch has deleted. Rows that
another session has locked are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Table, delete, select

from ..database.dialects import database_of
from . import portable_statements as portable

_EARLIEST: Final = datetime(1000, 1, 2, tzinfo=UTC)
"""Earlier than any finished job; MySQL's calendar begins a day before."""


class Pruning:
    """Deletes the rows that finished before a time.

    :param before: the time.
    :param statuses: delete only rows with one of these; None for all.
    :param batch_size: how many rows one step visits; more if they have finished at the same time.
    :param since: where to begin, the ``reached`` of an earlier pruning; None for the oldest row.
    :param partitioned: whether the archive is partitioned by month.
    """

    def __init__(
        self,
        archived: Table,
        before: datetime,
        statuses: Sequence[str] | None,
        batch_size: int,
        since: datetime | None = None,
        *,
        partitioned: bool = False,
    ) -> None:
        self.reached: datetime = since or _EARLIEST
        """The time up to which rows were visited."""
        self._archived = archived
        self._last: datetime = before - timedelta.resolution
        self._statuses = statuses
        self._size = batch_size
        self._partitioned = partitioned
        self._end: datetime | None = None
        self._after: Any = None

    def step(self, connection: Connection) -> int | None:
        """Delete a batch in the caller's transaction.

        :return: how many rows were deleted, perhaps 0; None if there is nothing left to visit.
        """
        if self.reached >= self._last:
            return None
        if self._end is None:
            self._end = self._window_end(connection)
        work = self._delete if database_of(connection.dialect).arrays else self._delete_each
        deleted, more = work(connection, self._end)
        if not more:
            self.reached, self._end, self._after = self._end, None, None
        return deleted

    def _window_end(self, connection: Connection) -> datetime:
        """Return when the last row of the next window finished."""
        at = self._archived.c.finished_at
        nth = (
            select(at)
            .where(at > self.reached, at <= self._last)
            .order_by(at)
            .offset(self._size - 1)
            .limit(1)
        )
        end: datetime | None = connection.scalar(nth)
        return self._last if end is None else end

    def _in_window(self, end: datetime) -> list[ColumnElement[bool]]:
        at, status = self._archived.c.finished_at, self._archived.c.status
        window = [at > self.reached, at <= end]
        return window if self._statuses is None else [*window, status.in_(self._statuses)]

    def _delete(self, connection: Connection, end: datetime) -> tuple[int, bool]:
        job_id = self._archived.c.job_id
        # MATERIALIZED: the planner may run a subquery with SKIP LOCKED more than once.
        free = (
            select(job_id)
            .where(*self._in_window(end))
            .limit(self._size)
            .with_for_update(skip_locked=True)
            .cte("free")
            .prefix_with("MATERIALIZED")
        )
        gone = delete(self._archived).where(job_id.in_(select(free.c.job_id)))
        if self._partitioned:  # else it would look for each id in all partitions
            gone = gone.where(*self._in_window(end))
        done = connection.execute(gone)
        return done.rowcount, done.rowcount == self._size

    def _delete_each(self, connection: Connection, end: datetime) -> tuple[int, bool]:
        # Not with a locking read of the window: InnoDB would lock the gap behind it, into which
        # workers insert, at the isolation level REPEATABLE READ.
        job_id = self._archived.c.job_id
        wanted = select(job_id).where(*self._in_window(end)).order_by(job_id).limit(self._size)
        if self._after is not None:
            wanted = wanted.where(job_id > self._after)
        ids = connection.scalars(wanted).all()
        if not ids:
            return 0, False
        self._after = ids[-1]
        free = connection.scalars(portable.lock_ids(self._archived), {"ids": ids}).all()
        if free:
            rows = [{"id": job_id} for job_id in free]
            connection.execute(portable.delete_one(self._archived), rows)
        return len(free), len(ids) == self._size
