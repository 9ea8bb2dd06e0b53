"""Showing other workers that a worker is alive, on MySQL and MariaDB.

A worker has a connection that holds a named lock, see :mod:`..database.named_locks`, and does
nothing else. The worker notices at once when that connection is lost, whatever its handlers do, and
takes the lock again.

A host that vanishes closes no connection. So the server is told to end the connection after some
seconds without a statement, and the worker sends one every few seconds. That statement looks for
workers that left markers and are gone, and their orphaned transactions are ended.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Final

from sqlalchemy import Connection, Engine, func, literal, select
from sqlalchemy.exc import DBAPIError

from ..database import keepalive, mysql_wait_timeout
from ..database.connections import is_lost
from ..database.dialects import driver_connection
from ..database.named_locks import worker_lock
from ..database.reconnecting import ReconnectingConnection
from ..runtime.backoff import Backoff
from ..runtime.base import Runtime
from ..telemetry.events import Events
from .orphans import Orphans

_WAIT_FOR_LOCK: Final = 5
"""Seconds for which one statement waits for the lock, which a lost connection may still hold."""

_WAIT_FOR_START: Final = 1.0
"""Seconds that a worker which starts waits until it holds the lock. It works without it, too."""

_HEARTBEAT: Final = 2.0
"""Seconds between two statements."""

_POLL_STOP: Final = 1.0
"""Seconds between two checks for the end, if the driver does not expose its socket."""


class Presence(ReconnectingConnection):
    """Holds the lock that shows that one worker is alive.

    :param name: the identity of the worker.
    :param orphans: finds and ends the orphaned transactions of other workers.
    """

    LOST: ClassVar[str] = "presence-lost"

    def __init__(
        self,
        engine: Engine,
        name: str,
        events: Events,
        runtime: Runtime,
        orphans: Orphans,
    ) -> None:
        super().__init__(engine, name, events, runtime)
        self._lock = runtime.lock()
        self._started = False
        self._shown = runtime.flag()
        self._worker_runtime = runtime
        self._orphans = orphans
        self._take = select(func.get_lock(worker_lock(literal(name)), _WAIT_FOR_LOCK))

    def show(self) -> None:
        """Start, unless it has started; then wait a short time until the lock is held."""
        with self._lock:
            if not self._started:
                self._started = True
                self.start()
        self._shown.wait(_WAIT_FOR_START)

    def start(self) -> None:
        """Start where handlers that block the event loop cannot block it."""
        self._runtime.spawn_isolated(self._run_isolated, self._name, self._ended.set)

    def stop(self) -> None:
        """Release the lock."""
        if self._started:
            super().stop()

    def _run_isolated(self, runtime: Runtime) -> None:
        requested, self._stopping = self._stopping, runtime.flag()
        if requested.is_set():  # it is set on the new flag from now on
            self._stopping.set()
        self._runtime, self._backoff = runtime, Backoff(self._stopping)
        self._run()

    def _serve(self, connection: Connection) -> None:
        mysql_wait_timeout.limit(connection)
        while not connection.scalar(self._take):
            pass
        self._is_serving()
        self._shown.set()
        self._orphans.forget()
        with keepalive.socket_of(driver_connection(connection)) as sock:
            while True:
                # The server sends nothing, except that it ends the connection.
                if sock is None:  # pragma: no cover - no driver that the tests use
                    self._stopping.wait(_POLL_STOP)
                else:
                    self._runtime.wait_readable(sock, _HEARTBEAT)
                if self._stopping.is_set():
                    return
                self._end_orphans(connection)

    def _end_orphans(self, connection: Connection) -> None:
        try:
            for worker, job_id, refused in self._orphans.end(connection):
                about = {"worker_vanished": worker, "job_id": job_id}
                report = partial(self._events.emit, "worker-vanished", refused, **about)
                self._worker_runtime.call_soon(report)
        except DBAPIError as error:
            if is_lost(error):
                raise
            # The lock is still held. Other code reports problems of the tables.

    def _report_loss(self, error: Exception) -> None:
        self._worker_runtime.call_soon(partial(super()._report_loss, error))
