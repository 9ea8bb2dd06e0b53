"""That a worker lives, shown to others where the server does not say whose a connection is.

PostgreSQL shows everybody the names of all connections. MySQL and MariaDB show them to few; but
anybody may ask whether a named lock is held, and it is let go of when the connection ends that
holds it. So a worker has a connection that holds the lock of its name, and does nothing else: it is
noticed at once when that one is cut, whatever handlers do, and the lock is taken again.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, Connection, Engine, func, literal, select

from . import keepalive
from .dialects import driver_connection
from .events import Events
from .standing import PROOF_OF_LIFE, Standing
from .waiting import Waiting

_PREFIX: Final = "proletarian:"
_LONGEST: Final = 64
"""Characters that the name of a lock may have; see :data:`.MAX_IDENTITY`."""

_UNTIL_IT_IS_FREE: Final = 5
"""Seconds for which the server is asked for the lock, that a lost connection of ours may hold."""

_SHOWN_WITHIN: Final = 1.0
"""Seconds that a worker which starts waits for it: it works all the same."""

_GLANCE: Final = 1.0
"""Seconds between looks at a connection whose driver does not show its line."""


def lock_of(worker: ColumnElement[str]) -> ColumnElement[str]:
    """Return the name of the lock that a worker holds while it lives."""
    return func.left(func.concat(_PREFIX, worker), _LONGEST)


def is_present(worker: ColumnElement[str]) -> ColumnElement[bool]:
    """Tell whether a worker lives."""
    return func.is_used_lock(lock_of(worker)).is_not(None)


class Presence(Standing):
    """Shows that one worker lives.

    :param name: the worker's identity.
    """

    LOST = "presence-lost"

    def __init__(self, engine: Engine, name: str, events: Events, waiting: Waiting) -> None:
        super().__init__(engine, name, events, waiting)
        self._lock = waiting.lock()
        self._started = False
        self._shown = waiting.flag()
        self._take = select(func.get_lock(lock_of(literal(name)), _UNTIL_IT_IS_FREE))

    def show(self) -> None:
        """Begin to, unless it has begun; then wait until it can be seen, but not for long."""
        with self._lock:
            if not self._started:
                self._started = True
                self.start()
        self._shown.wait(_SHOWN_WITHIN)

    def stop(self) -> None:
        """Show it no longer."""
        if self._started:
            super().stop()

    def _serve(self, connection: Connection) -> None:
        while not connection.scalar(self._take):
            pass
        self._stands()
        self._shown.set()
        with keepalive.line_of(driver_connection(connection)) as line:
            while True:
                # The server has nothing to say, unless it is that the connection ends.
                if line is None:  # pragma: no cover - of no driver that the tests have
                    self._stopping.wait(_GLANCE)
                else:
                    self._waiting.readable(line, PROOF_OF_LIFE)
                connection.exec_driver_sql("SELECT 1")
