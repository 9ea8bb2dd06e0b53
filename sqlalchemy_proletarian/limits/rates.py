"""Recording the starts of jobs whose type has a rate.

A start is committed before the handler starts, so a crash or a rollback does not give it back. In
lease mode it is committed with the lease. In transaction mode it is committed on a connection of
its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine

from ..clock import Clock
from ..database.connections import close_own_connection, own_connection
from ..database.dialects import Database
from ..lifecycle import starts
from ..lifecycle.limits import Rate, rate_name
from ..runtime.base import Runtime
from ..store.places import PlaceTable

_BUSY: Final = timedelta(milliseconds=50)
"""After this time a worker tries again, if another one is recording a start."""


@dataclass(frozen=True, slots=True)
class Granted:
    """How many jobs may start.

    :param until: until when they may start.
    :param next_at: when more jobs may start.
    """

    count: int
    until: datetime
    next_at: datetime


class RateStarts:
    """Records the starts of the jobs of one worker."""

    def __init__(self, table: PlaceTable, now: Clock, shared_time: Clock) -> None:
        self._table = table
        self._now = now
        self._shared_time = shared_time

    def reserve(self, connection: Connection, job_type: str, rate: Rate, wanted: int) -> Granted:
        """Record that up to ``wanted`` jobs start."""
        name = rate_name(job_type)
        locked, text = self._table.lock_starts(connection, name)
        if not locked and not self._table.starts(connection, name)[0]:
            self._table.create(connection, [(name, 0)], self._now())
            locked, text = self._table.lock_starts(connection, name)
        # Read after the lock: the starts of other workers are then earlier.
        now = self._shared_time()
        if not locked:
            return Granted(0, now, now + _BUSY)
        recorded = starts.read(text)
        count = max(0, min(wanted, starts.available(recorded, rate, now)))
        if count:
            recorded = starts.add(recorded, rate, now, count)
            self._table.write_starts(connection, name, starts.written(recorded))
        return Granted(count, now + rate.grace / 2, starts.next_at(recorded, rate, now))

    def available(self, connection: Connection, job_type: str, rate: Rate) -> tuple[int, datetime]:
        """Return how many jobs may start now, and when one may if none may now."""
        _, text = self._table.starts(connection, rate_name(job_type))
        recorded, now = starts.read(text), self._shared_time()
        return starts.available(recorded, rate, now), starts.next_at(recorded, rate, now)

    def is_late(self, granted: Granted) -> bool:
        """Return whether it is too late to start a job."""
        return self._shared_time() > granted.until


class StartConnection:
    """The connection on which the members of a worker record starts in transaction mode."""

    def __init__(self, engine: Engine, database: Database, identity: str, runtime: Runtime) -> None:
        self._engine = engine
        self._database = database
        self._identity = identity
        self._lock = runtime.lock()
        self._connection: Connection | None = None

    def reserve(self, rates: RateStarts, job_type: str, rate: Rate) -> Granted:
        """Record that one job starts, and commit that."""
        with self._lock:
            if self._connection is None:
                self._connection = own_connection(self._engine, self._identity)
            try:
                with self._database.begin(self._connection):
                    return rates.reserve(self._connection, job_type, rate, 1)
            except BaseException:
                self._drop()
                raise

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            close_own_connection(connection)
