"""A connection that a worker keeps as long as it works, and makes again whenever it is lost."""

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
"""Seconds of silence after which the connection is asked whether it still lives."""

_STEADY = 1.0
"""Seconds after which a lost connection is made again at once: it shows that the worker lives."""

_PARTING = 1.0
"""Seconds to wait for its end."""


class Standing:
    """What it is for stands in subclasses; ``active`` tells whether it serves.

    :param name: what the server calls the connection.
    """

    LOST: ClassVar[str]
    """The event that tells of its loss."""

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
        """Stand, beside the caller."""
        self._waiting.spawn(self._stand, self._name)

    def stop(self) -> None:
        """Let the connection go, and wait until that is so."""
        self._stopping.set()
        if self._connection is not None:
            sever(self._connection, busy=False)
        self._ended.wait(_PARTING)

    def _serve(self, connection: Connection) -> None:
        """Use the connection until it is lost; say :meth:`_stands` when it serves."""
        raise NotImplementedError

    def _stands(self) -> None:
        self.active, self._lost, self._since = True, False, monotonic()
        self._backoff.reset()

    def _fell(self, error: Exception) -> None:
        """Note that it was lost."""
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
            if self._stopping.is_set():  # asked before it could be cut off
                raise _StoppedError
            yield connection
        finally:
            self.active = False
            self._connection = None
            if self._stopping.is_set():  # it was cut, which is no loss that concerns a pool
                with suppress(Exception):
                    connection.invalidate()
            let_go(connection)


class _StoppedError(Exception):
    """It was stopped before it began."""
