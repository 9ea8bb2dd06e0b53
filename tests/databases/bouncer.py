"""A PgBouncer that the test suite starts in front of a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

from sqlalchemy import URL

from tests.faults.server import free_port

from .servers import Server, missing

PoolMode: TypeAlias = Literal["session", "transaction", "statement"]

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


class Bouncer(Server):
    """A PgBouncer that a test may kill and restart.

    :param url: the URL of a database behind it.
    """

    def __init__(self, command: Sequence[str], url: URL, line: Path) -> None:
        super().__init__(command, url, line)
        self._configuration = Path(command[-1])

    def url_of(self, database: str | None) -> URL:
        """Return the URL of another database of the server."""
        return self.url.set(database=database)


@contextmanager
def bouncer(
    server: URL, mode: PoolMode, *, pool_size: int = 20, **settings: str
) -> Iterator[Bouncer]:
    """Yield a running PgBouncer; remove it and its files afterwards.

    :param server: the URL of a database of the server behind it.
    :param pool_size: how many connections it opens to each database.
    :param settings: more lines of its configuration.
    """
    program = shutil.which("pgbouncer", path=_PATH)
    if program is None:
        missing("pgbouncer")
    with tempfile.TemporaryDirectory(prefix="proletarian-") as made:
        directory = Path(made)
        port = free_port()
        users = directory / "users"
        users.write_text(f'"{server.username}" ""\n')
        lines = {
            "listen_addr": "",
            "listen_port": f"{port}",
            "unix_socket_dir": f"{directory}",
            "auth_type": "trust",
            "auth_file": f"{users}",
            "admin_users": f"{server.username}",
            "pool_mode": mode,
            "default_pool_size": f"{pool_size}",
            "max_client_conn": "200",
            "max_db_connections": f"{pool_size}",
            "log_connections": "0",
            "log_disconnections": "0",
            **settings,
        }
        host, server_port = server.query.get("host", server.host), server.query.get("port")
        databases = f"* = host={host} port={server_port or server.port or 5432}\n"
        text = "[databases]\n" + databases + "[pgbouncer]\n"
        configuration = directory / "pgbouncer.ini"
        configuration.write_text(text + "".join(f"{k} = {v}\n" for k, v in lines.items()))
        command = [str(program)]
        if os.geteuid() == 0:  # it refuses to run as root
            for path in (directory, users, configuration):
                shutil.chown(path, "nobody")
            command += ["-u", "nobody"]
        query = {"host": f"{directory}", "port": f"{port}"}
        url = URL.create(
            "postgresql+psycopg", server.username, database=server.database, query=query
        )
        line = directory / f".s.PGSQL.{port}"
        with Bouncer([*command, str(configuration)], url, line).started() as started:
            assert isinstance(started, Bouncer)
            yield started
