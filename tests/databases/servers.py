"""Servers that the suite starts: MariaDB, MySQL, and the PostgreSQL of the distribution.

Each belongs to the process that starts it, on a Unix socket in a directory of its own.
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
"""Seconds that a server has to start or to end on a busy machine."""

Kind: TypeAlias = Literal["mariadb", "mysql"]


class Server:
    """A server that a test may stop, kill and start again, over the same data.

    :param command: runs it in the foreground.
    :param url: where it answers.
    :param line: its Unix socket.
    """

    def __init__(self, command: Sequence[str], url: URL, line: Path) -> None:
        self.url = url
        self._command = command
        self._line = line
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        # What a killed server has left: another process may have its number by now.
        for left in (self._line, self._line.with_name(f"{self._line.name}.lock")):
            left.unlink(missing_ok=True)
        log = self._line.with_name("log")
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                self._command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
        answers = _answers(self.url)

        def is_there() -> bool:
            assert self.running(), log.read_text(errors="replace")
            # A driver that is refused leaves its socket open.
            return self._line.exists() and answers()

        eventually(is_there, START)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(START)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it without warning."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def running(self) -> bool:
        """Tell whether it runs."""
        return self._process is not None and self._process.poll() is None

    @contextmanager
    def started(self) -> Iterator[Server]:
        """Have it run until the end of the block, whatever the block does to it."""
        try:
            self.start()
            yield self
        finally:
            self.stop()


@contextmanager
def own_server(kind: Kind, **settings: str) -> Iterator[Server]:
    """Yield a running MariaDB or MySQL; remove it and its files afterwards.

    MySQL is the program that ``PROLETARIAN_TEST_MYSQLD`` names.

    :param settings: further options of its command line. By default commits are written once a
        second: they outlive the server's end, not its death. With a ``port`` it listens there too.
    """
    program = _program_of(kind)
    with _directory() as (directory, user):
        data, line = directory / "data", directory / "socket"
        options = [
            "--no-defaults",
            f"--user={user}",
            f"--datadir={data}",
            f"--tmpdir={directory}",  # one that starts clears away what looks like a leftover
            "--innodb-use-native-aio=0",
            *(_WITHOUT_WEIGHT if kind == "mysql" else []),
        ]
        _done(_installation(kind, program, options))
        given = {
            "innodb_flush_log_at_trx_commit": "0",
            "innodb_buffer_pool_size": "64M",
            "character_set_server": "latin1",  # our columns say for themselves what they keep
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
    """Start the PostgreSQL of the distribution, if there is one."""
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
    # Nobody is listening on a socket of ours, and keys take time to be made.
    "--tls-version=",
    "--auto-generate-certs=OFF",
    "--sha256-password-auto-generate-rsa-keys=OFF",
    "--caching-sha2-password-auto-generate-rsa-keys=OFF",
)
"""Options of MySQL for the length of a test."""

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


def _program_of(kind: Kind) -> str:
    """Return the server's program."""
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
    """Return the command that makes a server's data directory."""
    if kind == "mysql":
        return [program, *options, "--initialize-insecure"]
    without_password = ["--auth-root-authentication-method=normal", "--skip-test-db"]
    return ["mariadb-install-db", *options, *without_password]


def _done(command: Sequence[str | Path]) -> None:
    """Run a command to its end, and fail with what it said."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def missing(package: str) -> None:
    """Skip the test, but in CI: nothing that CI does not run is tested."""
    msg = f"{package} is not installed"
    if os.environ.get("CI"):
        pytest.fail(msg)
    pytest.skip(msg)


@contextmanager
def _directory(owner: str = "nobody") -> Iterator[tuple[Path, str]]:
    """Make a directory of whom a server is to run as: root must not run one."""
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
