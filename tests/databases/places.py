"""The databases, drivers and ways to hold a job that the suite runs over."""

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
"""The execution option that an engine on SQLite takes."""


class Shelf(DeclarativeBase):
    """The user's own tables."""


class Note(Shelf):
    """What handlers write."""

    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(100))


@dataclass(frozen=True)
class Place(Runs):
    """Where jobs are kept and how they are run.

    :param server: which server, or "sqlite".
    :param driver: that of the test's own engine, and of the worker if it has threads.
    :param in_a_loop: the driver of a worker in an event loop; None is a worker with threads.
    """

    server: str
    driver: str
    in_a_loop: str | None = None
    leased: bool = False

    def worker(self, engine: Engine, handlers: Any, **options: Any) -> QueueWorker | WorkerInALoop:
        """Make a worker; the arguments are those of QueueWorker."""
        if self.leased:
            options.setdefault("lease", LEASE)
        if self.in_a_loop is None:
            return QueueWorker(engine, handlers, **options)
        options["concurrency"] = options.pop("threads", 1)
        awaited = create_async_engine(
            engine.url.set(drivername=self.in_a_loop),
            execution_options=dict(engine.get_execution_options()),
        )
        if self.server == "sqlite":
            quickly(awaited.sync_engine)
        return WorkerInALoop(async_sessionmaker(awaited), handlers, **options)

    @property
    def is_mysql(self) -> bool:
        """Whether the server is a MySQL or a MariaDB."""
        return self.server in {"mysql", "mariadb"}

    def __str__(self) -> str:
        held = "lease" if self.leased else "transaction"
        return f"{self.server}-{self.in_a_loop or self.driver}-{held}"


def quickly(engine: Engine) -> None:
    """Let SQLite not wait for the disk, and heed foreign keys."""

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
"""Where it is not the worker that matters."""


def only(condition: Callable[[Place], object]) -> pytest.MarkDecorator:
    """Return a decorator: the test runs in these places."""
    return pytest.mark.parametrize("place", list(filter(condition, PLACES)), ids=str)


on_mysql = only(lambda place: place.is_mysql)
"""The test runs on MySQL and MariaDB."""


def is_one_writer(place: Place) -> bool:
    """Tell whether a plain handler's session is SQLite's one writer before it is used."""
    return place.server == "sqlite" and place.in_a_loop is not None
