"""Receives notifications of other processes: LISTEN, on a separate connection, for each driver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from sqlalchemy import Connection, Dialect, Engine

from ..database.connections import LISTENING
from ..database.dialects import database_of, driver_connection
from ..database.reconnecting import PROOF_OF_LIFE, ReconnectingConnection
from ..runtime.base import Runtime
from ..telemetry.events import Events


class Listener(ReconnectingConnection):
    """Calls ``heard(channel, payload)`` for each notification of another process.

    If the driver cannot listen, or while the connection is lost, ``active`` is False and the worker
    polls.

    :param channels: the channels to LISTEN to.
    :param heard: called concurrently with the other work of the worker. It is also called with each
        channel and None when listening begins, because earlier notifications were missed, and when
        the connection is lost.
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
        heard: Callable[[str, str | None], object],
    ) -> None:
        super().__init__(engine, name + LISTENING, events, runtime)
        self._channels = channels
        self._heard = heard

    @staticmethod
    def supports(engine: Engine) -> bool:
        """Return whether the engine's driver can wait for notifications."""
        return database_of(engine.dialect).announces and _way(engine.dialect) in _HEAR

    def _serve(self, connection: Connection) -> None:
        hear = _HEAR[_way(connection.dialect)]
        hear(driver_connection(connection), self._channels, self._is_serving, self._heard)

    def _is_serving(self) -> None:
        super()._is_serving()
        self._tell_all()

    def _report_loss(self, error: Exception) -> None:
        super()._report_loss(error)
        self._tell_all()

    def _tell_all(self) -> None:
        for channel in self._channels:
            self._heard(channel, None)


def _way(dialect: Dialect) -> tuple[str, bool]:
    return dialect.driver, dialect.is_async


# One function per driver, which listens until the connection is lost. It calls ``listening`` when
# LISTEN has succeeded, and ``heard`` with the channel and the payload of each notification.


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
        msg = "the listening connection was closed"
        raise ConnectionError(msg)

    await_(hear())


_HEAR = {
    ("psycopg", False): _hear_psycopg,
    ("psycopg", True): _hear_psycopg_async,
    ("asyncpg", True): _hear_asyncpg,
}
