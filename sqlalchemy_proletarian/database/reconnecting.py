"""A connection that a worker keeps open as long as it runs, and reopens when it is lost."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import ClassVar

from sqlalchemy import Connection, Engine

from ..runtime.doorbell import Backoff
from ..runtime.threads import Waiting
from ..telemetry.events import Events
from .connections import let_go, own_connection, sever

PROOF_OF_LIFE = 60.0
"""Seconds after which an idle connection is checked with a query."""

_STEADY = 1.0
"""Seconds. A connection that was open for longer is reopened without a pause when it is lost,
because it may show other workers that this one is alive."""

_PARTING = 1.0
"""Seconds to wait until the connection is closed."""


class Standing:
    """Keeps a connection open; subclasses define what it is used for.

    ``active`` says whether the connection is open and in use.

    :param name: the name of the connection on the server.
    """

    LOST: ClassVar[str]
    """The event that reports the loss of the connection."""

    def __init__(self, engine: Engine, name: str, events: Events, waiting: Waiting) -> None:
        self._engine = engine
        self._name = name
        self._events = events
        self._waiting = waiting
        self._stopping = waiting.flag()
        self._backoff = Backoff(self._stopping)
        self._ended = waiting.flag()
        self._connection: Connection | None = None
        self._lost = False
        self._since = monotonic()
        self.active = False

    def start(self) -> None:
        """Open the connection in another thread or task."""
        self._waiting.spawn(self._stand, self._name)

    def stop(self) -> None:
        """Close the connection, and wait until it is closed."""
        self._stopping.set()
        if self._connection is not None:
            sever(self._connection, busy=False)
        self._ended.wait(_PARTING)

    def _serve(self, connection: Connection) -> None:
        """Use the connection until it is lost; call :meth:`_stands` when it is ready."""
        raise NotImplementedError

    def _stands(self) -> None:
        self.active, self._lost, self._since = True, False, monotonic()
        self._backoff.reset()

    def _fell(self, error: Exception) -> None:
        """Report that the connection was lost."""
        self._events.emit(self.LOST, error)

    def _stand(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    with self._connected() as connection:
                        self._serve(connection)
                except Exception as error:
                    if self._waiting.ending():
                        return
                    if not self._lost and not self._stopping.is_set():
                        self._fell(error)
                    if self._lost or monotonic() - self._since < _STEADY:
                        self._backoff.pause()
                    self._lost = True
        finally:
            self._ended.set()

    @contextmanager
    def _connected(self) -> Generator[Connection]:
        connection = own_connection(self._engine, self._name, isolation_level="AUTOCOMMIT")
        try:
            self._connection = connection
            connection.begin()  # so that closing a lost connection raises here, and logs nothing
            if self._stopping.is_set():  # before the connection could be closed by stop()
                raise _StoppedError
            yield connection
        finally:
            self.active = False
            self._connection = None
            if self._stopping.is_set():  # closed by stop(), which does not concern the pool
                with suppress(Exception):
                    connection.invalidate()
            let_go(connection)


class _StoppedError(Exception):
    """The connection was stopped before it was ready."""
