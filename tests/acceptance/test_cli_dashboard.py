"""``proletarian dashboard``."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import httpx
from sqlalchemy import URL

from sqlalchemy_proletarian import migrate

from .cli_runs import fails
from .programs import PROLETARIAN, plain, started


def test_it_serves_until_ctrl_c(empty_database: URL) -> None:
    migrate.upgrade(empty_database)
    command = [*PROLETARIAN, "dashboard", "--insecure-local", "--port", "0"]
    with started(command, PROLETARIAN_URL=plain(empty_database)) as (process, wait_for):
        line = wait_for("The dashboard of ")
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address is not None
        assert "No problems." in httpx.get(address[0], follow_redirects=True).text
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=20)[0]
    assert "Traceback" not in output
    assert process.returncode in (0, 130, -signal.SIGINT)


def test_authorize_is_imported(empty_database: URL, tmp_path: Path) -> None:
    migrate.upgrade(empty_database)
    (tmp_path / "admins.py").write_text("def nobody(request):\n    return False\n")
    command = [*PROLETARIAN, "dashboard", "--authorize", "admins:nobody", "--port", "0"]
    variables = {"PROLETARIAN_URL": plain(empty_database), "PYTHONPATH": str(tmp_path)}
    with started(command, **variables) as (process, wait_for):
        address = re.search(r"http://127\.0\.0\.1:\d+/", wait_for("The dashboard of "))
        assert address is not None
        assert httpx.get(address[0]).status_code == 403
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_what_is_wrong_is_one_line(empty_database: URL) -> None:
    url = empty_database
    assert "nobody may see the dashboard yet" in fails(2, "dashboard", url=url)
    everywhere = fails(2, "dashboard", "--insecure-local", "--host", "10.0.0.7", url=url)
    assert "listens on this machine only" in everywhere
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        used = fails(1, "dashboard", "--insecure-local", "--port", port, url=url)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in used
