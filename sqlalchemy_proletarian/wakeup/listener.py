"""Receives notifications of other processes: LISTEN, on a separate connection, for each driver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import Connection, Dialect, Engine

from ..database.connections import LISTENING
from ..database.dialects import database_of, driver_connection
from ..database.poolers import require_session
from ..database.reconnecting import PROOF_OF_LIFE, ReconnectingConnection
from ..runtime.base import Runtime
from ..telemetry.events import Events


class Listener(ReconnectingConnection):
    """Calls ``receive(channel, payload)`` for each notification of another process.

    If the driver cannot listen, or while the connection is lost, ``active`` is False and the worker
    polls.

    :param channels: the channels to LISTEN to.
    :param receive: called concurrently with the other work of the worker. It is also called with
        each channel and None when listening begins, because earlier notifications were missed,
        and when the connection is lost.
    """

    LOST: ClassVar[str] = "listening-lost"

    def __init__(
        self,
        engine: Engine,
        *,
        channels: tuple[str, ...],
        name: str,
        events: Events,
        runtime: Runtime,
        receive: Callable[[str, str | None], object],
    ) -> None:
        super().__init__(engine, name + LISTENING, events, runtime)
        self._channels = channels
        self._receive = receive

    @staticmethod
    def supports(engine: Engine) -> bool:
        """Return whether the engine's driver can wait for notifications."""
        return database_of(engine.dialect).notifies and _driver_of(engine.dialect) in _RECEIVERS

    def _serve(self, connection: Connection) -> None:
        require_session(connection, "LISTEN")
        listen = _RECEIVERS[_driver_of(connection.dialect)]
        driver = driver_connection(connection)
        listen(_Subscription(driver, self._channels, self._is_serving, self._receive))

    def _is_serving(self) -> None:
        super()._is_serving()
        self._receive_nothing()

    def _report_loss(self, error: Exception) -> None:
        super()._report_loss(error)
        self._receive_nothing()

    def _receive_nothing(self) -> None:
        for channel in self._channels:
            self._receive(channel, None)


def _driver_of(dialect: Dialect) -> tuple[str, bool]:
    return dialect.driver, dialect.is_async


class _Subscription(NamedTuple):
    """What to receive on one connection."""

    driver: Any
    channels: tuple[str, ...]
    on_listening: Callable[[], object]
    """Called when LISTEN has succeeded."""
    receive: Callable[[str, str | None], object]
    """Called with the channel and the payload of each notification."""


# One function per driver, which listens until the connection is lost.


def _receive_psycopg(wanted: _Subscription) -> None:
    from psycopg.sql import SQL, Identifier

    for channel in wanted.channels:
        wanted.driver.execute(SQL("LISTEN {}").format(Identifier(channel)))
    wanted.on_listening()
    while True:
        for notification in wanted.driver.notifies(timeout=PROOF_OF_LIFE):
            wanted.receive(notification.channel, notification.payload)
        wanted.driver.execute("SELECT 1")


def _receive_psycopg_async(wanted: _Subscription) -> None:
    from psycopg.sql import SQL, Identifier
    from sqlalchemy.util import await_

    async def receive() -> None:
        for channel in wanted.channels:
            await wanted.driver.execute(SQL("LISTEN {}").format(Identifier(channel)))
        wanted.on_listening()
        while True:
            async for notification in wanted.driver.notifies(timeout=PROOF_OF_LIFE):
                wanted.receive(notification.channel, notification.payload)
            await wanted.driver.execute("SELECT 1")

    await_(receive())


def _receive_asyncpg(wanted: _Subscription) -> None:
    import asyncio

    from sqlalchemy.util import await_

    async def receive() -> None:
        lost = asyncio.Event()
        wanted.driver.add_termination_listener(lambda _driver: lost.set())
        for channel in wanted.channels:
            await wanted.driver.add_listener(
                channel, lambda _driver, _pid, channel, payload: wanted.receive(channel, payload)
            )
        wanted.on_listening()
        while not lost.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(lost.wait(), PROOF_OF_LIFE)
            if not lost.is_set():
                await wanted.driver.execute("SELECT 1")
        msg = "the listening connection was closed"
        raise ConnectionError(msg)

    await_(receive())


_RECEIVERS = {
    ("psycopg", False): _receive_psycopg,
    ("psycopg", True): _receive_psycopg_async,
    ("asyncpg", True): _receive_asyncpg,
}
