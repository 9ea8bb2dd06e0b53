"""The ways to create the tables, on each database, with every sort of name.

Each goes up, is quiet, comes down to nothing, and goes up again. Of some 800 combinations as many
run as it takes to have each value together with each other; ``--whole-matrix`` runs them all.
"""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import URL, NullPool, create_engine, inspect

from sqlalchemy_proletarian import migrations

from .conftest import DATABASES, Project, make_project

CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""The one that the documentation of SQLAlchemy and Alembic proposes."""

OF_THE_USER = """\
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy_proletarian import ArchivedJobMixin, JobMixin, RunningJobMixin

metadata = MetaData(naming_convention={convention!r})
Table("customer", metadata, Column("id", Integer, primary_key=True))
"""

MAPPED = """

class Base(DeclarativeBase):
    pass


Base.metadata = metadata


class OwnJob(JobMixin, Base):
    __tablename__ = {table!r}
    __table_args__ = {{"schema": {schema!r}}}


class ArchivedOwnJob(ArchivedJobMixin, Base):
    __tablename__ = {archived!r}
    __table_args__ = {{"schema": {schema!r}}}


class RunningOwnJob(RunningJobMixin, Base):
    __tablename__ = {running!r}
    __table_args__ = {{"schema": {schema!r}}}
"""

CREATE_SCHEMA = """\
from alembic import op
from sqlalchemy.schema import CreateSchema

revision = "0001"
down_revision = None


def upgrade():
    op.execute(CreateSchema({schema!r}, if_not_exists=True))


def downgrade():
    pass
"""
"""What autogenerate leaves to the user, for whichever table."""


class Cell(NamedTuple):
    """A way to create the tables, where they are, and what Alembic is told besides."""

    database: str
    way: str
    table: str
    schema: str | None
    schemas: str
    convention: str

    @property
    def mapped(self) -> bool:
        """Whether the tables are in the metadata that autogenerate compares."""
        return self.way in MAPPED_WAYS

    @property
    def names(self) -> dict[str, Any]:
        """The arguments of the versioned functions."""
        return {"table": self.table, "schema": self.schema}

    @property
    def tables(self) -> dict[str, str]:
        """What the three tables are called."""
        running = "running" if self.table == "job" else f"running_{self.table}"
        return {"table": self.table, "archived": f"archived_{self.table}", "running": running}

    @property
    def is_sensible(self) -> bool:
        """Whether Alembic can do it at all.

        A model that is mapped in a schema is not found where there are none, as on SQLite, nor
        where Alembic is not told to look into schemas.
        """
        found = self.database != "sqlite" and self.schemas == "all-schemas"
        return not (self.mapped and self.schema) or found

    @property
    def pairs(self) -> set[tuple[tuple[int, str | None], ...]]:
        """Each value with each other."""
        return set(combinations(enumerate(self), 2))

    def __str__(self) -> str:
        return "-".join(map(str, self))


MAPPED_WAYS = ("versioned-mapped", "autogenerate")
WAYS = ("versioned", "branch", *MAPPED_WAYS)
TABLES = (
    "job",
    "email_job",
    'Od"d %(Job',
    "queue_of_the_messages_for_customers_in_distant_regions",  # the archive's is the longest
)
SCHEMAS = (None, "proletarian", "mail", 'My "Sche%ma')

CELLS = [
    cell
    for values in product(
        DATABASES,
        WAYS,
        TABLES,
        SCHEMAS,
        ("all-schemas", "one-schema"),
        ("convention", "no-convention"),
    )
    if (cell := Cell(*values)).is_sensible
]
"""All combinations, but for those in which Alembic does not find the tables."""


def covering(cells: list[Cell]) -> list[Cell]:
    """Return a few of the cells, which have all the pairs of values that any of them have."""
    chosen: list[Cell] = []
    left = {pair for cell in cells for pair in cell.pairs}
    while left:
        chosen.append(max(cells, key=lambda cell: len(cell.pairs & left)))
        left -= chosen[-1].pairs
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run some of the cells, or all of them with ``--whole-matrix``."""
    if "cell" in metafunc.fixturenames:
        cells = CELLS if metafunc.config.getoption("--whole-matrix") else covering(CELLS)
        metafunc.parametrize("cell", cells, ids=str)


@pytest.fixture
def database(cell: Cell) -> str:
    """Which sort of database the project has."""
    return cell.database


@pytest.fixture
def project(tmp_path: Path, empty: URL) -> Project:
    """A project on an empty database of the sort."""
    return make_project(tmp_path / "project", empty)


def options(cell: Cell) -> dict[str, Any]:
    """Return what a user gives to ``context.configure()``."""
    schemas = cell.schemas == "all-schemas"
    is_no_job_table = migrations.include_name_for(**cell.names)

    def include_name(name: Any, type_: Any, parents: Any) -> bool:
        if type_ == "schema":  # on MySQL they are all the databases of the server
            return name in {None, cell.schema}
        return cell.mapped or is_no_job_table(name, type_, parents)

    given: dict[str, Any] = {"include_schemas": schemas}
    return given | ({} if cell.mapped and not schemas else {"include_name": include_name})


def tables(project: Project, cell: Cell) -> set[str]:
    """Return which of the tables are there."""
    engine = create_engine(project.url, poolclass=NullPool)
    inspector = inspect(engine)
    schema = None if cell.database == "sqlite" else cell.schema
    found = set()
    if schema is None or inspector.has_schema(schema):
        found = set(inspector.get_table_names(schema=schema))
    return found & set(cell.tables.values())


def test_up_quiet_down_up(project: Project, cell: Cell) -> None:
    """Upgrade, nothing left to do, downgrade, upgrade: in every combination."""
    convention = CONVENTION if cell.convention == "convention" else None
    models = OF_THE_USER.format(convention=convention)
    if cell.mapped:
        models += MAPPED.format(schema=cell.schema, **cell.tables)
    (project.path / "models.py").write_text(models)
    attributes = {"options": options(cell)}
    if cell.way.startswith("versioned"):
        project.revision(", ".join(f"{name}={value!r}" for name, value in cell.names.items()))
    elif cell.way == "autogenerate" and cell.schema is not None:
        source = CREATE_SCHEMA.format(schema=cell.schema)
        (project.versions / "0001_schema.py").write_text(source)
    project.succeed("upgrade", "heads", **attributes)
    project.succeed("revision", "-m", "own", "--autogenerate", **attributes)
    if cell.way == "branch":
        attributes["proletarian"] = cell.names
        project.ship_branch()
    for command in ("upgrade heads", "downgrade base", "upgrade heads"):
        project.succeed(*command.split(), **attributes)
        there = tables(project, cell)
        assert there == (set(cell.tables.values()) if command.startswith("up") else set())
        if there:
            assert "No new upgrade operations" in project.succeed("check", **attributes)
