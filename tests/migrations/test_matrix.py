"""The ways to create the tables, on each database, with every sort of name.

Each goes up, is quiet, comes down to nothing, and goes up again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, NullPool, create_engine, inspect

from sqlalchemy_proletarian import migrations

from .conftest import Project, make_project

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


@dataclass(frozen=True)
class Layout:
    """Where the tables are."""

    table: str
    schema: str | None

    @property
    def names(self) -> dict[str, Any]:
        return {"table": self.table, "schema": self.schema}

    @property
    def all(self) -> dict[str, str]:
        running = "running" if self.table == "job" else f"running_{self.table}"
        return {"table": self.table, "archived": f"archived_{self.table}", "running": running}

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"


DEFAULT = Layout("job", "proletarian")
ODD = Layout('Od"d %(Job', 'My "Sche%ma')
PLAIN = Layout("email_job", None)
LONG = Layout("queue_of_the_messages_for_customers_in_distant_regions", None)

MAPPED_WAYS = ("versioned-mapped", "autogenerate")
WAYS = ("versioned", "branch", *MAPPED_WAYS)


def cells() -> Iterator[tuple[str, Layout, str, bool]]:
    """Return the database, the layout, the way, and whether all schemas are looked at."""
    for database, layout, ways, both in [
        ("postgresql", DEFAULT, WAYS, True),
        ("postgresql", ODD, WAYS, False),
        ("postgresql", LONG, MAPPED_WAYS, False),
        ("sqlite", PLAIN, WAYS, True),
        ("mariadb", DEFAULT, WAYS, True),
        ("mariadb", LONG, WAYS, False),
    ]:
        for way in ways:
            yield database, layout, way, True
            # Autogenerate does not find a table that was mapped in a schema it does not look at.
            if both and (layout.schema is None or way not in MAPPED_WAYS):
                yield database, layout, way, False


@pytest.fixture
def project(tmp_path: Path, empty: URL) -> Project:
    """A project on an empty database of the kind."""
    return make_project(tmp_path / "project", empty)


def options(layout: Layout, *, schemas: bool, hidden: bool) -> dict[str, Any]:
    """Return what a user gives to ``context.configure()``."""
    hide = migrations.include_name_for(**layout.names)

    def include_name(name: Any, type_: Any, parents: Any) -> bool:
        if type_ == "schema":  # on MariaDB they are all the databases of the server
            return name in {None, layout.schema}
        return not hidden or hide(name, type_, parents)

    given: dict[str, Any] = {"include_schemas": schemas}
    return given | ({"include_name": include_name} if hidden or schemas else {})


def tables(project: Project, layout: Layout) -> set[str]:
    """Return which of the tables are there."""
    engine = create_engine(project.url, poolclass=NullPool)
    inspector = inspect(engine)
    found = set()
    if layout.schema is None or inspector.has_schema(layout.schema):
        found = set(inspector.get_table_names(schema=layout.schema))
    return found & set(layout.all.values())


@pytest.mark.parametrize(
    ("database", "layout", "way", "schemas"),
    [pytest.param(*cell, id="-".join(map(str, cell))) for cell in cells()],
)
def test_up_quiet_down_up(
    project: Project, database: str, layout: Layout, way: str, *, schemas: bool
) -> None:
    """Upgrade, nothing left to do, downgrade, upgrade: in every combination."""
    mapped = way in MAPPED_WAYS
    models = OF_THE_USER.format(convention=CONVENTION if schemas else None)
    if mapped:
        models += MAPPED.format(schema=layout.schema, **layout.all)
    (project.path / "models.py").write_text(models)
    attributes = {"options": options(layout, schemas=schemas, hidden=not mapped)}
    if way.startswith("versioned"):
        project.revision(", ".join(f"{name}={value!r}" for name, value in layout.names.items()))
    elif way == "autogenerate" and layout.schema is not None:
        source = CREATE_SCHEMA.format(schema=layout.schema)
        (project.versions / "0001_schema.py").write_text(source)
    project.succeed("upgrade", "heads", **attributes)
    project.succeed("revision", "-m", "own", "--autogenerate", **attributes)
    if way == "branch":
        attributes["proletarian"] = layout.names
        project.ship_branch()
    for command in ("upgrade heads", "downgrade base", "upgrade heads"):
        project.succeed(*command.split(), **attributes)
        there = tables(project, layout)
        assert there == (set(layout.all.values()) if command.startswith("up") else set())
        if there:
            assert "No new upgrade operations" in project.succeed("check", **attributes)
