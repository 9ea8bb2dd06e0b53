"""Tests of the example projects in docs/examples/migrations."""

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
from tests.integration.support import succeed

from .conftest import DATABASES, Answer, run_alembic

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "migrations"

TABLES = {
    "own_revision": {"job", "archived_job", "running", "paused_queue", "recurring", "limit_place"},
    "autogenerate": {"email_job", "archived_email_job", "running_email_job", "recurring_email_job"},
    "shipped_branch": {
        "email_job",
        "archived_email_job",
        "running_email_job",
        "paused_email_job",
        "recurring_email_job",
        "places_email_job",
    },
}
SCHEMAS = {"own_revision": "proletarian", "autogenerate": None, "shipped_branch": "mail"}


@pytest.fixture
def example(name: str, tmp_path: Path) -> Path:
    """A copy of the example project."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=ignored))


@pytest.fixture
def url(empty: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
    """The URL of an empty database, set as the environment variable that the project reads."""
    monkeypatch.setenv("DATABASE_URL", empty.render_as_string(hide_password=False))
    return empty


def succeed_with(path: Path, *arguments: str) -> str:
    """Run the Alembic command, check that it succeeds, and return its output."""
    answer = run_alembic(path, *arguments)
    assert answer.returncode == 0, answer.stdout
    return answer.stdout


def run_in_subprocess(path: Path, *arguments: str) -> Answer:
    """Run the Alembic command in a subprocess, in the directory of the project."""
    process = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=path,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return Answer(process.returncode, process.stdout + process.stderr)


def tables(url: URL, schema: str | None) -> set[str]:
    engine = create_engine(url)
    try:
        inspector = inspect(engine)
        if schema is not None and not inspector.has_schema(schema):
            schema = None
        return set(inspector.get_table_names(schema=schema))
    finally:
        engine.dispose()


def models_of(path: Path) -> dict[str, Any]:
    """Return the models of the project, or else of the library, as arguments of a worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path)
        models = importlib.import_module("models")
        sys.modules.pop("models")
    own = hasattr(models, "EmailJob")
    return {
        "job_model": models.EmailJob if own else Job,
        "archived_job_model": models.ArchivedEmailJob if own else ArchivedJob,
        "running_job_model": models.RunningEmailJob if own else RunningJob,
    }


def run_a_job(path: Path, url: URL) -> None:
    """Enqueue a job in the tables of the project, and run it."""
    options = models_of(path)
    without_schema = {"proletarian": None, "mail": None} if url.drivername == "sqlite" else {}
    engine = create_engine(url).execution_options(schema_translate_map=without_schema)
    with Session(engine) as session, session.begin():
        enqueue(session, "greet", {"name": "Ada"}, job_model=options["job_model"])
    QueueWorker(engine, succeed, **options).drain()
    with Session(engine) as session:
        archived = options["archived_job_model"]
        assert session.scalars(select(archived.status)).all() == ["success"]
    engine.dispose()


def test_every_project_is_tested() -> None:
    """Every directory with an example is in ``TABLES``."""
    assert {path.name for path in EXAMPLES.iterdir()} == set(TABLES)


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("name", list(TABLES))
def test_upgrade_downgrade_and_upgrade_again(
    name: str, example: Path, url: URL, database: str
) -> None:
    """After each upgrade autogenerate finds no difference; at the end a job runs."""
    if name == "autogenerate":
        succeed_with(example, "revision", "--autogenerate", "-m", "job tables")
    for command in ("upgrade heads", "downgrade base", "upgrade heads"):
        succeed_with(example, *command.split())
        existing = tables(url, SCHEMAS[name]) & TABLES[name]
        assert existing == (TABLES[name] if command.startswith("up") else set())
        if existing:
            assert "No new upgrade operations" in succeed_with(example, "check")
    run_a_job(example, url)


@pytest.mark.parametrize("database", ["postgresql"])
@pytest.mark.parametrize("name", list(TABLES))
def test_the_documented_commands_create_working_tables(
    name: str, example: Path, url: URL, database: str
) -> None:
    """The commands of the documentation are run in a subprocess, and then a job runs."""
    if name == "autogenerate":
        result = run_in_subprocess(example, "revision", "--autogenerate", "-m", "job tables")
        assert result.returncode == 0, result.stdout
    result = run_in_subprocess(example, "upgrade", "heads")
    assert result.returncode == 0, result.stdout
    run_a_job(example, url)


@pytest.mark.parametrize(("name", "database"), [("autogenerate", "sqlite")])
def test_batch_mode_keeps_indexes_defaults_and_rows(
    name: str, example: Path, url: URL, database: str
) -> None:
    """On SQLite, Alembic copies a table to change it."""
    succeed_with(example, "revision", "--autogenerate", "-m", "job tables")
    succeed_with(example, "upgrade", "head")
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
    succeed_with(example, "revision", "--autogenerate", "-m", "an owner")
    succeed_with(example, "upgrade", "head")
    assert "No new upgrade operations" in succeed_with(example, "check")
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT owner, priority FROM email_job").all()
        schema = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_schema WHERE name = 'ux_email_job_unique_key'"
        ).scalar_one()
    engine.dispose()
    assert rows == [(1, 5)]
    assert "WHERE unique_key IS NOT NULL" in schema


@pytest.mark.parametrize(("name", "database"), [("shipped_branch", "sqlite")])
def test_two_heads_need_one_of_two_remedies(
    name: str, example: Path, url: URL, database: str
) -> None:
    """The target ``head`` is ambiguous; the documentation recommends ``--head`` or ``merge``."""
    failure = run_alembic(example, "upgrade", "head")
    assert "Multiple head revisions are present" in failure.stdout
    failure = run_alembic(example, "revision", "-m", "next")
    assert "Multiple heads are present" in failure.stdout
    succeed_with(example, "revision", "-m", "next", "--head", "0001")
    succeed_with(example, "merge", "heads", "-m", "job tables")
    succeed_with(example, "upgrade", "head")
    succeed_with(example, "revision", "-m", "one more")
    succeed_with(example, "upgrade", "head")
    assert len(list((example / "migrations" / "versions").glob("*.py"))) == 4
    assert "No new upgrade operations" in succeed_with(example, "check")
