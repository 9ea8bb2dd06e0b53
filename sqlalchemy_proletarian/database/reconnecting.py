"""A connection that a worker keeps while it works, and opens again whenever it is lost."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import ClassVar, Final

from sqlalchemy import Connection, Engine

from ..runtime.backoff import Backoff
from ..runtime.base import GRACE_PERIOD, Runtime
from ..telemetry.events import Events
from .connections import close_own_connection, own_connection, sever

PROOF_OF_LIFE: Final = 60.0
"""Seconds without a message after which a statement checks that the connection is alive."""

_STEADY: Final = 1.0
"""A connection that served for so many seconds is opened again at once when it is lost."""


class ReconnectingConnection:
    """The base of services that need a connection all the time.

    ``active`` is whether the connection serves.

    :param name: the name of the connection on the server.
    """

    LOST: ClassVar[str]
    """The event that reports its loss."""

    def __init__(self, engine: Engine, name: str, events: Events, runtime: Runtime) -> None:
        self._engine = engine
        self._name = name
        self._events = events
        self._runtime = runtime
        self._stopping = runtime.flag()
        self._backoff = Backoff(self._stopping)
        self._ended = runtime.flag()
        self._connection: Connection | None = None
        self._lost = False
        self._since = monotonic()
        self.active: bool = False

    def start(self) -> None:
        """Open the connection and serve, concurrently with the caller."""
        self._runtime.spawn(self._run_and_end, self._name)

    def stop(self) -> None:
        """Close the connection, and wait until it is closed."""
        self._stopping.set()
        if self._connection is not None:
            sever(self._connection, busy=False)
        self._ended.wait(GRACE_PERIOD)

    def _serve(self, connection: Connection) -> None:
        """Use the connection until it is lost; call :meth:`_is_serving` when it serves."""
        raise NotImplementedError

    def _is_serving(self) -> None:
        self.active, self._lost, self._since = True, False, monotonic()
        self._backoff.reset()

    def _report_loss(self, error: Exception) -> None:
        """Report that the connection was lost."""
        self._events.emit(self.LOST, error)

    def _run_and_end(self) -> None:
        try:
            self._run()
        finally:
            self._ended.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._connected() as connection:
                    self._serve(connection)
            except Exception as error:
                if self._runtime.is_cancelled():
                    return
                if not self._lost and not self._stopping.is_set():
                    self._report_loss(error)
                if self._lost or monotonic() - self._since < _STEADY:
                    self._backoff.pause()
                self._lost = True

    @contextmanager
    def _connected(self) -> Generator[Connection]:
        connection = own_connection(self._engine, self._name, isolation_level="AUTOCOMMIT")
        try:
            self._connection = connection
            connection.begin()  # closing a lost connection then raises, instead of logging
            if self._stopping.is_set():  # requested before the connection could be severed
                raise _StoppedError
            yield connection
        finally:
            self.active = False
            self._connection = None
            if self._stopping.is_set():  # it was severed: do not report that to the pool
                with suppress(Exception):
                    connection.invalidate()
            close_own_connection(connection)


class _StoppedError(Exception):
    """The service was stopped before it began."""
