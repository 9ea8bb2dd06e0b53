"""Tests of each way to create the tables, on each database, with several kinds of names.

Each combination is upgraded, compared by autogenerate, downgraded and upgraded again. There are
some 800 combinations: by default a subset runs that contains each pair of values;
``--whole-matrix`` runs all of them.
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
"""The naming convention that the documentation of SQLAlchemy and Alembic recommends."""

USER_MODELS = """\
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    JobMixin,
    LimitPlaceMixin,
    PausedQueueMixin,
    RecurringJobMixin,
    RunningJobMixin,
)

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


class PausedOwnQueue(PausedQueueMixin, Base):
    __tablename__ = {paused!r}
    __table_args__ = {{"schema": {schema!r}}}


class RecurringOwnJob(RecurringJobMixin, Base):
    __tablename__ = {recurring!r}
    __table_args__ = {{"schema": {schema!r}}}


class OwnLimitPlace(LimitPlaceMixin, Base):
    __tablename__ = {places!r}
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
"""A revision that creates the schema, because autogenerate does not create schemas."""


class Combination(NamedTuple):
    """A combination: the way to create the tables, their location and Alembic's options."""

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
        """The names of the tables."""
        suffix = "" if self.table == "job" else f"_{self.table}"
        paused = "paused_queue" if self.table == "job" else f"paused_{self.table}"
        return {
            "table": self.table,
            "archived": f"archived_{self.table}",
            "running": f"running{suffix}",
            "paused": paused,
            "recurring": f"recurring{suffix}",
            "places": "limit_place" if self.table == "job" else f"places_{self.table}",
        }

    @property
    def is_sensible(self) -> bool:
        """Whether Alembic supports the combination.

        Autogenerate does not find a table with a schema on SQLite, which has no schemas, or
        without ``include_schemas``.
        """
        found = self.database != "sqlite" and self.schemas == "all-schemas"
        return not (self.mapped and self.schema) or found

    @property
    def pairs(self) -> set[tuple[tuple[int, str | None], ...]]:
        """All pairs of values of the combination."""
        return set(combinations(enumerate(self), 2))

    def __str__(self) -> str:
        return "-".join(map(str, self))


MAPPED_WAYS = ("versioned-mapped", "autogenerate")
WAYS = ("versioned", "branch", *MAPPED_WAYS)
TABLES = (
    "job",
    "email_job",
    'Od"d %(Job',
    "queue_of_the_messages_for_customers_in_distant_region",  # "recurring" makes it 63 bytes
)
SCHEMAS = (None, "proletarian", "mail", 'My "Sche%ma')

COMBINATIONS = [
    combination
    for values in product(
        DATABASES,
        WAYS,
        TABLES,
        SCHEMAS,
        ("all-schemas", "one-schema"),
        ("convention", "no-convention"),
    )
    if (combination := Combination(*values)).is_sensible
]
"""All combinations in which Alembic finds the tables."""


def cover_pairs(candidates: list[Combination]) -> list[Combination]:
    """Return a subset of the combinations that contains each pair of values."""
    chosen: list[Combination] = []
    remaining = {pair for combination in candidates for pair in combination.pairs}
    while remaining:
        chosen.append(max(candidates, key=lambda combination: len(combination.pairs & remaining)))
        remaining -= chosen[-1].pairs
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a subset of the combinations, or all of them with ``--whole-matrix``."""
    if "combination" in metafunc.fixturenames:
        candidates = (
            COMBINATIONS
            if metafunc.config.getoption("--whole-matrix")
            else cover_pairs(COMBINATIONS)
        )
        metafunc.parametrize("combination", candidates, ids=str)


@pytest.fixture
def database(combination: Combination) -> str:
    """The kind of the project's database."""
    return combination.database


@pytest.fixture
def project(tmp_path: Path, empty: URL) -> Project:
    """A project on an empty database of the combination's kind."""
    return make_project(tmp_path / "project", empty)


def options(combination: Combination) -> dict[str, Any]:
    """Return the arguments that a user passes to ``context.configure()``."""
    schemas = combination.schemas == "all-schemas"
    is_no_job_table = migrations.include_name_for(**combination.names)

    def include_name(name: Any, type_: Any, parents: Any) -> bool:
        if type_ == "schema":  # on MySQL the schemas are all databases of the server
            return name in {None, combination.schema}
        return combination.mapped or is_no_job_table(name, type_, parents)

    arguments: dict[str, Any] = {"include_schemas": schemas}
    return arguments | (
        {} if combination.mapped and not schemas else {"include_name": include_name}
    )


def tables(project: Project, combination: Combination) -> set[str]:
    """Return the names of those job tables that exist."""
    engine = create_engine(project.url, poolclass=NullPool)
    inspector = inspect(engine)
    schema = None if combination.database == "sqlite" else combination.schema
    found = set()
    if schema is None or inspector.has_schema(schema):
        found = set(inspector.get_table_names(schema=schema))
    return found & set(combination.tables.values())


def test_upgrade_downgrade_and_upgrade_again(project: Project, combination: Combination) -> None:
    """After each upgrade, autogenerate finds no difference."""
    convention = CONVENTION if combination.convention == "convention" else None
    models = USER_MODELS.format(convention=convention)
    if combination.mapped:
        models += MAPPED.format(schema=combination.schema, **combination.tables)
    (project.path / "models.py").write_text(models)
    attributes = {"options": options(combination)}
    if combination.way.startswith("versioned"):
        project.revision(
            ", ".join(f"{name}={value!r}" for name, value in combination.names.items())
        )
    elif combination.way == "autogenerate" and combination.schema is not None:
        source = CREATE_SCHEMA.format(schema=combination.schema)
        (project.versions / "0001_schema.py").write_text(source)
    project.succeed("upgrade", "heads", **attributes)
    project.succeed("revision", "-m", "own", "--autogenerate", **attributes)
    if combination.way == "branch":
        attributes["proletarian"] = combination.names
        project.ship_branch()
    for command in ("upgrade heads", "downgrade base", "upgrade heads"):
        project.succeed(*command.split(), **attributes)
        existing = tables(project, combination)
        assert existing == (set(combination.tables.values()) if command.startswith("up") else set())
        if existing:
            assert "No new upgrade operations" in project.succeed("check", **attributes)
