"""Fixtures: a user's project with its own Alembic environment, and queries of the catalog."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import alembic
import pytest
from alembic.config import CommandLine, Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, inspect, text
from sqlalchemy.schema import CreateSchema, DropSchema

from tests.databases.servers import Kind, own_server

DATABASES = ("postgresql", "mariadb", "mysql", "sqlite")

TEMPLATE = Path(alembic.__file__).parent / "templates" / "generic" / "script.py.mako"
"""The template for revisions that ``alembic init`` writes."""

ENV = """\
from alembic import context
from sqlalchemy import NullPool, create_engine

import models

options = {"target_metadata": models.metadata, "compare_server_default": True}
options |= context.config.attributes["options"]
url = context.config.attributes["url"]
if context.is_offline_mode():
    context.configure(url=url, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
"""

INI = """\
[alembic]
script_location = %(here)s/migrations
prepend_sys_path = %(here)s
path_separator = newline
version_locations =
    %(here)s/migrations/versions
"""

REVISION = """\
from sqlalchemy_proletarian import migrations

revision = "0001"
down_revision = None


def upgrade():
    migrations.upgrade({upgrade})


def downgrade():
    migrations.downgrade({downgrade})
"""


@dataclass(frozen=True)
class Answer:
    """The exit code and the output of an Alembic command."""

    returncode: int
    stdout: str


@dataclass(frozen=True)
class Project:
    """A directory with alembic.ini, env.py and models.py, in which Alembic commands are run."""

    path: Path
    url: URL

    @property
    def versions(self) -> Path:
        """The directory of the revisions."""
        return self.path / "migrations" / "versions"

    def revision(self, names: str = "") -> None:
        """Write a revision that calls the library's migrations."""
        source = REVISION.format(upgrade=f"version=1, {names}", downgrade=f"version=0, {names}")
        (self.versions / "0001_job_tables.py").write_text(source)

    def ship_branch(self) -> None:
        """Add the library's branch to the version locations of the project."""
        ini = self.path / "alembic.ini"
        ini.write_text(ini.read_text() + "    sqlalchemy_proletarian.migrations:versions\n")

    def alembic(self, *arguments: str, **attributes: Any) -> Answer:
        """Run ``alembic`` in the project.

        :param attributes: attributes of the configuration that ``env.py`` reads; ``options`` are
            additional arguments of ``configure()``.
        """
        return run_alembic(self.path, *arguments, url=self.url, **{"options": {}} | attributes)

    def succeed(self, *arguments: str, **attributes: Any) -> str:
        """Run ``alembic``, check that it succeeds, and return its output."""
        answer = self.alembic(*arguments, **attributes)
        assert answer.returncode == 0, answer.stdout
        return answer.stdout


def run_alembic(path: Path, *arguments: str, **attributes: Any) -> Answer:
    """Run Alembic's command line in this process, as if it was started in the directory."""
    command_line = CommandLine()
    ini = str(path / "alembic.ini")
    options = command_line.parser.parse_args(["--raiseerr", "--config", ini, *arguments])
    output = StringIO()
    config = Config(
        file_=ini, cmd_opts=options, stdout=output, output_buffer=output, attributes=attributes
    )
    state = sys.path[:], sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # a file rewritten within a second would look unchanged
    sys.modules.pop("models", None)
    try:
        command_line.run_cmd(config, options)
    except CommandError as error:
        return Answer(255, f"{output.getvalue()}{error}")
    finally:
        sys.path[:], sys.dont_write_bytecode = state
        sys.modules.pop("models", None)
    return Answer(0, output.getvalue())


def make_project(path: Path, url: URL) -> Project:
    """Create a project without models and revisions."""
    (path / "migrations" / "versions").mkdir(parents=True)
    (path / "migrations" / "env.py").write_text(ENV)
    (path / "migrations" / "script.py.mako").write_text(TEMPLATE.read_text())
    (path / "alembic.ini").write_text(INI)
    (path / "models.py").write_text("import sqlalchemy\n\nmetadata = sqlalchemy.MetaData()\n")
    return Project(path, url)


@pytest.fixture
def project(tmp_path: Path, empty_database: URL) -> Project:
    """A project without models and revisions, on an empty database."""
    return make_project(tmp_path, empty_database)


@pytest.fixture(scope="session")
def _own_server() -> Iterator[Callable[[Kind], URL]]:
    """Return a function that starts a server for these tests only and returns its URL.

    Each server is started on first use. On MariaDB and MySQL a schema is a database, and these
    tests create and drop the database with the default name.
    """
    with ExitStack() as running:
        yield cache(lambda kind: running.enter_context(own_server(kind)).url)


@contextmanager
def _empty_schema(server: URL) -> Iterator[URL]:
    """Create a MariaDB or MySQL database; afterwards drop all databases created since then."""
    engine = create_engine(server, poolclass=NullPool)
    before = set(inspect(engine).get_schema_names())
    with engine.connect() as connection:
        connection.execute(CreateSchema("empty"))
    yield server.set(database="empty")
    made = set(inspect(engine).get_schema_names()) - before
    with engine.connect() as connection:
        for name in made:
            connection.execute(DropSchema(name))


@pytest.fixture
def empty(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[URL]:
    """The URL of an empty database of the kind that the test's parameter ``database`` names."""
    if database == "sqlite":
        yield URL.create("sqlite", database=str(tmp_path / "jobs.db"))
    elif database == "postgresql":
        yield request.getfixturevalue("empty_database")
    else:
        with _empty_schema(request.getfixturevalue("_own_server")(database)) as url:
            yield url


@pytest.fixture
def empty_engine(empty_database: URL) -> Iterator[Engine]:
    """An engine on an empty database."""
    engine = create_engine(empty_database, poolclass=NullPool)
    yield engine
    engine.dispose()


def catalog(connection: Connection, schema: str) -> dict[str, list[tuple[object, ...]]]:
    """Return the columns, indexes and options of a schema from PostgreSQL's catalog, by table."""
    columns = text(
        "SELECT table_name, ordinal_position, column_name, data_type, is_nullable, column_default "
        "FROM information_schema.columns WHERE table_schema = :schema ORDER BY 1, 2"
    )
    indexes = text(
        "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = :schema "
        "ORDER BY 1, 2"
    )
    options = text(
        "SELECT relname, reloptions, relpersistence FROM pg_class"
        " JOIN pg_namespace AS n ON n.oid = relnamespace"
        " WHERE nspname = :schema AND relkind IN ('r', 'p') ORDER BY 1"
    )
    found: dict[str, list[tuple[object, ...]]] = {}
    for statement in (columns, indexes, options):
        for table, *rest in connection.execute(statement, {"schema": schema}):
            if not table.startswith("alembic_version"):
                found.setdefault(table, []).append(tuple(rest))
    return found
