"""The databases that the tests break: how to stop each one and how to cut its connections."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from sqlalchemy_proletarian import Base, migrate
from sqlalchemy_proletarian.database.error_codes import code_of
from tests.databases import servers

from .fleet import EACH, LEASE, Kind
from .netns import Host
from .program import LEDGER, engine_options
from .server import Server, free_port, own_server

TEST = "the test itself"
"""The ``application_name`` of the test's own connections."""

NO_SUCH_THREAD = 1094
"""The MySQL error for a connection that has already ended."""


class Breakable(Protocol):
    """A server that can be stopped and killed."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def running(self) -> bool: ...


class Site:
    """A database with the job tables and a ledger.

    :param name: the name in the documentation.
    :param url: the URL for workers.
    :param server: the server, or None if the database needs none.
    """

    kinds: Sequence[Kind]
    """The kinds of workers for this database."""
    names = False
    """Whether the server shows the worker's name of a connection."""
    miss = False
    """Whether workers end the transactions of missing workers."""
    noticed = ""
    """The event that every worker logs when it loses the server."""
    full = ""
    """The server's error message when no connection is left."""

    def __init__(self, name: str, url: URL, server: Breakable | None) -> None:
        self.name = name
        self.url = url
        self._server = server
        migrate.upgrade(self.own_url())
        engine = self.engine()
        LEDGER.metadata.create_all(engine)
        engine.dispose()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        if self._server is not None and not self._server.running():
            self._server.start()

    def stop(self) -> None:
        """Stop the server cleanly."""
        assert self._server is not None
        self._server.stop()

    def kill(self) -> None:
        """Crash the server."""
        assert self._server is not None
        self._server.kill()

    def empty(self, engine: Engine) -> None:
        """Empty the tables."""
        with engine.begin() as connection:
            for table in (*Base.metadata.sorted_tables, *LEDGER.metadata.sorted_tables):
                connection.execute(table.delete())

    def own_url(self) -> URL:
        """Return the URL for the test's own connections."""
        return self.url

    def engine(self, **options: Any) -> Engine:
        """Return an engine for the test itself."""
        return create_engine(self.own_url(), **engine_options(self.url), **options)

    def full_up(self, connection: Connection) -> AbstractContextManager[None]:
        """Take all free connections and cut those of the workers during the block.

        :param connection: the test's own connection, which stays open.
        """
        raise NotImplementedError

    def proxied_url(self) -> URL:
        """Return the URL of the server for a proxy."""
        return self.url

    def url_from(self, host: Host) -> URL:
        """Return the URL for workers on another host."""
        raise NotImplementedError

    def end_all(self, connection: Connection) -> None:
        """End all connections but the test's own."""
        for line in self.lines(connection):
            self.cut(connection, line)

    def lines(self, connection: Connection) -> dict[int, str]:
        """Return the names of the workers' connections by connection id."""
        raise NotImplementedError

    def cut(self, connection: Connection, line: int) -> None:
        """End a connection at the server, if it still exists."""
        raise NotImplementedError


class PostgreSQL(Site):
    """A PostgreSQL server from the wheel that the test suite depends on."""

    kinds = EACH
    names = True
    noticed = "listening-lost"
    full = "too many clients"

    def __init__(self, server: Server) -> None:
        self.server = server
        super().__init__("PostgreSQL", server.url(), server)

    def engine(self, **options: Any) -> Engine:
        return super().engine(connect_args={"application_name": TEST}, **options)

    def proxied_url(self) -> URL:
        return self.server.url(host="127.0.0.1")

    def url_from(self, host: Host) -> URL:
        return self.server.url(host=host.server)

    @contextmanager
    def full_up(self, connection: Connection) -> Iterator[None]:
        hog = self.engine(poolclass=NullPool)
        lines: Iterable[int] = [0]
        with ExitStack() as taken:
            while lines:
                for line in lines:
                    self.cut(connection, line)
                try:
                    while True:
                        taken.callback(hog.connect().close)
                except OperationalError as error:
                    assert self.full in str(error)  # noqa: PT017 - not any other error
                lines = self.lines(connection)
            yield

    def lines(self, connection: Connection) -> dict[int, str]:
        found = connection.execute(
            text(
                "SELECT pid, application_name FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND application_name <> :test"
            ),
            {"test": TEST},
        )
        return {row.pid: row.application_name for row in found}

    def cut(self, connection: Connection, line: int) -> None:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": line})


