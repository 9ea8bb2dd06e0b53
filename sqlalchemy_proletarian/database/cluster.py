"""Galera: a cluster of MariaDB or MySQL servers, all of whose nodes accept writes.

Row locks, named locks and KILL concern one node. Two nodes may change the same row at once; when
the second one commits, its transaction is rolled back with the error of a deadlock. So jobs are
held by leases, which are rows, and not by the locks of a transaction; and there are no running
markers, because nobody could say whether the worker of one is alive.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from ..errors import DatabaseNotReadyError
from .dialects import database_of

_IS_NODE: Final = text("SHOW GLOBAL VARIABLES WHERE Variable_name = 'wsrep_on' AND Value = 'ON'")


class Cluster:
    """Whether the server of a worker is a node of a cluster.

    :param leased: whether the worker holds jobs by leases.
    """

    def __init__(self, *, leased: bool) -> None:
        self.found: bool = False
        """Whether the last new connection was one to a node."""
        self._leased = leased

    def check(self, connection: Connection) -> None:
        """Find out, on a new connection that is not in a transaction.

        :raises DatabaseNotReadyError: if the server is a node, and the worker has no leases.
        """
        with connection.begin():
            self.found = is_node(connection)
        if self.found and not self._leased:
            msg = (
                "the server is a node of a Galera cluster, whose other nodes do not see the row "
                "locks that hold jobs: pass lease=timedelta(minutes=1) to the worker, or --lease 1m"
            )
            raise DatabaseNotReadyError(msg)


def is_node(connection: Connection) -> bool:
    """Return whether a server is a node of a cluster."""
    if database_of(connection.dialect).liveness_by != "locks":
        return False
    return connection.execute(_IS_NODE).first() is not None
