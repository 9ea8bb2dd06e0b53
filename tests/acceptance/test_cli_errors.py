"""Errors, settings and models of the command line."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine

from sqlalchemy_proletarian import migrate

from .cli_runs import cli, fails, printed_json, succeeds
from .programs import PROLETARIAN, plain, run

MODELS = """
from uuid import UUID
from sqlalchemy.orm import DeclarativeBase, Mapped
from sqlalchemy_proletarian import ArchivedJobMixin, JobMixin, PausedQueueMixin, RunningJobMixin

class Base(DeclarativeBase): ...

class MailJob(JobMixin, Base):
    __tablename__ = "cli_mail_job"
    tenant: Mapped[str | None]

class ArchivedMailJob(ArchivedJobMixin, Base):
    __tablename__ = "cli_archived_mail_job"
    tenant: Mapped[str | None]

class PausedMail(PausedQueueMixin, Base):
    __tablename__ = "cli_paused_mail"
"""


def test_a_port_without_a_server() -> None:
    """One line has the remedy, and no password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"postgresql://ada:s3cret@127.0.0.1:{port}/shop"
    for command in (["status"], ["jobs", "list"], ["enqueue", "x"]):
        line = fails(1, *command, url=url)
        assert "does the server run there?" in line
        assert "s3cret" not in line


def test_an_unknown_database(server_url: URL) -> None:
    line = fails(1, "status", url=server_url.set(database="no_such_database"))
    assert "check the name of the database" in line


def test_missing_tables(empty_database: URL) -> None:
    """Each command names the command that creates the tables."""
    for command in (
        *(["status"], ["jobs", "list"], ["queues", "list"], ["recurring", "list"]),
        *(["enqueue", "x"], ["recurring", "run", "x"], ["prune", "--older-than", "1d", "-y"]),
    ):
        assert "proletarian migrate" in fails(1, *command, url=empty_database)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("postgres!", "expected: postgresql://"),
        ("oracle9://ada:s3cret@host/x", "the URL must begin with"),
        ("mysql+nodriver://ada:s3cret@host/x", "the URL must begin with"),
        ("sqlite:///no/such/file.db", "there is no SQLite database"),
        ("sqlite://", "must name a file"),
        ("mysql://ada:s3cret@host/x", "pip install mysqlclient"),
        ("postgresql://a:s3cret@b@host/x", "%40"),
    ],
)
def test_a_wrong_url(url: str, remedy: str) -> None:
    line = fails(1, "status", url=url)
    assert remedy in line
    assert "s3cret" not in line


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """Before and after the command."""
    url = f"sqlite:///{tmp_path}/none.db"
    assert "Traceback" in cli("--debug", "status", url=url).stderr
    assert "Traceback" in cli("status", "--debug", url=url).stderr
    assert "Missing option '--url' (env var: 'PROLETARIAN_URL')" in fails(2, "status", cwd=tmp_path)


def test_models_of_your_own(tmp_path: Path, engine: Engine, url: URL) -> None:
    """Classes are imported from the current directory, and found by their mixins."""
    (tmp_path / "cli_models.py").write_text(MODELS)
    create = "import sys, cli_models, sqlalchemy; e = sqlalchemy.create_engine(sys.argv[1]); "
    done = run(
        [PROLETARIAN[0], "-c", create + "cli_models.Base.metadata.create_all(e)", plain(url)],
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    )
    assert done.returncode == 0, done.stderr
    models = "--models", "cli_models:ArchivedMailJob,MailJob,PausedMail"
    job_id = succeeds("enqueue", "mail", "1", *models, url=url, cwd=tmp_path).strip()
    shown = printed_json("jobs", "show", job_id, *models, url=url, cwd=tmp_path)
    assert shown["columns"] == {"tenant": None}
    assert printed_json("jobs", "list", url=url)["jobs"] == []
    succeeds("queues", "pause", "mail", *models, url=url, cwd=tmp_path)
    succeeds("jobs", "cancel", job_id, *models, url=url, cwd=tmp_path)
    assert printed_json("status", *models, url=url, cwd=tmp_path)["schema_version"] is None
    no_table = fails(2, "recurring", "list", *models, url=url, cwd=tmp_path)
    assert "RecurringJobMixin" in no_table


