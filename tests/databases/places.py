"""The combinations of database, driver and mode that the suite runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Engine, String, event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_proletarian import QueueWorker
from tests.integration.kinds import LEASE, Runs, WorkerInALoop

WITHOUT_SCHEMA = {"schema_translate_map": {"proletarian": None}}
"""The execution options of an engine on SQLite."""


class Shelf(DeclarativeBase):
    """The declarative base of the application's tables."""


class Note(Shelf):
    """A row that handlers write."""

    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(100))


@dataclass(frozen=True)
class Place(Runs):
    """A database, the drivers for it, and the mode of the worker.

    :param server: the name of the server, or "sqlite", or "portable": PostgreSQL, of which only
        that is used which compatible databases have in common.
    :param driver: the driver of the test's own engine, and of a worker with threads.
    :param in_a_loop: the driver of a worker in an event loop, or None for a worker with threads.
    :param leased: whether the worker runs in lease mode.
    """

    server: str
    driver: str
    in_a_loop: str | None = None
    leased: bool = False

    def worker(self, engine: Engine, handlers: Any, **options: Any) -> QueueWorker | WorkerInALoop:
        """Return a worker; the arguments are those of :class:`QueueWorker`."""
        if self.leased:
            options.setdefault("lease", LEASE)
        if self.in_a_loop is None:
            return QueueWorker(engine, handlers, **options)
        options["concurrency"] = options.pop("threads", 1)
        awaited = create_async_engine(
            engine.url.set(drivername=self.in_a_loop),
            execution_options=dict(engine.get_execution_options()),
            plugins=plugins_of(self),
        )
        if self.server == "sqlite":
            quickly(awaited.sync_engine)
        return WorkerInALoop(async_sessionmaker(awaited), handlers, **options)

    @property
    def is_mysql(self) -> bool:
        """Return whether the server is MySQL or MariaDB."""
        return self.server in {"mysql", "mariadb"}

    def __str__(self) -> str:
        held = "lease" if self.leased else "transaction"
        return f"{self.server}-{self.in_a_loop or self.driver}-{held}"


def plugins_of(place: Place) -> list[str]:
    """Return the plugins of the place's engines."""
    return ["proletarian_portable"] if place.server == "portable" else []


def quickly(engine: Engine) -> None:
    """Configure SQLite to skip disk syncs and enforce foreign keys."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = OFF")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


_BOTH, _TRANSACTION, _LEASE = (False, True), (False,), (True,)
_WAYS = [
    ("postgres", "postgresql+psycopg", None, _TRANSACTION),
    ("postgres", "postgresql+psycopg", "postgresql+asyncpg", _LEASE),
    ("postgres", "postgresql+psycopg2", None, _BOTH),
    ("portable", "postgresql+psycopg", None, _LEASE),
    ("older-postgres", "postgresql+psycopg", None, _TRANSACTION),
    ("mariadb", "mariadb+pymysql", None, _BOTH),
    ("mariadb", "mysql+pymysql", None, _TRANSACTION),
    ("mariadb", "mariadb+pymysql", "mariadb+asyncmy", _BOTH),
    ("mysql", "mysql+pymysql", None, _BOTH),
    ("mysql", "mysql+pymysql", "mysql+asyncmy", _BOTH),
    ("sqlite", "sqlite", None, _LEASE),
    ("sqlite", "sqlite", "sqlite+aiosqlite", _LEASE),
]
PLACES = [Place(*drivers, leased) for *drivers, ways in _WAYS for leased in ways]
PRODUCERS = [Place(*drivers, ways[0]) for *drivers, ways in _WAYS if drivers[2] is None]
"""The places for tests that do not depend on the worker."""


def only(condition: Callable[[Place], object]) -> pytest.MarkDecorator:
    """Return a decorator that runs a test in the places that meet ``condition``."""
    return pytest.mark.parametrize("place", list(filter(condition, PLACES)), ids=str)


on_mysql = only(lambda place: place.is_mysql)
"""A decorator that runs a test on MySQL and MariaDB."""


def is_one_writer(place: Place) -> bool:
    """Return whether a plain handler holds SQLite's write lock before it uses its session."""
    return place.server == "sqlite" and place.in_a_loop is not None
