"""The SQL of running markers, and of whether the workers that wrote them are alive.

Every method takes a Connection and neither commits nor rolls back. MySQL and MariaDB change markers
one by one, by their ids, for the reason given in :mod:`.portable_statements`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    DateTime,
    Executable,
    Insert,
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

from ..database import mysql_wait_timeout, named_locks
from ..database.arrays import array
from ..database.column_types import DateTimeUTC
from ..database.connections import LISTENING
from ..database.dialects import Database
from ..database.prepared import PreparedStatement, compile_to_prepare
from . import portable_statements as portable
from .postgresql_statements import of_ids, remove_markers

_COLUMNS = "worker", "batch_size", "started_at"
_WORKER: BindParameter[Any] = bindparam("given_worker", type_=Text)
_SIZE: BindParameter[Any] = bindparam("given_size", type_=Integer)


class Marker(NamedTuple):
    """A running marker, and the state of the worker that wrote it."""

    job_id: Any
    worker: str
    batch_size: int
    started_at: datetime
    older_than_server: bool
    """Whether the server started later. A worker survives a restart of the server, so such a marker
    says nothing."""
    alive: bool


class MarkerTable(ABC):
    """The statements for one table of running markers."""

    _place: Insert
    _suspect: Executable
    _grow: Executable
    _remove: Executable
    _remove_own: Executable

    def __init__(self, running: Table) -> None:
        self._running = running
        self._alive = self._is_alive(running.c.worker)
        self._prepare(running)

    @abstractmethod
    def _is_alive(self, worker: ColumnElement[str]) -> ColumnElement[bool]:
        """Return the condition that a worker is alive."""

    @abstractmethod
    def _prepare(self, running: Table) -> None:
        """Build the statements."""

    @abstractmethod
    def set_up(self, connection: Connection) -> None:
        """Set up a connection that only writes markers."""

    @abstractmethod
    def find(self, connection: Connection, ids: Sequence[Any]) -> list[Marker]:
        """Return the markers of jobs."""

    def without_job(self, job: Table) -> Select[Any]:
        """Select the ids of markers of dead workers that have no job: parameter ``before``."""
        running = self._running
        before = bindparam("before", type_=running.c.started_at.type)
        has_job = select(job.c.job_id).where(job.c.job_id == running.c.job_id).exists()
        return select(running.c.job_id).where(
            running.c.started_at < before, not_(has_job), not_(self._alive)
        )

    def alive_workers(self) -> Select[str]:
        """Select the workers with markers that are alive.

        The condition is evaluated once for each worker: it is costly.
        """
        workers = select(self._running.c.worker).distinct().subquery("workers")
        return select(workers.c.worker).where(self._is_alive(workers.c.worker))

    def place(
        self, connection: Connection, ids: Sequence[Any], worker: str, size: int, now: datetime
    ) -> None:
        """Mark jobs as running, replacing the markers of other workers.

        :param size: how many jobs the worker runs, these included.
        """
        self._execute(connection, self._place, ids, given_worker=worker, given_size=size, now=now)

    def prepare_place(self, connection: Connection) -> PreparedStatement | None:
        """Prepare :meth:`place` for :meth:`place_text`; return None if that is not possible."""
        compiled = compile_to_prepare(connection, self._place)
        return None if compiled is None else PreparedStatement(connection, compiled)

    @staticmethod
    def place_text(
        prepared: PreparedStatement, ids: Sequence[Any], worker: str, size: int, now: datetime
    ) -> str:
        """Return the text that marks jobs as :meth:`place` does."""
        values = {"given_worker": worker, "given_size": size, "now": now}
        return prepared.call({"ids": ids, **values})

    def suspect(
        self, connection: Connection, ids: Sequence[Any], worker: str, size: int, now: datetime
    ) -> None:
        """Set the batch size in the markers of jobs; mark the jobs that have none."""
        self._execute(connection, self._suspect, ids, given_worker=worker, given_size=size, now=now)

    @abstractmethod
    def grow(self, connection: Connection, worker: str, size: int) -> None:
        """Raise the batch size in a worker's markers, where it has at least doubled."""

    def remove(self, connection: Connection, ids: Sequence[Any], worker: str | None = None) -> None:
        """Remove the markers of jobs: of one worker, or of any."""
        if worker is None:
            self._execute(connection, self._remove, ids)
        else:
            self._execute(connection, self._remove_own, ids, given_worker=worker)

    @abstractmethod
    def _execute(
        self, connection: Connection, statement: Executable, ids: Sequence[Any], **values: Any
    ) -> None:
        """Execute a statement for the markers of jobs."""


