"""Servers that the suite starts: MariaDB, and the PostgreSQL of the distribution beside our own.

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

import pytest
from sqlalchemy import URL, create_engine

from tests.integration.support import eventually

START = 120
"""Seconds that a server has to end on a busy machine."""


@contextmanager
def mariadb() -> Iterator[URL]:
    """Start a MariaDB, unless the environment names a MySQL or MariaDB to use instead."""
    if given := os.environ.get("PROLETARIAN_TEST_MYSQL_URL"):
        from sqlalchemy import make_url

        yield make_url(given)
        return
    server, install = shutil.which("mariadbd", path=_PATH), shutil.which("mariadb-install-db")
    if server is None or install is None:
        _missing("mariadb-server")
    with _directory("mysql") as (directory, user):
        data, line = directory / "data", directory / "socket"
        options = [f"--user={user}", f"--datadir={data}", "--innodb-use-native-aio=0"]
        _done(
            [
                install,
                "--no-defaults",
                *options,
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ]
        )
        command = [
            server,
            "--no-defaults",
            *options,
            f"--socket={line}",
            f"--pid-file={directory / 'pid'}",
            "--skip-networking",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=64M",
            "--character-set-server=latin1",  # our columns say for themselves what they keep
        ]
        url = URL.create(
            "mariadb+pymysql", "root", host="localhost", query={"unix_socket": str(line)}
        )
        with _running(command, url, line):
            yield url


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
        with _running(
            [*run, str(found[0]), "-D", str(data), *options], url, directory / ".s.PGSQL.5432"
        ):
            yield url


_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


def _done(command: Sequence[str | Path]) -> None:
    """Run a command to its end, and fail with what it said."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _missing(package: str) -> None:
    """Skip the test, but in CI: nothing that CI does not run is tested."""
    msg = f"{package} is not installed"
    if os.environ.get("CI"):
        pytest.fail(msg)
    pytest.skip(msg)


@contextmanager
def _directory(owner: str) -> Iterator[tuple[Path, str]]:
    """Make a directory of whom the server is to run as: root must not run one."""
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


@contextmanager
def _running(command: Sequence[str], url: URL, line: Path) -> Iterator[None]:
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            eventually(line.exists)  # a driver that is refused leaves its socket open
            eventually(_answers(url))
            yield
        finally:
            server.terminate()
            try:
                server.wait(START)
            except subprocess.TimeoutExpired:
                server.kill()


def _answers(url: URL) -> Callable[[], bool]:
    engine = create_engine(url)

    def answers() -> bool:
        try:
            engine.connect().close()
        except Exception:
            return False
        engine.dispose()
        return True

    return answers
