"""Removing running markers that nobody else removes.

The worker that claims a job deals with the marker of a dead worker. But a worker of the Clojure
library knows no markers, and a job may be deleted: then the marker stays without its job.
"""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import Final

from sqlalchemy import Connection, Table

from ..clock import Clock
from ..database.dialects import Database
from ..store.markers import MarkerTable

INTERVAL: Final = 600.0
"""Seconds between two looks of one worker."""

_AGE: Final = timedelta(hours=1)
"""How old such a marker must be. Several job tables may share a table of markers: the job may be in
another one, leased by a worker that died, and the marker must stay until the lease expires."""


class MarkerSweep:
    """Removes the markers of dead workers whose jobs are not in the job table.

    :param clock: the worker's, by which markers are dated.
    """

    def __init__(self, database: Database, table: MarkerTable, job: Table, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._table = table
        self._find = table.without_job(job)
        self._next = monotonic()

    def __call__(self, connection: Connection) -> None:
        """Remove them, if it is time to look.

        :param connection: in no transaction.
        """
        if monotonic() < self._next:
            return
        self._next = monotonic() + INTERVAL
        with self._database.begin(connection):
            ids = connection.scalars(self._find, {"before": self._clock() - _AGE}).all()
            if ids:
                self._table.remove(connection, ids)