@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        ("cli_models", "expected module:name"),
        ("nowhere.models:A", "there is no module 'nowhere'"),
        ("cli_models:Nothing", "has no 'Nothing'"),
        ("cli_models:Base", "is not a mapped class"),
        ("cli_models:MailJob", "ArchivedJobMixin as well"),
        ("cli_models:MailJob,MailJob2", "name one of them"),
    ],
)
def test_wrong_models(tmp_path: Path, target: str, remedy: str) -> None:
    more = "\nclass MailJob2(JobMixin, Base):\n    __tablename__ = 'cli_mail_job_2'\n"
    (tmp_path / "cli_models.py").write_text(MODELS + more)
    url = f"sqlite:///{tmp_path}/none.db"
    assert remedy in fails(2, "status", "--models", target, url=url, cwd=tmp_path)


def test_a_module_that_raises(tmp_path: Path) -> None:
    """One line has the error; --debug shows where."""
    (tmp_path / "broken.py").write_text("raise RuntimeError('no settings')")
    arguments = "status", "--models", "broken:A"
    url = "postgresql://nowhere/x"
    assert "RuntimeError: no settings" in fails(1, *arguments, url=url, cwd=tmp_path)
    assert 'broken.py", line 1' in cli("--debug", *arguments, url=url, cwd=tmp_path).stderr


def test_settings(tmp_path: Path) -> None:
    """The table is found upwards; options and the environment override it."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (below / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    project = tmp_path / "pyproject.toml"
    project.write_text(f"[tool.proletarian]\nurl = '{url}'\n")
    migrate.upgrade(url)
    job_id = succeeds("enqueue", "x", cwd=below).strip()
    assert printed_json("jobs", "show", job_id, cwd=below)["job_type"] == "x"
    assert "there is no SQLite" in fails(1, "status", url="sqlite:///other.db", cwd=below)
    (tmp_path / "cli_models.py").write_text(MODELS)
    project.write_text(f"[tool.proletarian]\nurl = '{url}'\nmodels = 'cli_models:Nothing'\n")
    assert "has no 'Nothing'" in fails(2, "status", cwd=below)
    for wrong, message in [
        ("[tool.proletarian]\nurk = 1", "unknown key 'urk'"),
        ("[tool.proletarian]\nurl = 1", "url must be a string"),
        ("[tool.proletarian]\nmodels = [1]", "models must be"),
        ("[tool]\nproletarian = 1", "must be a table"),
        ("[tool", "cannot be read"),
    ]:
        project.write_text(wrong)
        line = fails(1, "status", cwd=below)
        assert message in line
        assert str(project) in line


def test_sqlite(tmp_path: Path) -> None:
    """The commands work on SQLite, without a schema."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    succeeds("migrate", "upgrade", url=url)
    job_id = succeeds("enqueue", "x", '"ü"', url=url).strip()
    assert printed_json("status", url=url)["queues"][0]["due"] == 1
    assert "cancelled" in succeeds("jobs", "cancel", job_id, url=url)
    assert "retried" in succeeds("jobs", "retry", job_id, url=url)
    assert len(printed_json("jobs", "list", url=url)["jobs"]) == 1
    assert printed_json("prune", "--older-than", "0s", "-y", url=url) == {"deleted": 1}
    assert succeeds("queues", "pause", "mail", url=url)
    assert "mail" in succeeds("status", url=url)


def test_completion() -> None:
    """The shell completes commands and options."""
    words = "proletarian jobs sh"
    done = cli(_PROLETARIAN_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD="2")
    assert done.stdout.split() == ["plain,show"]
