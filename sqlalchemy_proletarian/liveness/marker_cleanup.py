"""Removing running markers that no claim removes.

The worker that claims a job removes the marker of the crashed worker. But a worker of the Clojure
library does not know markers, and a job may be deleted: then the marker remains without a job.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, Table

from ..clock import Clock
from ..database.dialects import Database
from ..runtime.interval import Interval
from ..store.markers import MarkerTable

INTERVAL: Final = 600.0
"""Seconds between two clean-ups of one worker."""

_MIN_AGE: Final = timedelta(hours=1)
"""The age of a marker that is removed. Several job tables may share a table of markers: the job may
be in another table, leased by a crashed worker, and the marker is needed until the lease expires.
"""


class MarkerCleanup:
    """Removes the markers of crashed workers whose jobs are not in the job table.

    :param clock: the clock of the worker, which dates the markers.
    """

    def __init__(self, database: Database, table: MarkerTable, job: Table, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._table = table
        self._find = table.without_job(job)
        self._interval = Interval(INTERVAL)

    def __call__(self, connection: Connection) -> None:
        """Remove the markers, if the interval has passed.

        :param connection: one that is not in a transaction.
        """
        if not self._interval.has_passed():
            return
        with self._database.begin(connection):
            ids = connection.scalars(self._find, {"before": self._clock() - _MIN_AGE}).all()
            if ids:
                self._table.remove(connection, ids)
