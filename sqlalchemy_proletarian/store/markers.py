"""The SQL of running markers, and of whether those who wrote them still live.

Every function takes a Connection and neither commits nor rolls back. Markers are changed one by
one, by their ids, on MySQL and MariaDB, for the reason that stands in :mod:`.portable_statements`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    DateTime,
    Executable,
    Integer,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    column,
    func,
    not_,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects import mysql, postgresql

from ..database import mysql_wait_timeout as silence
from ..database.column_types import DateTimeUTC
from ..database.connections import LISTENING
from ..database.dialects import Database
from . import portable_statements as portable
from .postgresql_statements import array, of_ids, remove_markers

LOCKS = "proletarian:"
"""What the names of locks begin with."""
_LONGEST = 64
"""Characters that the name of a lock may have; see :data:`.MAX_IDENTITY`."""

_COLUMNS = "worker", "batch_size", "started_at"
_ME: BindParameter[Any] = bindparam("me", type_=Text)
_BESIDE: BindParameter[Any] = bindparam("beside", type_=Integer)


class Marker(NamedTuple):
    """What a marker says, and what is known of who wrote it."""

    job_id: Any
    worker: str
    batch_size: int
    started_at: datetime
    older_than_server: bool
    """A worker outlives a restart of the database; its markers then say nothing."""
    alive: bool


def marker_table(database: Database, running: Table) -> MarkerTable:
    """Return the SQL for a table of markers on a database."""
    kind = MarkerTable if database.arrays else PortableMarkerTable
    return kind(running)


def lock_of(worker: ColumnElement[str]) -> ColumnElement[str]:
    """Return the name of the lock that a worker holds while it lives."""
    return func.left(func.concat(LOCKS, worker), _LONGEST)


def is_present(worker: ColumnElement[str]) -> ColumnElement[bool]:
    """Tell whether a worker lives."""
    return func.is_used_lock(lock_of(worker)).is_not(None)


def _is_outgrown(running: Table) -> ColumnElement[bool]:
    # Not one by one more: it is the order of magnitude that counts.
    return and_(running.c.worker == _ME, running.c.batch_size * 2 <= _BESIDE)


class MarkerTable:
    """The SQL for one table of markers, as PostgreSQL has it."""

    def __init__(self, running: Table) -> None:
        given = select(
            func.unnest(array("ids", running.c.job_id.type)),
            _ME,
            _BESIDE,
            bindparam("now", type_=DateTime(timezone=True)),
        )
        new = postgresql.insert(running).from_select(["job_id", *_COLUMNS], given)
        key = [running.c.job_id]
        self._place: Executable = new.on_conflict_do_update(
            index_elements=key, set_={name: new.excluded[name] for name in _COLUMNS}
        )
        self._suspect: Executable = new.on_conflict_do_update(
            index_elements=key, set_={"batch_size": new.excluded.batch_size}
        )
        # A marker that is locked is being removed, in the transaction of a handler that nobody here
        # waits for.
        fewer = (
            select(running.c.job_id)
            .where(_is_outgrown(running))
            .with_for_update(skip_locked=True)
            .cte("fewer")
            .prefix_with("MATERIALIZED")
        )
        self._grow = (
            update(running).where(running.c.job_id == fewer.c.job_id).values(batch_size=_BESIDE)
        )
        self._remove = remove_markers(running)
        self._remove_mine = self._remove.where(running.c.worker == _ME)
        activity = table("pg_stat_activity", column("application_name", Text))
        names = running.c.worker, running.c.worker + LISTENING
        self._running = running
        self._alive: ColumnElement[bool] = (
            select(activity.c.application_name)
            .where(activity.c.application_name.in_(names))
            .exists()
        )
        self._find = select(
            *_said(running), running.c.started_at < func.pg_postmaster_start_time(), self._alive
        ).where(of_ids(running))

    def set_up(self, connection: Connection) -> None:
        """Set up a connection that places markers and does nothing else."""
        connection.execute(text("SET synchronous_commit = off"))

    def find(self, connection: Connection, ids: Sequence[Any]) -> list[Marker]:
        """Return the markers of jobs."""
        return [Marker._make(row) for row in connection.execute(self._find, {"ids": ids})]

    def without_job(self, job: Table) -> Select[Any]:
        """Return the ids of markers of dead workers that have no job: parameter ``before``."""
        before = bindparam("before", type_=self._running.c.started_at.type)
        has_job = select(job.c.job_id).where(job.c.job_id == self._running.c.job_id).exists()
        return select(self._running.c.job_id).where(
            self._running.c.started_at < before, not_(has_job), not_(self._alive)
        )

    def place(
        self, connection: Connection, ids: Sequence[Any], worker: str, beside: int, now: datetime
    ) -> None:
        """Mark jobs, over the markers of others.

        :param beside: how many jobs run, these included.
        """
        self._execute(connection, self._place, ids, me=worker, beside=beside, now=now)

    def suspect(
        self, connection: Connection, ids: Sequence[Any], worker: str, beside: int, now: datetime
    ) -> None:
        """Change how many there are in the markers of jobs; mark those that have none."""
        self._execute(connection, self._suspect, ids, me=worker, beside=beside, now=now)

    def grow(self, connection: Connection, worker: str, beside: int) -> None:
        """Note in a worker's markers how many jobs run now, if these are many more."""
        connection.execute(self._grow, {"me": worker, "beside": beside})

    def remove(self, connection: Connection, ids: Sequence[Any], worker: str | None = None) -> None:
        """Remove the markers of jobs: those of one worker, or whoever wrote them."""
        if worker is None:
            self._execute(connection, self._remove, ids)
        else:
            self._execute(connection, self._remove_mine, ids, me=worker)

    def _execute(
        self, connection: Connection, statement: Executable, ids: Sequence[Any], **values: Any
    ) -> None:
        connection.execute(statement, {"ids": ids, **values})


