"""A MariaDB of the distribution's, started by the tests in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from sqlalchemy import URL

PATIENCE = 60.0


@contextmanager
def embedded_mariadb() -> Iterator[URL]:
    """Start it, yield the URL of its database ``test``, then stop it and remove its files."""
    with tempfile.TemporaryDirectory(prefix="proletarian-mariadb-") as folder:
        data, path = Path(folder) / "data", Path(folder) / "socket"
        options = ["--no-defaults", f"--datadir={data}"]
        if os.geteuid() == 0:
            options.append("--user=mysql")
            shutil.chown(folder, "mysql")
        subprocess.run(
            [
                *("mariadb-install-db", *options, "--auth-root-authentication-method=normal"),
                *("--skip-test-db", "--skip-name-resolve"),
            ],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        server = subprocess.Popen(
            ["mariadbd", *options, f"--socket={path}", "--skip-networking", "--skip-log-bin"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(path)
            yield URL.create("mariadb+pymysql", "root", query={"unix_socket": str(path)})
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(PATIENCE)
            server.kill()
            server.wait()


def _wait_for(path: Path) -> None:
    deadline = monotonic() + PATIENCE
    while True:
        with socket.socket(socket.AF_UNIX) as line:
            if line.connect_ex(str(path)) == 0:
                return
        assert monotonic() < deadline, "MariaDB does not start"
        sleep(0.05)
