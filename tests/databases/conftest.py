"""Fixtures for each database, with tables created by the migrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, create_engine, text

from sqlalchemy_proletarian import Base, migrate

from .places import PLACES, PRODUCERS, WITHOUT_SCHEMA, Place, Shelf, plugins_of, quickly
from .servers import older_postgres, own_server


@pytest.fixture(params=PLACES, ids=str)
def place(request: pytest.FixtureRequest) -> Place:
    """Return each place in turn: a database, a driver and a mode."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=PRODUCERS, ids=str)
def producer(request: pytest.FixtureRequest) -> Place:
    """Return each database with each synchronous driver in turn."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def server_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], URL]]:
    """Yield a function that returns a server's URL and starts the server on its first call."""
    started: dict[str, URL] = {}
    with ExitStack() as running:

        def start(server: str) -> URL:
            if server in {"postgres", "portable"}:
                return request.getfixturevalue("server_url")  # type: ignore[no-any-return]
            if server == "sqlite":
                return URL.create("sqlite", database=str(tmp_path_factory.mktemp("db") / "file"))
            if server == "older-postgres":
                return running.enter_context(older_postgres())
            return running.enter_context(own_server(server)).url

        def server_of(server: str) -> URL:
            if server not in started:
                started[server] = start(server)
            return started[server]

        yield server_of


@pytest.fixture(scope="session")
def database_of_server(server_of: Callable[[str], URL]) -> Callable[[str], URL]:
    """Return a function that returns a server's database, with the job tables and a note table."""
    made: dict[str, URL] = {}

    def database_of_server(server: str) -> URL:
        if server in made:
            return made[server]
        url = server_of(server)
        if server != "sqlite":
            name = f"proletarian_test_{uuid4().hex[:12]}"
            admin = create_engine(url, isolation_level="AUTOCOMMIT")
            with admin.connect() as connection:
                charset = " CHARACTER SET utf8mb4" if server in {"mariadb", "mysql"} else ""
                connection.execute(text(f"CREATE DATABASE {name}{charset}"))
            admin.dispose()
            url = url.set(database=name)
        plugin = {"plugin": "proletarian_portable"} if server == "portable" else {}
        migrate.upgrade(url.update_query_dict(plugin))
        engine = create_engine(url)
        Shelf.metadata.create_all(engine)
        if server == "sqlite":
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        engine.dispose()
        made[server] = url
        return url

    return database_of_server


def engine_of(place: Place, url: URL) -> Engine:
    """Return an engine for the driver of ``place``."""
    options = WITHOUT_SCHEMA if place.server == "sqlite" else {}
    engine = create_engine(
        url.set(drivername=place.driver), execution_options=options, plugins=plugins_of(place)
    )
    if place.server == "sqlite":
        quickly(engine)
    return engine


@pytest.fixture
def engine(
    request: pytest.FixtureRequest, database_of_server: Callable[[str], URL]
) -> Iterator[Engine]:
    """Yield an engine on the database of the test's place or producer; its tables are empty."""
    name = "place" if "place" in request.fixturenames else "producer"
    place: Place = request.getfixturevalue(name)
    engine = engine_of(place, database_of_server(place.server))
    yield engine
    with engine.begin() as connection:
        for table in (*Base.metadata.sorted_tables, *Shelf.metadata.sorted_tables):
            connection.execute(table.delete())
    engine.dispose()
