"""That a worker lives, shown to others where the server does not say whose a connection is.

PostgreSQL shows everybody the names of all connections. MySQL and MariaDB show them to few; but
anybody may ask whether a named lock is held, and it is let go of when the connection ends that
holds it. So a worker has a connection that holds the lock of its name, and does nothing else: it is
noticed at once when that one is cut, whatever handlers do, and the lock is taken again.

A host that vanishes cuts nothing. So the server is told to end the connection when nothing is said
on it for some seconds, and the worker says something every few. It asks which workers have left
markers and are gone, and ends what these have left open.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from sqlalchemy import Connection, Engine, func, literal, select
from sqlalchemy.exc import DBAPIError

from ..database import keepalive
from ..database import mysql_wait_timeout as silence
from ..database.connections import is_lost
from ..database.dialects import driver_connection
from ..database.named_locks import worker_lock
from ..database.reconnecting import Standing
from ..runtime.doorbell import Backoff
from ..runtime.threads import Waiting
from ..telemetry.events import Events
from .orphans import Orphans

_UNTIL_IT_IS_FREE: Final = 5
"""Seconds for which the server is asked for the lock, that a lost connection of ours may hold."""

_SHOWN_WITHIN: Final = 1.0
"""Seconds that a worker which starts waits for it: it works all the same."""

_BEAT: Final = 2.0
"""Seconds between two signs of life."""

_GLANCE: Final = 1.0
"""Seconds between looks at a connection whose driver does not show its line."""


class Presence(Standing):
    """Shows that one worker lives.

    :param name: the worker's identity.
    :param orphans: which it looks after.
    """

    LOST = "presence-lost"

    def __init__(
        self,
        engine: Engine,
        name: str,
        events: Events,
        waiting: Waiting,
        orphans: Orphans,
    ) -> None:
        super().__init__(engine, name, events, waiting)
        self._lock = waiting.lock()
        self._started = False
        self._shown = waiting.flag()
        self._at_home = waiting
        self._orphans = orphans
        self._take = select(func.get_lock(worker_lock(literal(name)), _UNTIL_IT_IS_FREE))

    def show(self) -> None:
        """Begin to, unless it has begun; then wait until it can be seen, but not for long."""
        with self._lock:
            if not self._started:
                self._started = True
                self.start()
        self._shown.wait(_SHOWN_WITHIN)

    def start(self) -> None:
        """Stand, whatever the caller's handlers do to their event loop."""
        self._waiting.apart(self._stand_apart, self._name)

    def stop(self) -> None:
        """Show it no longer."""
        if self._started:
            super().stop()

    def _stand_apart(self, waiting: Waiting) -> None:
        asked, self._stopping = self._stopping, waiting.flag()
        if asked.is_set():  # whoever sets it from now on, sets ours
            self._stopping.set()
        self._waiting, self._backoff = waiting, Backoff(self._stopping)
        self._stand()

    def _serve(self, connection: Connection) -> None:
        silence.limit(connection)
        while not connection.scalar(self._take):
            pass
        self._stands()
        self._shown.set()
        self._orphans.forget()
        with keepalive.line_of(driver_connection(connection)) as line:
            while True:
                # The server has nothing to say, unless it is that the connection ends.
                if line is None:  # pragma: no cover - of no driver that the tests have
                    self._stopping.wait(_GLANCE)
                else:
                    self._waiting.readable(line, _BEAT)
                if self._stopping.is_set():
                    return
                self._look_after_others(connection)

    def _look_after_others(self, connection: Connection) -> None:
        try:
            for worker, job_id, refused in self._orphans.end(connection):
                about = {"worker_vanished": worker, "job_id": job_id}
                self._at_home.tell(partial(self._events.emit, "worker-vanished", refused, **about))
        except DBAPIError as error:
            if is_lost(error):
                raise
            # It lives all the same; what is wrong with the tables those say who need them.

    def _fell(self, error: Exception) -> None:
        self._at_home.tell(partial(super()._fell, error))