class PostgreSQLMarkerTable(MarkerTable):
    """The statements of :class:`MarkerTable` for PostgreSQL."""

    def _is_alive(self, worker: ColumnElement[str]) -> ColumnElement[bool]:
        activity = table("pg_stat_activity", column("application_name", Text))
        name = activity.c.application_name
        return select(name).where(name.in_((worker, worker + LISTENING))).exists()

    def _prepare(self, running: Table) -> None:
        given = select(
            func.unnest(array("ids", running.c.job_id.type)),
            _WORKER,
            _SIZE,
            bindparam("now", type_=DateTime(timezone=True)),
        )
        new = postgresql.insert(running).from_select(["job_id", *_COLUMNS], given)
        key = [running.c.job_id]
        self._place = new.on_conflict_do_update(
            index_elements=key, set_={name: new.excluded[name] for name in _COLUMNS}
        )
        self._suspect = new.on_conflict_do_update(
            index_elements=key, set_={"batch_size": new.excluded.batch_size}
        )
        # A locked marker is being removed by the transaction of a handler: do not wait for it.
        outgrown = (
            select(running.c.job_id)
            .where(_is_outgrown(running))
            .with_for_update(skip_locked=True)
            .cte("outgrown")
            .prefix_with("MATERIALIZED")
        )
        self._grow = (
            update(running).where(running.c.job_id == outgrown.c.job_id).values(batch_size=_SIZE)
        )
        self._remove = remove_markers(running)
        self._remove_own = remove_markers(running).where(running.c.worker == _WORKER)
        is_older = running.c.started_at < func.pg_postmaster_start_time()
        self._find = select(*_columns(running), is_older, self._alive).where(of_ids(running))

    def set_up(self, connection: Connection) -> None:
        """Do not wait for the disk: losing markers in a crash of the server does no harm."""
        connection.execute(text("SET synchronous_commit = off"))

    def find(self, connection: Connection, ids: Sequence[Any]) -> list[Marker]:
        """Return the markers of jobs."""
        return [Marker._make(row) for row in connection.execute(self._find, {"ids": ids})]

    def grow(self, connection: Connection, worker: str, size: int) -> None:
        """Raise the batch size; see :meth:`MarkerTable.grow`."""
        connection.execute(self._grow, {"given_worker": worker, "given_size": size})

    def _execute(
        self, connection: Connection, statement: Executable, ids: Sequence[Any], **values: Any
    ) -> None:
        connection.execute(statement, {"ids": ids, **values})


class PortableMarkerTable(MarkerTable):
    """The statements of :class:`MarkerTable` for MySQL and MariaDB."""

    def _is_alive(self, worker: ColumnElement[str]) -> ColumnElement[bool]:
        return named_locks.is_alive(worker)

    def _prepare(self, running: Table) -> None:
        given = bindparam("id", type_=running.c.job_id.type), _WORKER, _SIZE, portable.NOW
        values = dict(zip(("job_id", *_COLUMNS), given, strict=True))
        new = mysql.insert(running).values(values)
        self._place = new.on_duplicate_key_update({name: new.inserted[name] for name in _COLUMNS})
        self._suspect = new.on_duplicate_key_update(batch_size=new.inserted.batch_size)
        self._outgrown = select(running.c.job_id).where(_is_outgrown(running))
        self._lock = portable.lock_ids(running)
        self._grow = update(running).where(portable.of_id(running)).values(batch_size=_SIZE)
        self._remove = portable.delete_one(running)
        self._remove_own = portable.delete_one(running).where(running.c.worker == _WORKER)
        self._find = select(*_columns(running), self._alive).where(portable.of_ids(running))

    def set_up(self, connection: Connection) -> None:
        """Let the connection be idle for any time."""
        connection.exec_driver_sql(f"SET {mysql_wait_timeout.UNLIMITED}")

    def find(self, connection: Connection, ids: Sequence[Any]) -> list[Marker]:
        """Return the markers of jobs."""
        found = connection.execute(self._find, {"ids": ids}).all()
        if not found:
            return []
        since = _server_start(connection)
        return [Marker._make((*row, row[-1] < since, alive)) for *row, alive in found]

    def grow(self, connection: Connection, worker: str, size: int) -> None:
        """Raise the batch size; see :meth:`MarkerTable.grow`."""
        outgrown = {"given_worker": worker, "given_size": size}
        ids = connection.scalars(self._outgrown, outgrown).all()
        if ids:
            unlocked = connection.scalars(self._lock, {"ids": ids}).all()
            self._execute(connection, self._grow, unlocked, given_size=size)

    def _execute(
        self, connection: Connection, statement: Executable, ids: Sequence[Any], **values: Any
    ) -> None:
        if ids:
            connection.execute(statement, [{"id": job_id, **values} for job_id in ids])


def open_marker_table(database: Database, running: Table) -> MarkerTable:
    """Return the statements for a table of markers on a database."""
    kind = PostgreSQLMarkerTable if database.arrays else PortableMarkerTable
    return kind(running)


def _columns(running: Table) -> list[ColumnElement[Any]]:
    return [running.c.job_id, *(running.c[name] for name in _COLUMNS)]


def _is_outgrown(running: Table) -> ColumnElement[bool]:
    # Only the order of magnitude matters, so not every additional job is a write.
    return and_(running.c.worker == _WORKER, running.c.batch_size * 2 <= _SIZE)


def _server_start(connection: Connection) -> datetime:
    """Return when MySQL's server started, at most a second late: it reports whole seconds."""
    now: Any = connection.scalar(select(func.utc_timestamp(6, type_=DateTimeUTC)))
    (_, seconds) = connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Uptime'").one()
    started: datetime = now - timedelta(seconds=int(seconds) - 1)
    return started