class MySQL(Site):
    """A MariaDB or MySQL server; workers connect as their own user."""

    kinds = (
        Kind("threads", None, "pymysql"),
        Kind("threads", LEASE, "pymysql"),
        Kind("asyncio", None, "asyncmy"),
        Kind("asyncio", LEASE, "asyncmy"),
    )
    miss = True
    noticed = "presence-lost"
    full = "Too many connections"

    def __init__(self, name: str, server: servers.Server, port: int) -> None:
        self._port = port
        admin = create_engine(server.url, poolclass=NullPool)
        with admin.begin() as connection:
            for database in ("app", "proletarian"):
                connection.execute(text(f"CREATE DATABASE {database} CHARACTER SET utf8mb4"))
            connection.execute(text("CREATE USER hog@localhost"))
            # One account for all hosts: for MariaDB, accounts with other hosts are different users.
            connection.execute(text("CREATE USER worker@'%'"))
            # Not on *.*: a user with all privileges may use the connection reserved for admins.
            for database in ("app", "proletarian"):
                connection.execute(text(f"GRANT ALL ON {database}.* TO worker@'%'"))
        super().__init__(name, server.url.set(database="app", username="worker"), server)

    def own_url(self) -> URL:
        return self.url.set(username="root")

    def url_from(self, host: Host) -> URL:
        way = self.url.difference_update_query(["unix_socket"])
        return way.set(host=host.server, port=self._port)

    @contextmanager
    def full_up(self, connection: Connection) -> Iterator[None]:
        # As a user without privileges, who may read only this database.
        url = self.url.set(username="hog", database="information_schema")
        hog = create_engine(url, poolclass=NullPool)
        fewest, before = 10, connection.scalar(text("SELECT @@max_connections"))
        with ExitStack() as taken:
            for _ in range(fewest):
                taken.callback(hog.connect().close)
            limit = text("SET GLOBAL max_connections = :limit")
            taken.callback(connection.execute, limit, {"limit": before})
            connection.execute(limit, {"limit": fewest})
            for line in self.lines(connection):
                self.cut(connection, line)
            yield

    def lines(self, connection: Connection) -> dict[int, str]:
        shown = text("SELECT id, user FROM information_schema.processlist WHERE user = 'worker'")
        while True:
            # MySQL also reads the statements of other connections; some contain ids that are not
            # valid text.
            with suppress(OperationalError):
                return {row.id: row.user for row in connection.execute(shown)}

    def cut(self, connection: Connection, line: int) -> None:
        try:
            connection.execute(text("KILL :id"), {"id": line})
        except OperationalError as error:
            if code_of(error) != NO_SUCH_THREAD:
                raise


class SQLite(Site):
    """A SQLite file."""

    kinds = (Kind("threads", LEASE, "pysqlite"), Kind("asyncio", LEASE, "aiosqlite"))

    def __init__(self, directory: Path) -> None:
        url = URL.create("sqlite", database=str(directory / "file"))
        engine = create_engine(url)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        engine.dispose()
        super().__init__("SQLite", url, None)


SETTINGS = {
    "innodb_flush_log_at_trx_commit": "2",  # the server crashes, the machine does not
}


@contextmanager
def site(name: str) -> Iterator[Site]:
    """Yield a database with all tables; remove it afterwards."""
    match name:
        case "postgresql":
            with own_server() as server:
                yield PostgreSQL(server)
        case "mariadb" | "mysql":
            port = free_port()
            with servers.own_server(name, port=f"{port}", **SETTINGS) as server:
                yield MySQL({"mariadb": "MariaDB", "mysql": "MySQL"}[name], server, port)
        case "sqlite":
            with tempfile.TemporaryDirectory(prefix="proletarian-faults-") as directory:
                yield SQLite(Path(directory))
        case _:
            raise LookupError(name)


def on(*names: str) -> pytest.MarkDecorator:
    """Return a decorator that runs a test on these databases."""
    return pytest.mark.parametrize("site", names, indirect=True)


SERVERS = "postgresql", "mariadb", "mysql"

on_servers = on(*SERVERS)
everywhere = on(*SERVERS, "sqlite")
each_on_servers = pytest.mark.parametrize(
    ("site", "kind"),
    [
        pytest.param(name, kind, id=f"{name}-{kind.queue}")
        for name in SERVERS
        for kind in (PostgreSQL.kinds if name == "postgresql" else MySQL.kinds)
    ],
    indirect=["site"],
)
"""A decorator that runs a test on all servers, with one kind of worker at a time."""
