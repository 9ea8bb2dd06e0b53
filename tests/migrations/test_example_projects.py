"""The projects in docs/examples/migrations, run as their readers run them."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, inspect, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import QueueWorker, enqueue
from sqlalchemy_proletarian.models import ArchivedJob, Job, RunningJob

from .conftest import Answer, run_alembic

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "migrations"

TABLES = {
    "own_revision": {"job", "archived_job", "running"},
    "autogenerate": {"email_job", "archived_email_job", "running_email_job"},
    "shipped_branch": {"email_job", "archived_email_job", "running_email_job"},
}
SCHEMAS = {"own_revision": "proletarian", "autogenerate": None, "shipped_branch": "mail"}


@pytest.fixture
def example(name: str, tmp_path: Path) -> Path:
    """A copy of the project."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=ignored))


@pytest.fixture
def url(
    database: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> URL:
    """The URL of an empty database, where the project looks for it."""
    if database == "sqlite":
        url = URL.create("sqlite", database=str(tmp_path / "jobs.db"))
    else:
        fixture = {"postgresql": "empty_database", "mariadb": "empty_mariadb"}[database]
        url = request.getfixturevalue(fixture)
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    return url


def succeed(path: Path, *arguments: str) -> str:
    answer = run_alembic(path, *arguments)
    assert answer.returncode == 0, answer.stdout
    return answer.stdout


def from_a_shell(path: Path, *arguments: str) -> Answer:
    """Run the command line in a process of its own, from the folder of the project."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=path,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return Answer(done.returncode, done.stdout + done.stderr)


def tables(url: URL, schema: str | None) -> set[str]:
    engine = create_engine(url)
    try:
        inspector = inspect(engine)
        if schema is not None and not inspector.has_schema(schema):
            schema = None
        return set(inspector.get_table_names(schema=schema))
    finally:
        engine.dispose()


def models_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """Return the job models of the project: its own, or the library's."""
    monkeypatch.syspath_prepend(path)
    models = importlib.import_module("models")
    sys.modules.pop("models")
    if not hasattr(models, "EmailJob"):
        return Job, ArchivedJob, RunningJob
    return models.EmailJob, models.ArchivedEmailJob, models.RunningEmailJob


def test_every_project_is_tested() -> None:
    """No project lies around that nobody runs."""
    assert {path.name for path in EXAMPLES.iterdir()} == set(TABLES)


@pytest.mark.parametrize(
    ("name", "database"),
    [
        *((name, database) for name in TABLES for database in ("postgresql", "sqlite")),
        # The others look at all schemas, and on MariaDB that is all the server's databases.
        ("autogenerate", "mariadb"),
    ],
)
def test_up_quiet_down_up(name: str, example: Path, url: URL, database: str) -> None:
    """The project creates its tables, is quiet then, drops them and creates them again."""
    if name == "autogenerate":
        succeed(example, "revision", "--autogenerate", "-m", "job tables")
    for command in ("upgrade heads", "downgrade base", "upgrade heads"):
        succeed(example, *command.split())
        there = tables(url, SCHEMAS[name]) & TABLES[name]
        assert there == (TABLES[name] if command.startswith("up") else set())
        if there:
            assert "No new upgrade operations" in succeed(example, "check")


@pytest.mark.parametrize("database", ["postgresql"])
@pytest.mark.parametrize("name", list(TABLES))
def test_from_a_shell(
    name: str, example: Path, url: URL, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    """What the documentation says to type gives tables that jobs run in."""
    if name == "autogenerate":
        typed = from_a_shell(example, "revision", "--autogenerate", "-m", "job tables")
        assert typed.returncode == 0, typed.stdout
    typed = from_a_shell(example, "upgrade", "heads")
    assert typed.returncode == 0, typed.stdout
    job, archived, running = models_of(example, monkeypatch)
    engine = create_engine(url)
    with Session(engine) as session, session.begin():
        enqueue(session, "greet", {"name": "Ada"}, job_model=job)
    QueueWorker(
        engine,
        lambda job_type, payload: None,
        job_model=job,
        archived_job_model=archived,
        running_job_model=running,
    ).drain()
    with Session(engine) as session:
        assert session.scalars(select(archived.status)).all() == ["success"]
    engine.dispose()


@pytest.mark.parametrize(("name", "database"), [("autogenerate", "sqlite")])
def test_batch_mode_keeps_what_is_there(name: str, example: Path, url: URL, database: str) -> None:
    """A table that SQLite has to copy, to change it, keeps its indexes, defaults and rows."""
    succeed(example, "revision", "--autogenerate", "-m", "job tables")
    succeed(example, "upgrade", "head")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO email_job (job_id, queue, job_type, payload, attempts, enqueued_at, "
            "process_at) VALUES ('0', 'q', 't', 'null', 0, '2030-01-01', '2030-01-01')"
        )
    models = example / "models.py"
    customer = "    customer: Mapped[Customer | None] = relationship()"
    owner = (
        '    owner: Mapped[int] = mapped_column(ForeignKey("customer.id"), server_default="1")\n'
    )
    assert customer in models.read_text()
    models.write_text(models.read_text().replace(customer, owner))
    succeed(example, "revision", "--autogenerate", "-m", "an owner")
    succeed(example, "upgrade", "head")
    assert "No new upgrade operations" in succeed(example, "check")
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT owner, priority FROM email_job").all()
        schema = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_schema WHERE name = 'ux_email_job_unique_key'"
        ).scalar_one()
    engine.dispose()
    assert rows == [(1, 5)]
    assert "WHERE unique_key IS NOT NULL" in schema


@pytest.mark.parametrize(("name", "database"), [("shipped_branch", "sqlite")])
def test_two_heads(name: str, example: Path, url: URL, database: str) -> None:
    """What Alembic says to ``head`` where there are two, and the two remedies that we name."""
    said = run_alembic(example, "upgrade", "head")
    assert "Multiple head revisions are present" in said.stdout
    said = run_alembic(example, "revision", "-m", "next")
    assert "Multiple heads are present" in said.stdout
    succeed(example, "revision", "-m", "next", "--head", "0001")
    succeed(example, "merge", "heads", "-m", "job tables")
    succeed(example, "upgrade", "head")
    succeed(example, "revision", "-m", "one more")
    succeed(example, "upgrade", "head")
    assert len(list((example / "migrations" / "versions").glob("*.py"))) == 4
    assert "No new upgrade operations" in succeed(example, "check")
