"""Hearing of the commits of others: LISTEN, on a connection of its own, as each driver does it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Dialect, Engine

from .connect import LISTENING, let_go, own_connection, sever
from .dialects import driver_connection
from .events import Events
from .waiting import Waiting
from .wakeup import Backoff

PROOF_OF_LIFE = 60.0
"""Seconds of silence after which the listening connection is asked whether it still lives."""

_STEADY = 1.0
"""Seconds after which a lost connection is made again at once: it shows that the worker lives."""

_PARTING = 1.0
"""Seconds to wait for the listener's end."""


class Listener:
    """Calls ``heard(channel, payload)`` when another process sends a notification.

    Where the driver cannot listen, or while the connection is lost, ``active`` is False and the
    worker polls.

    :param channels: what to LISTEN to.
    :param heard: called beside everything else that the worker does; also with a channel and None
        when listening begins, for what was sent while nobody listened, and when it is lost, for
        whoever relies on it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        channels: tuple[str, ...],
        name: str,
        events: Events,
        waiting: Waiting,
        heard: Callable[[str, str | None], object],
    ) -> None:
        self._engine = engine
        self._channels = channels
        self._name = name
        self._events = events
        self._waiting = waiting
        self._heard = heard
        self._stopping = waiting.flag()
        self._ended = waiting.flag()
        self._connection: Connection | None = None
        self.active = False

    @staticmethod
    def supports(engine: Engine) -> bool:
        """Tell whether the engine's driver can wait for notifications."""
        return engine.dialect.name == "postgresql" and _way(engine.dialect) in _HEAR

    def start(self) -> None:
        """Listen beside the caller."""
        self._waiting.spawn(self._listen, f"{self._name}-listener")

    def stop(self) -> None:
        """Stop listening, and wait until that is so."""
        self._stopping.set()
        if self._connection is not None:
            sever(self._connection, busy=False)
        self._ended.wait(_PARTING)

    def _listen(self) -> None:
        backoff = Backoff(self._stopping)
        lost = False
        since = monotonic()

        def listening() -> None:
            nonlocal lost, since
            self.active, lost, since = True, False, monotonic()
            backoff.reset()
            self._tell_all()

        try:
            while not self._stopping.is_set():
                try:
                    with self._connected() as connection:
                        hear = _HEAR[_way(connection.dialect)]
                        hear(driver_connection(connection), self._channels, listening, self._heard)
                except Exception as error:
                    if self._waiting.ending():
                        return
                    if not lost and not self._stopping.is_set():
                        self._events.emit("listening-lost", error)
                        self._tell_all()
                    if lost or monotonic() - since < _STEADY:
                        backoff.pause()
                    lost = True
        finally:
            self._ended.set()

    def _tell_all(self) -> None:
        for channel in self._channels:
            self._heard(channel, None)

    @contextmanager
    def _connected(self) -> Generator[Connection]:
        connection = own_connection(
            self._engine, self._name + LISTENING, isolation_level="AUTOCOMMIT"
        )
        try:
            self._connection = connection
            connection.begin()  # so that closing a lost connection raises here, and logs nothing
            if self._stopping.is_set():  # asked before it could be cut off
                raise _StoppedError
            yield connection
        finally:
            self.active = False
            self._connection = None
            let_go(connection)


class _StoppedError(Exception):
    """The listener was stopped before it began to listen."""


def _way(dialect: Dialect) -> tuple[str, bool]:
    return dialect.driver, dialect.is_async


# How each driver listens: for ever, until the connection is lost. ``listening`` is called once it
# does, ``heard`` with the channel and the payload of each notification.


def _hear_psycopg(
    driver: Any,
    channels: tuple[str, ...],
    listening: Callable[[], object],
    heard: Callable[[str, str | None], object],
) -> None:
    from psycopg.sql import SQL, Identifier

    for channel in channels:
        driver.execute(SQL("LISTEN {}").format(Identifier(channel)))
    listening()
    while True:
        for notification in driver.notifies(timeout=PROOF_OF_LIFE):
            heard(notification.channel, notification.payload)
        driver.execute("SELECT 1")


def _hear_psycopg_async(
    driver: Any,
    channels: tuple[str, ...],
    listening: Callable[[], object],
    heard: Callable[[str, str | None], object],
) -> None:
    from psycopg.sql import SQL, Identifier
    from sqlalchemy.util import await_

    async def hear() -> None:
        for channel in channels:
            await driver.execute(SQL("LISTEN {}").format(Identifier(channel)))
        listening()
        while True:
            async for notification in driver.notifies(timeout=PROOF_OF_LIFE):
                heard(notification.channel, notification.payload)
            await driver.execute("SELECT 1")

    await_(hear())


def _hear_asyncpg(
    driver: Any,
    channels: tuple[str, ...],
    listening: Callable[[], object],
    heard: Callable[[str, str | None], object],
) -> None:
    import asyncio

    from sqlalchemy.util import await_

    async def hear() -> None:
        lost = asyncio.Event()
        driver.add_termination_listener(lambda _driver: lost.set())
        for channel in channels:
            await driver.add_listener(
                channel, lambda _driver, _pid, channel, payload: heard(channel, payload)
            )
        listening()
        while not lost.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(lost.wait(), PROOF_OF_LIFE)
            if not lost.is_set():
                await driver.execute("SELECT 1")
        msg = "the connection that listens was closed"
        raise ConnectionError(msg)

    await_(hear())


_HEAR = {
    ("psycopg", False): _hear_psycopg,
    ("psycopg", True): _hear_psycopg_async,
    ("asyncpg", True): _hear_asyncpg,
}
