"""The service of a worker that enqueues the ticks of recurring jobs.

There is no leader: the service of every worker looks for due ticks, and locks decide who enqueues
which. It runs beside the members of the worker, so a tick does not wait for a handler.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from ..database.connections import close_own_connection, own_connection
from ..database.error_codes import is_undone
from ..database.server_clock import SharedClock
from ..models.preflight import check_tables
from ..runtime.backoff import Backoff
from ..runtime.base import GRACE_PERIOD, Flag, Runtime
from ..store.recurring import RecurringTable
from ..telemetry.events import Events
from .agreement import Agreement
from .ticks import TickError, Ticks

SUFFIX: Final = " recurring"
"""The suffix of the name of the service's connection."""

_LOCKED_PAUSE: Final = 0.05
"""Seconds until another look at a row that another transaction has locked. Each pause is twice as
long as the one before, up to the polling interval."""


class RecurringService:
    """Enqueues due ticks from the start of a worker until it stops.

    :param stopping: set when the worker stops.
    :param clock: the clock that all workers share.
    :param polling_interval: the longest time, in seconds, between two looks at the table.
    :param enqueued: called after a commit with new jobs.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        table: RecurringTable,
        ticks: Ticks,
        agreement: Agreement,
        events: Events,
        runtime: Runtime,
        stopping: Flag,
        identity: str,
        clock: SharedClock,
        polling_interval: float,
        enqueued: Callable[[], object],
    ) -> None:
        self._engine = engine
        self._table = table
        self._ticks = ticks
        self._agreement = agreement
        self._events = events
        self._runtime = runtime
        self._stopping = stopping
        self._identity = identity
        self._clock = clock
        self._polling_interval = polling_interval
        self._enqueued = enqueued
        self._started = False
        self._ended = runtime.flag()
        self._reported: set[str] = set()
        self._locked_pause = _LOCKED_PAUSE

    def start(self) -> None:
        """Start, concurrently with the caller."""
        self._started = True
        self._runtime.spawn(self._run, self._identity + SUFFIX)

    def stop(self) -> None:
        """Wait a short time until it has ended; ``stopping`` is set."""
        if self._started:
            self._ended.wait(GRACE_PERIOD)

    def run_once(self) -> None:
        """Enqueue what is due, and return."""
        connection = self._connect()
        try:
            self._round(connection)
        finally:
            close_own_connection(connection)

    def _run(self) -> None:
        backoff = Backoff(self._stopping)
        try:
            while not self._stopping.is_set():
                try:
                    self._serve(backoff)
                except Exception as error:
                    if self._runtime.is_cancelled():
                        return
                    if not self._stopping.is_set():
                        self._events.emit("polling-error", error)
                        backoff.pause()
        finally:
            self._ended.set()

    def _serve(self, backoff: Backoff) -> None:
        connection = self._connect()
        try:
            while not (self._stopping.is_set() or connection.invalidated):
                seconds = self._round(connection)
                backoff.reset()
                self._stopping.wait(seconds)
        finally:
            close_own_connection(connection)

    def _connect(self) -> Connection:
        connection = own_connection(self._engine, self._identity + SUFFIX)
        try:
            self._clock.check(connection, at_once=True)
            with connection.begin():
                check_tables(connection, self._table.uses)
        except BaseException:
            close_own_connection(connection)
            raise
        return connection

    def _round(self, connection: Connection) -> float:
        """Enqueue what is due; return how many seconds to wait."""
        self._clock.check(connection)
        try:
            self._agreement.check(connection, self._clock())
        except DBAPIError as error:
            if not is_undone(error):
                raise
            return _LOCKED_PAUSE  # on another node of a cluster, a worker was faster
        failed: set[str] = set()
        while not self._stopping.is_set():
            now = self._clock()
            with connection.begin():
                next_at = self._table.next_at(connection, now)
            if next_at is None or next_at > now:
                self._reported &= failed
                self._locked_pause = _LOCKED_PAUSE
            if next_at is None:
                return self._polling_interval
            if next_at > now:
                wait = (next_at - now).total_seconds()
                return min(wait, self._polling_interval)
            if not self._tick(connection, now, failed):
                break
            self._locked_pause = _LOCKED_PAUSE
        self._reported &= failed
        if failed:
            return self._polling_interval
        pause = min(self._locked_pause, self._polling_interval)
        self._locked_pause = 2 * pause
        return pause

    def _tick(self, connection: Connection, now: datetime, failed: set[str]) -> bool:
        """Enqueue what is due of one recurring job; return whether there was one."""
        try:
            ticked = self._ticks.run_one(connection, now, failed)
        except TickError as error:
            failed.add(error.name)
            if error.name not in self._reported:
                self._reported.add(error.name)
                self._events.emit("recurring-error", error.__cause__, recurring=error.name)
            return True
        if ticked is None:
            return False
        for tick, job_id in ticked.enqueued:
            self._events.emit("recurring-enqueued", recurring=ticked.name, tick=tick, job_id=job_id)
        if ticked.enqueued:
            self._enqueued()
        return True
