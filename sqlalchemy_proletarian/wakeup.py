"""How idle threads wait: for a ring, for the next due job, or for the polling interval.

A :class:`Doorbell` is rung by this process's own commits (:mod:`.announce`) and by a
:class:`Listener`, which holds a connection that LISTENs for the commits of others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from threading import Condition, Event, Thread

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from .connect import driver_connection, own_connection, sever
from .events import Events

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between attempts to do again what the database refused, doubled each time."""

PROOF_OF_LIFE = 60.0
"""Seconds of silence after which the listening connection is asked whether it still lives."""


class Doorbell:
    """Wakes threads that wait for work, one a ring; a ring while nobody waits is not lost.

    A thread takes the count of rings before it looks for work, and waits for a later one.
    """

    def __init__(self) -> None:
        self._condition = Condition()
        self._rings = 0

    def rings(self) -> int:
        """Return how often it rang."""
        return self._rings

    def ring(self, *, everybody: bool = False) -> None:
        """Wake one waiting thread, or all of them."""
        with self._condition:
            self._rings += 1
            if everybody:
                self._condition.notify_all()
            else:
                self._condition.notify()

    def wait(self, heard: int, seconds: float | None = None) -> None:
        """Wait until it rang more than ``heard`` times, at most ``seconds``."""
        with self._condition:
            self._condition.wait_for(lambda: self._rings > heard, timeout=seconds)


class Backoff:
    """Growing pauses between attempts, until one succeeds.

    :param stopping: ends a pause when it is set.
    """

    def __init__(self, stopping: Event) -> None:
        self._stopping = stopping
        self._seconds = FIRST_PAUSE

    def reset(self) -> None:
        """Note that an attempt succeeded: the next pause is a short one."""
        self._seconds = FIRST_PAUSE

    def pause(self) -> None:
        """Wait before the next attempt."""
        self._stopping.wait(self._seconds)
        self._seconds = min(2 * self._seconds, LONGEST_PAUSE)


class Listener:
    """Rings a doorbell when another process commits jobs for one of the queues.

    Where the driver cannot listen, or while the connection is lost, ``active`` is False and the
    worker polls.

    :param channel: the channel of the job table, see :func:`.announce.channel_of`.
    :param ring: called from the listener's thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        channel: str,
        queues: tuple[str, ...],
        name: str,
        events: Events,
        ring: Callable[[], object],
    ) -> None:
        self._engine = engine
        self._channel = channel
        self._queues = frozenset(queues)
        self._name = name
        self._events = events
        self._ring = ring
        self._stopping = Event()
        self._connection: Connection | None = None
        self._thread: Thread | None = None
        self.active = False

    @staticmethod
    def supports(engine: Engine) -> bool:
        """Tell whether the engine's driver can wait for notifications."""
        return engine.dialect.name == "postgresql" and engine.dialect.driver == "psycopg"

    def start(self) -> None:
        """Listen in a thread of its own."""
        self._thread = Thread(target=self._listen, name=f"{self._name}-listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; wait for the thread."""
        self._stopping.set()
        if self._connection is not None:
            sever(self._connection)
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _listen(self) -> None:
        backoff = Backoff(self._stopping)
        lost = False
        while not self._stopping.is_set():
            try:
                with self._listening() as connection:
                    backoff.reset()
                    lost = False
                    self._ring()  # for what was committed while nobody listened
                    self._hear(connection)
            except Exception as error:
                if not lost and not self._stopping.is_set():
                    self._events.emit("listening-lost", error)
                lost = True
                backoff.pause()

    def _hear(self, connection: Connection) -> None:
        driver = driver_connection(connection)
        while not self._stopping.is_set():
            for notification in driver.notifies(timeout=PROOF_OF_LIFE):
                if notification.payload in self._queues:
                    self._ring()
            connection.execute(text("SELECT 1"))

    @contextmanager
    def _listening(self) -> Generator[Connection]:
        connection = own_connection(
            self._engine, f"{self._name} listening", isolation_level="AUTOCOMMIT"
        )
        try:
            self._connection = connection
            quote = connection.dialect.identifier_preparer.quote_identifier
            connection.execute(text(f"LISTEN {quote(self._channel)}"))
            self.active = True
            yield connection
        finally:
            self.active = False
            self._connection = None
            with suppress(DBAPIError):
                connection.close()