class PortableMarkerTable(MarkerTable):
    """The SQL of :class:`MarkerTable` for MySQL and MariaDB."""

    def __init__(self, running: Table) -> None:
        given = bindparam("id", type_=running.c.job_id.type), _ME, _BESIDE, portable.NOW
        values = dict(zip(("job_id", *_COLUMNS), given, strict=True))
        new = mysql.insert(running).values(values)
        self._place = new.on_duplicate_key_update({name: new.inserted[name] for name in _COLUMNS})
        self._suspect = new.on_duplicate_key_update(batch_size=new.inserted.batch_size)
        self._outgrown = select(running.c.job_id).where(_is_outgrown(running))
        self._lock = portable.look_at(running, running.c.job_id).with_for_update(skip_locked=True)
        self._grow = update(running).where(portable.of_id(running)).values(batch_size=_BESIDE)
        self._remove = portable.remove(running)
        self._remove_mine = self._remove.where(running.c.worker == _ME)
        self._running = running
        self._alive = is_present(running.c.worker)
        self._find = select(*_said(running), self._alive).where(portable.of_ids(running))

    def set_up(self, connection: Connection) -> None:
        """Let it be idle as long as it likes.

        Whether a commit waits for the disk is told to the server, not to a connection.
        """
        connection.exec_driver_sql(f"SET {silence.UNLIMITED}")

    def find(self, connection: Connection, ids: Sequence[Any]) -> list[Marker]:
        """Return the markers of jobs."""
        found = connection.execute(self._find, {"ids": ids}).all()
        if not found:
            return []
        since = _started_at(connection)
        return [Marker._make((*said, said[-1] < since, alive)) for *said, alive in found]

    def grow(self, connection: Connection, worker: str, beside: int) -> None:
        """Note in a worker's markers how many jobs run now, if these are many more."""
        ids = connection.scalars(self._outgrown, {"me": worker, "beside": beside}).all()
        if ids:
            free = connection.scalars(self._lock, {"ids": ids}).all()
            self._execute(connection, self._grow, free, beside=beside)

    def _execute(
        self, connection: Connection, statement: Executable, ids: Sequence[Any], **values: Any
    ) -> None:
        if ids:
            connection.execute(statement, [{"id": job_id, **values} for job_id in ids])


def _said(running: Table) -> list[ColumnElement[Any]]:
    return [running.c.job_id, *(running.c[name] for name in _COLUMNS)]


def _started_at(connection: Connection) -> datetime:
    """Return when MySQL's server has started, or a second later: it tells whole seconds."""
    now: Any = connection.scalar(select(func.utc_timestamp(6, type_=DateTimeUTC)))
    (_, seconds) = connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Uptime'").one()
    started: datetime = now - timedelta(seconds=int(seconds) - 1)
    return started
