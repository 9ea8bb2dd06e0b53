"""Errors, settings and models of the command line."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from time import sleep

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, text

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


JOBS = """
from sqlalchemy_proletarian import Handlers
handlers = Handlers()

@handlers("x")
def x(payload): ...
"""

ONE_ID = "01a22545-d6d6-74e4-8f12-aae349a97c9e"
MIGRATE = [["migrate", "check"], ["migrate", "upgrade"], ["migrate", "downgrade", "0"]]
SHOWS = [["demo", "--url"], ["bench", "--url"]]
WORKER = ["worker", "errors_jobs:handlers", "--drain"]
COMMANDS = [
    *(WORKER, [*WORKER, "--asyncio"]),
    *(["status"], ["queues", "list"], ["queues", "pause", "x"], ["queues", "resume", "x"]),
    *(["jobs", "list"], ["jobs", "show", ONE_ID], ["jobs", "retry", "--all", "-y"]),
    *(["jobs", "cancel", ONE_ID], ["jobs", "discard", ONE_ID, "-y"]),
    *(["recurring", "list"], ["recurring", "run", "x"], ["recurring", "pause", "x"]),
    *(["enqueue", "x"], ["prune", "--older-than", "1d", "-y"]),
]
"""Commands that need the tables."""


def all_say(words: str, url: URL | str, commands: list[list[str]], folder: Path) -> None:
    """Check that each command prints one line with these words, and no password."""
    (folder / "errors_jobs.py").write_text(JOBS)
    text = url if isinstance(url, str) else plain(url)
    for command in commands:
        given = [text] if command[-1] == "--url" else []
        line = fails(1, *command, *given, url=url, cwd=folder)
        assert words in line, (command, line)
        assert "s3cret" not in line, command


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Yield a port of this machine behind which no server is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+asyncpg", "postgresql+psycopg2"])
def test_a_port_without_a_server(closed_port: int, tmp_path: Path, driver: str) -> None:
    """All commands name the address and the remedy; none shows the password."""
    url = f"{driver}://ada:s3cret@127.0.0.1:{closed_port}/shop"
    every = COMMANDS + MIGRATE + SHOWS
    all_say(f"ada@127.0.0.1:{closed_port}/shop: ", url, every, tmp_path)
    all_say("is the database server running, and are the host and port", url, every, tmp_path)


def test_an_unknown_host(tmp_path: Path) -> None:
    url = "postgresql://ada:s3cret@nowhere.invalid/shop"
    all_say("(check the host of the URL)", url, COMMANDS + MIGRATE + SHOWS, tmp_path)


def test_an_unknown_database(server_url: URL, tmp_path: Path) -> None:
    url = server_url.set(database="no_such_database")
    every = COMMANDS + MIGRATE + SHOWS
    all_say("(check the database of the URL, or create it)", url, every, tmp_path)


def test_an_unknown_user(server_url: URL, tmp_path: Path) -> None:
    """A server that trusts local users says so; others say that the password is wrong."""
    url = server_url.set(username="nobody_s", password="s3cret")  # noqa: S106
    all_say("(check the user ", url, COMMANDS + MIGRATE + SHOWS, tmp_path)


def test_a_wrong_password(guarded_role: URL, tmp_path: Path) -> None:
    every = COMMANDS + MIGRATE + SHOWS
    url = guarded_role.set(password="s3cret")  # noqa: S106
    all_say("(check the user and the password of the URL)", url, every, tmp_path)
    url = guarded_role.set(password=None)
    all_say("(add the password to the URL, or put it in ~/.pgpass)", url, every, tmp_path)


@pytest.fixture
def guarded_role(server_url: URL) -> Iterator[URL]:
    """Yield the URL of a role that has to give its password."""
    role = "cli_guarded"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'another'"))
        rules = Path(str(connection.scalar(text("SHOW hba_file"))))
        before = rules.read_text() if "host" in server_url.query and rules.is_file() else None
        try:
            if before is not None:  # the suite's own server trusts everybody
                rules.write_text(f"local all {role} scram-sha-256\n{before}")
                connection.execute(text("SELECT pg_reload_conf()"))
                sleep(0.5)
            yield server_url.set(username=role)
        finally:
            if before is not None:
                rules.write_text(before)
                connection.execute(text("SELECT pg_reload_conf()"))
            connection.execute(text(f"DROP ROLE {role}"))


def test_missing_tables(empty_database: URL, tmp_path: Path) -> None:
    """Each command names the command that creates the tables."""
    all_say("'proletarian migrate upgrade", empty_database, COMMANDS, tmp_path)


def test_a_missing_sqlite_file(tmp_path: Path) -> None:
    """No command creates one but migrate."""
    url = f"sqlite:///{tmp_path}/none.db"
    all_say("create it with 'proletarian migrate upgrade'", url, COMMANDS, tmp_path)
    assert not (tmp_path / "none.db").exists()
    unknown = f"sqlite:///{tmp_path}/no/folder.db"
    all_say("create the directory of the file", unknown, MIGRATE, tmp_path)
    all_say("this needs PostgreSQL, not sqlite", url, SHOWS, tmp_path)


def test_missing_drivers(tmp_path: Path) -> None:
    every = COMMANDS + MIGRATE
    all_say("pip install pg8000", "postgresql+pg8000://ada:s3cret@host/x", every, tmp_path)
    # A worker in an event loop takes another driver of the database.
    without_loop = [command for command in every if "--asyncio" not in command]
    all_say("pip install mysqlclient", "mysql://ada:s3cret@host/x", without_loop, tmp_path)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("postgres!", "expected: postgresql://"),
        ("oracle9://ada:s3cret@host/x", "the URL must begin with"),
        ("mysql+nodriver://ada:s3cret@host/x", "the URL must begin with"),
        ("sqlite://", "must name a file"),
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
    assert "there is no database URL: pass --url" in fails(2, "status", cwd=tmp_path)


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
