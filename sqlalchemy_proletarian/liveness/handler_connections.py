"""Making the connections in which handlers run known to other workers, on MySQL and MariaDB.

The server of a vanished host's connection notices the loss only after hours. So such a connection
holds a named lock. Other workers find its holder by the lock, and KILL it, which takes no privilege
for connections of the same user.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

from sqlalchemy import Connection, Table, text
from sqlalchemy.exc import DBAPIError

from ..database import mysql_wait_timeout, named_locks
from ..database.cluster import Cluster
from ..database.error_codes import code_of
from ..models.job_classes import job_table
from ..models.mixins import JobMixin

_TAKE: Final = text("SELECT GET_LOCK(:name, :seconds)")
_RELEASE: Final = text("DO RELEASE_LOCK(:name)")
_HOLDER: Final = text("SELECT IS_USED_LOCK(:name)")
_KILL: Final = text("KILL CONNECTION :connection_id")
_REPLACE_LOCK_AND_TIMEOUT: Final = text(
    "SET @proletarian = RELEASE_LOCK(:last), @proletarian = GET_LOCK(:name, 0), "
    + mysql_wait_timeout.UNLIMITED
)

NO_SUCH_CONNECTION: Final = 1094
NOT_OWNER: Final = 1095
"""The error codes of KILL."""


def kill_holder(connection: Connection, lock: str) -> bool:
    """End the connection that holds a lock; return whether there was one."""
    holder = connection.scalar(_HOLDER, {"name": lock})
    if holder is None:
        return False
    try:
        connection.execute(_KILL, {"connection_id": holder})
    except DBAPIError as error:
        if code_of(error) != NO_SUCH_CONNECTION:
            raise
        return False
    return True


class HandlerConnection:
    """The connection in whose transactions one thread or task runs jobs, in transaction mode.

    :param worker: the identity of the worker.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._job_id: Any = None

    @staticmethod
    def lock_name(worker: str, job_id: Any) -> str:
        """Return the name of its lock.

        :param job_id: the job that the worker's marker is about.
        """
        return _lock_name(worker, job_id)

    def announce(self, connection: Connection, job_id: Any) -> None:
        """Take the lock, before the connection runs jobs of which this is the first.

        From then on the connection may be idle for any time.
        """
        last, self._job_id = self._job_id, job_id
        names = {
            "last": self.lock_name(self._worker, last),
            "name": self.lock_name(self._worker, job_id),
        }
        connection.execute(_REPLACE_LOCK_AND_TIMEOUT, names)
        mysql_wait_timeout.lifted(connection)

    def replace(self, connection: Connection) -> None:
        """End the lost connection that this one replaces: the server may not know of the loss."""
        if self._job_id is not None:
            with connection.begin():
                kill_holder(connection, self.lock_name(self._worker, self._job_id))


class LeasedConnections:
    """The connections of handlers' sessions in lease mode, each with a transaction of its own.

    :param cluster: in a cluster, no other node sees the lock, and none is taken.
    """

    def __init__(self, job_model: type[JobMixin], cluster: Cluster | None = None) -> None:
        self._table: Table = job_table(job_model)
        self._cluster = cluster

    def lock_name(self, connection: Connection, job_id: Any) -> str:
        """Return the name of the lock for a job."""
        schema = connection.schema_for_object(self._table) or connection.dialect.default_schema_name
        return _lock_name(schema, self._table.name, job_id)

    def announce(self, connection: Connection, job_id: Any) -> None:
        """Take the lock until the connection is closed; end the connection of an earlier run.

        That run could not commit: the worker that has the lease now counts another attempt.
        """
        if self._cluster is not None and self._cluster.found:
            return
        name = self.lock_name(connection, job_id)
        try:
            seconds = 0
            while not connection.scalar(_TAKE, {"name": name, "seconds": seconds}):
                if not kill_holder(connection, name):
                    break
                seconds = 1  # the time that the killed connection takes to end
        except DBAPIError as error:
            if code_of(error) != NOT_OWNER:
                raise
        close = connection.close

        def release_and_close() -> None:
            try:
                if not (connection.closed or connection.invalidated):
                    connection.execute(_RELEASE, {"name": name})
            except Exception:  # the pool must not hand it out with the lock
                connection.invalidate()
            finally:
                close()

        connection.close = release_and_close  # type: ignore[method-assign]


def _lock_name(*parts: object) -> str:
    whole = "\0".join(map(str, parts)).encode(errors="backslashreplace")
    return f"{named_locks.PREFIX}{blake2b(whole, digest_size=16).hexdigest()}"
