"""Servers that the test suite starts: MariaDB, MySQL and the distribution's PostgreSQL.

Each server belongs to the process that starts it and listens on a Unix socket in its own directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
from sqlalchemy import URL, NullPool, create_engine

from tests.integration.support import eventually

START = 120
"""Seconds that a server may take to start or to stop on a busy machine."""

Kind: TypeAlias = Literal["mariadb", "mysql"]


class Server:
    """A server that a test may stop, kill and restart on the same data.

    :param command: the command that runs the server in the foreground.
    :param url: the URL of the server.
    :param line: the path of its Unix socket.
    """

    def __init__(self, command: Sequence[str], url: URL, line: Path) -> None:
        self.url = url
        self._command = command
        self._line = line
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        # Files left by a killed server; the pid in its lock file may be in use again.
        for left in (self._line, self._line.with_name(f"{self._line.name}.lock")):
            left.unlink(missing_ok=True)
        log = self._line.with_name("log")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        answers = _answers(self.url)

        def is_there() -> bool:
            assert self.running(), log.read_text(errors="replace")
            # A driver leaves its socket open when the connection is refused.
            return self._line.exists() and answers()

        eventually(is_there, START)

    def stop(self) -> None:
        """Terminate the server and wait until it has exited."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(START)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Kill the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def running(self) -> bool:
        """Return whether the server runs."""
        return self._process is not None and self._process.poll() is None

    @contextmanager
    def started(self) -> Iterator[Server]:
        """Start the server and stop it at the end of the block, even if the block restarts it."""
        try:
            self.start()
            yield self
        finally:
            self.stop()


@contextmanager
def own_server(kind: Kind, **settings: str) -> Iterator[Server]:
    """Yield a running MariaDB or MySQL server; remove it and its files afterwards.

    ``PROLETARIAN_TEST_MYSQLD`` names the program of MySQL.

    :param settings: more command line options. By default commits are flushed once a second: they
        survive a clean stop, but not a crash. With ``port``, the server also listens on TCP.
    """
    program = _program_of(kind)
    with _directory() as (directory, user):
        data, line = directory / "data", directory / "socket"
        options = [
            "--no-defaults",
            f"--user={user}",
            f"--datadir={data}",
            f"--tmpdir={directory}",  # a starting server removes what looks like leftover files
            "--innodb-use-native-aio=0",
            *(_WITHOUT_WEIGHT if kind == "mysql" else []),
        ]
        _done(_installation(kind, program, options))
        given = {
            "innodb_flush_log_at_trx_commit": "0",
            "innodb_buffer_pool_size": "64M",
            "character_set_server": "latin1",  # the columns define their own character sets
            **settings,
        }
        command = [
            program,
            *options,
            f"--socket={line}",
            f"--pid-file={directory / 'pid'}",
            *(["--skip-name-resolve"] if "port" in settings else ["--skip-networking"]),
            *(f"--{name.replace('_', '-')}={value}" for name, value in given.items()),
        ]
        url = URL.create(
            f"{kind}+pymysql", "root", host="localhost", query={"unix_socket": f"{line}"}
        )
        with Server(command, url, line).started() as server:
            yield server


@contextmanager
def older_postgres() -> Iterator[URL]:
    """Start the distribution's PostgreSQL; skip the test if it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("the distribution's PostgreSQL is not installed")
    with _directory("postgres") as (directory, user):
        data = directory / "data"
        run = _as(user)
        _done([*run, found[0].parent / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"])
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", str(directory)]
        url = URL.create(
            "postgresql+psycopg", "postgres", database="postgres", query={"host": str(directory)}
        )
        command = [*run, str(found[0]), "-D", str(data), *options]
        with Server(command, url, directory / ".s.PGSQL.5432").started():
            yield url


_WITHOUT_WEIGHT = (
    "--mysqlx=OFF",
    "--disable-log-bin",
    "--performance-schema=OFF",
    "--loose-innodb-redo-log-capacity=8M",
    # A Unix socket needs no TLS, and generating keys takes time.
    "--tls-version=",
    "--auto-generate-certs=OFF",
    "--sha256-password-auto-generate-rsa-keys=OFF",
    "--caching-sha2-password-auto-generate-rsa-keys=OFF",
)
"""Options that make a short-lived MySQL server start faster."""

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


def _program_of(kind: Kind) -> str:
    """Return the path of the server program."""
    if kind == "mysql":
        given = os.environ.get("PROLETARIAN_TEST_MYSQLD")
        if not given:
            pytest.skip("PROLETARIAN_TEST_MYSQLD names no MySQL server")
        return given
    found = shutil.which("mariadbd", path=_PATH)
    if found is None or shutil.which("mariadb-install-db") is None:
        missing("mariadb-server")
    return str(found)


def _installation(kind: Kind, program: str, options: Sequence[str]) -> Sequence[str]:
    """Return the command that creates the data directory."""
    if kind == "mysql":
        return [program, *options, "--initialize-insecure"]
    without_password = ["--auth-root-authentication-method=normal", "--skip-test-db"]
    return ["mariadb-install-db", *options, *without_password]


def _done(command: Sequence[str | Path]) -> None:
    """Run a command; fail with its output if it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def missing(package: str) -> None:
    """Skip the test because a package is missing; fail in CI, where all tests must run."""
    msg = f"{package} is not installed"
    if os.environ.get("CI"):
        pytest.fail(msg)
    pytest.skip(msg)


@contextmanager
def _directory(owner: str = "nobody") -> Iterator[tuple[Path, str]]:
    """Yield a directory and its owner, the user that runs the server, since root cannot."""
    with tempfile.TemporaryDirectory(prefix="proletarian-") as made:
        directory = Path(made)
        if os.geteuid() != 0:
            yield directory, Path.home().owner()
            return
        shutil.chown(directory, owner)
        yield directory, owner


def _as(user: str) -> Sequence[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


def _answers(url: URL) -> Callable[[], bool]:
    engine = create_engine(url, poolclass=NullPool)

    def answers() -> bool:
        try:
            engine.connect().close()
        except Exception:
            return False
        return True

    return answers
