"""A project of a user's, with an Alembic of its own, and eyes for the database's catalog."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, text

ENV = """\
import os

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy_proletarian import migrations

import models

options = {"target_metadata": models.metadata, "compare_server_default": True}
options |= eval(os.environ.get("OPTIONS", "{}"))
if context.is_offline_mode():
    context.configure(url=os.environ["URL"], **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(os.environ["URL"]).connect() as connection:
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
class Project:
    """A folder with alembic.ini, env.py and models.py, and the command line to run in it."""

    path: Path
    url: URL

    def revision(self, names: str = "") -> None:
        """Write a revision that calls the library's migrations."""
        source = REVISION.format(upgrade=f"version=1, {names}", downgrade=f"version=0, {names}")
        (self.path / "migrations" / "versions" / "0001_job_tables.py").write_text(source)

    def alembic(self, *arguments: str, options: str = "{}") -> subprocess.CompletedProcess[str]:
        """Run ``alembic`` in the project; ``options`` are more of them for ``configure()``."""
        url = self.url.render_as_string(hide_password=False)
        return subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.path,
            env=os.environ | {"URL": url, "OPTIONS": options},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def project(tmp_path: Path, empty_database: URL) -> Project:
    """A project without any model or revision, on an empty database."""
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "env.py").write_text(ENV)
    (tmp_path / "alembic.ini").write_text(INI)
    (tmp_path / "models.py").write_text("import sqlalchemy\n\nmetadata = sqlalchemy.MetaData()\n")
    return Project(tmp_path, empty_database)


@pytest.fixture
def empty_engine(empty_database: URL) -> Iterator[Engine]:
    """An engine on a fresh database."""
    engine = create_engine(empty_database, poolclass=NullPool)
    yield engine
    engine.dispose()


def catalog(connection: Connection, schema: str) -> dict[str, list[tuple[object, ...]]]:
    """Return all that PostgreSQL knows of the columns and indexes of a schema, by table."""
    columns = text(
        "SELECT table_name, ordinal_position, column_name, data_type, is_nullable, column_default "
        "FROM information_schema.columns WHERE table_schema = :schema ORDER BY 1, 2"
    )
    indexes = text(
        "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = :schema "
        "ORDER BY 1, 2"
    )
    found: dict[str, list[tuple[object, ...]]] = {}
    for statement in (columns, indexes):
        for table, *rest in connection.execute(statement, {"schema": schema}):
            if not table.startswith("alembic_version"):
                found.setdefault(table, []).append(tuple(rest))
    return found
