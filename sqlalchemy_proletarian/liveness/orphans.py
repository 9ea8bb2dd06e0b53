"""Ending what a host has left open that vanished, where the server would notice after hours.

On MySQL and MariaDB a connection with a transaction in which handlers run holds a named lock, by
which others find it, and KILL it. To end connections of one's own user takes no privilege.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table, func, not_, select, text
from sqlalchemy.exc import DBAPIError

from ..database import mysql_wait_timeout as silence
from ..database import named_locks
from ..database.error_codes import code_of
from ..models.job_classes import job_table
from ..models.mixins import JobMixin

_TAKE: Final = text("SELECT GET_LOCK(:name, :seconds)")
_RELEASE: Final = text("DO RELEASE_LOCK(:name)")
_HOLDER: Final = text("SELECT IS_USED_LOCK(:name)")
_KILL: Final = text("KILL CONNECTION :line")
_TAKE_AND_LIFT: Final = text(
    "SET @proletarian = RELEASE_LOCK(:last), @proletarian = GET_LOCK(:name, 0), "
    + silence.UNLIMITED
)

_NO_SUCH_LINE, _NOT_OURS = 1094, 1095

_SIGHTINGS: Final = 2
"""How often in a row a worker is missed before its transactions are ended: one that has lost its
connection has the time between to come back."""


def _name(*whose: object) -> str:
    whole = "\0".join(map(str, whose)).encode(errors="backslashreplace")
    return f"{named_locks.PREFIX}{blake2b(whole, digest_size=16).hexdigest()}"


def _end(connection: Connection, name: str) -> bool:
    """End the connection that holds a lock; tell whether there was one."""
    line = connection.scalar(_HOLDER, {"name": name})
    if line is None:
        return False
    try:
        connection.execute(_KILL, {"line": line})
    except DBAPIError as error:
        if code_of(error) != _NO_SUCH_LINE:
            raise
        return False
    return True


class Line:
    """The connection of one desk that runs jobs in its transactions.

    :param worker: the worker's identity.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._job_id: Any = None

    @staticmethod
    def name(worker: str, job_id: Any) -> str:
        """Return the name of its lock.

        :param job_id: that of the job which the worker's marker is about.
        """
        return _name(worker, job_id)

    def show(self, connection: Connection, job_id: Any) -> None:
        """Let others find it, before it runs jobs of which this one has a marker.

        From then on there may be silence on it.
        """
        last, self._job_id = self._job_id, job_id
        names = {"last": self.name(self._worker, last), "name": self.name(self._worker, job_id)}
        connection.execute(_TAKE_AND_LIFT, names)
        silence.lifted(connection)

    def replace(self, connection: Connection) -> None:
        """End the one that was lost, for which this connection is: the server may not know yet."""
        if self._job_id is not None:
            with connection.begin():
                _end(connection, self.name(self._worker, self._job_id))


class LeasedJobs:
    """Connections of handlers whose jobs are leased, each with a transaction of its own."""

    def __init__(self, job_model: type[JobMixin]) -> None:
        self._table: Table = job_table(job_model)

    def name(self, connection: Connection, job_id: Any) -> str:
        """Return the name of the lock for a job."""
        schema = connection.schema_for_object(self._table) or connection.dialect.default_schema_name
        return _name(schema, self._table.name, job_id)

    def show(self, connection: Connection, job_id: Any) -> None:
        """Let others find a connection until it is closed; end one where an earlier run is left.

        That could not commit: whoever has the lease now has counted one attempt more.
        """
        name = self.name(connection, job_id)
        try:
            seconds = 0
            while not connection.scalar(_TAKE, {"name": name, "seconds": seconds}):
                if not _end(connection, name):
                    break
                seconds = 1  # which it may take to end
        except DBAPIError as error:
            if code_of(error) != _NOT_OURS:
                raise
        close = connection.close

        def release_and_close() -> None:
            try:
                if not (connection.closed or connection.invalidated):
                    connection.execute(_RELEASE, {"name": name})
            except Exception:  # nobody else must get it with the lock
                connection.invalidate()
            finally:
                close()

        connection.close = release_and_close  # type: ignore[method-assign]


class Orphan(NamedTuple):
    """A transaction whose worker is gone."""

    worker: str
    job_id: Any
    refused: DBAPIError | None
    """Why it could not be ended: it is another user's."""


class Orphans:
    """Ends the transactions that workers have left which are gone.

    Their markers tell of them. A job that is leased is left alone until its lease has ended.
    """

    def __init__(self, running: Table, job_model: type[JobMixin]) -> None:
        self._leased = LeasedJobs(job_model)
        self._missed: dict[tuple[str, Any], int] = {}
        self._find = (
            select(running.c.worker, running.c.job_id)
            .join(job_model, job_model.job_id == running.c.job_id)
            .where(
                not_(named_locks.is_alive(running.c.worker)),
                job_model.process_at <= func.utc_timestamp(6),
            )
        )

    def forget(self) -> None:
        """Forget who was missed: who was cut off must not miss those who were so, too."""
        self._missed.clear()

    def end(self, connection: Connection) -> Iterator[Orphan]:
        """End what is left of those who are missed again, and yield it."""
        missed = [(row.worker, row.job_id) for row in connection.execute(self._find)]
        self._missed = {marker: self._missed.get(marker, 0) + 1 for marker in missed}
        for (worker, job_id), sightings in self._missed.items():
            if sightings != _SIGHTINGS:
                continue
            try:
                ended = [
                    _end(connection, name)
                    for name in (Line.name(worker, job_id), self._leased.name(connection, job_id))
                ]
            except DBAPIError as error:
                if code_of(error) != _NOT_OURS:
                    raise
                yield Orphan(worker, job_id, error)
            else:
                if any(ended):
                    yield Orphan(worker, job_id, None)
