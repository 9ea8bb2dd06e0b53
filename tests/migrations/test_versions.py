"""The versioned functions, called from a revision of the user's own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Connection,
    Engine,
    MetaData,
    create_engine,
    inspect,
    text,
)
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.schema import CreateSchema

from sqlalchemy_proletarian import migrations
from sqlalchemy_proletarian.models import ArchivedJobMixin, Base, JobMixin, RunningJobMixin

from .conftest import Project, catalog

TABLES = {"job", "archived_job", "running"}


@contextmanager
def operations(engine: Engine) -> Generator[Connection, None, None]:
    """Let Alembic's ``op`` work on a transaction of the engine, as in a revision."""
    with (
        engine.begin() as connection,
        Operations.context(MigrationContext.configure(connection)),
    ):
        yield connection


def models(table: str, schema: str | None) -> MetaData:
    """Map the mixins to tables of other names, as a user would."""

    class OwnBase(DeclarativeBase):
        metadata = MetaData(schema=schema)

    type("OwnJob", (JobMixin, OwnBase), {"__tablename__": table})
    type("OwnArchivedJob", (ArchivedJobMixin, OwnBase), {"__tablename__": f"archived_{table}"})
    type("OwnRunningJob", (RunningJobMixin, OwnBase), {"__tablename__": f"running_{table}"})
    return OwnBase.metadata


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        pytest.param(Base.metadata, {}, id="default"),
        pytest.param(
            models("email_job", "mail"), {"table": "email_job", "schema": "mail"}, id="named"
        ),
        pytest.param(models("task", None), {"table": "task", "schema": None}, id="no schema"),
        pytest.param(
            models('Od"d Job', 'My "Schema'),
            {"table": 'Od"d Job', "schema": 'My "Schema'},
            id="quoted",
        ),
    ],
)
def test_latest_version_is_the_models(
    empty_engine: Engine, metadata: MetaData, names: dict[str, Any]
) -> None:
    """The steps together build what the models declare, to the last detail of the catalog."""
    schema = metadata.schema or "public"
    with operations(empty_engine) as connection:
        migrations.upgrade(migrations.LATEST_VERSION, **names)
        migrated = catalog(connection, schema)
        migrations.downgrade(0, from_version=migrations.LATEST_VERSION, **names)
        assert catalog(connection, schema) == {}
        connection.execute(CreateSchema(schema, if_not_exists=True))
        metadata.create_all(connection)
        declared = catalog(connection, schema)
    assert len(declared) == len(TABLES)
    assert migrated == declared


def test_running_is_unlogged(empty_engine: Engine) -> None:
    """Only the table of markers is UNLOGGED: the jobs survive a crash of the server."""
    with operations(empty_engine) as connection:
        migrations.upgrade(1)
        rows = connection.execute(
            text(
                "SELECT relname, relpersistence FROM pg_class WHERE relkind = 'r' "
                "AND relnamespace = 'proletarian'::regnamespace"
            )
        )
        assert {row.relname: row.relpersistence for row in rows} == {
            "job": "p",
            "archived_job": "p",
            "running": "u",
        }


def test_sqlite() -> None:
    """On SQLite the same calls build plain tables, without a schema, that match the models."""
    engine = create_engine("sqlite://")
    metadata = models("task", None)
    with operations(engine) as connection:
        migrations.upgrade(1, table="task", schema=None)
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        migrations.downgrade(0, table="task", schema=None)
        assert inspect(connection).get_table_names() == []
    engine.dispose()


def test_own_revision(project: Project, empty_engine: Engine) -> None:
    """A revision of the user's own goes up, down and up again through Alembic's command line."""
    project.revision('table="email_job", schema="mail"')
    for command in (["upgrade", "head"], ["downgrade", "base"], ["upgrade", "head"]):
        project.succeed(*command)
        with empty_engine.connect() as connection:
            tables = set(inspect(connection).get_table_names(schema="mail"))
        up = {"email_job", "archived_email_job", "running_email_job"}
        assert tables == (up if command[0] == "upgrade" else set())


def test_autogenerate_is_quiet_for_mapped_tables(project: Project) -> None:
    """Tables that the user maps with the mixins are as autogenerate wants them."""
    (project.path / "models.py").write_text(
        "from sqlalchemy_proletarian.models import Base\n\nmetadata = Base.metadata\n"
    )
    project.revision()
    project.succeed("upgrade", "head")
    checked = project.succeed("check", options={"include_schemas": True})
    assert "No new upgrade operations" in checked


def test_offline_script(project: Project, empty_engine: Engine) -> None:
    """The script of ``alembic upgrade --sql`` builds the same tables; its reverse drops them."""
    project.revision()
    up = project.succeed("upgrade", "head", "--sql")
    down = project.succeed("downgrade", "0001:base", "--sql")
    with empty_engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(up)
        by_script = catalog(connection, "proletarian")
        connection.exec_driver_sql(down)
        assert not inspect(connection).has_schema("proletarian")
    with operations(empty_engine) as connection:
        migrations.upgrade(1)
        assert catalog(connection, "proletarian") == by_script


def test_shipped_branch(project: Project) -> None:
    """The revisions that come with the library run as a branch of the user's history."""
    project.ship_branch()
    project.succeed("upgrade", "proletarian@head")
    assert "proletarian_0001 (proletarian)" in project.succeed("heads")
    assert project.succeed("current").startswith("proletarian_0001")
    project.succeed("downgrade", "proletarian@base")


@pytest.mark.parametrize("include_schemas", [True, False])
def test_include_name_hides_our_tables(
    project: Project, empty_engine: Engine, include_schemas: bool
) -> None:
    """With the filter autogenerate does not touch our tables, and sees the user's as before."""
    schema = "proletarian" if include_schemas else None
    project.revision(f"schema={schema!r}")
    project.succeed("upgrade", "head")
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version_proletarian (version_num text)"))
    given = {"include_schemas": include_schemas}
    filtered = given | {"include_name": migrations.include_name_for(schema=schema)}
    unfiltered = project.alembic("check", options=given).stdout
    for table in TABLES:
        assert f"('remove_table', Table('{table}'" in unfiltered
    project.succeed("check", options=filtered)
    with empty_engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {schema or 'public'}.of_the_user (id int)"))
    seen = project.alembic("check", options=filtered).stdout
    assert "('remove_table', Table('of_the_user'" in seen
    assert seen.count("remove_table") == 1


def test_default_filter_is_for_default_names() -> None:
    """``include_name`` hides the default tables where they are by default, and nothing else."""
    ours: Any = {"schema_name": "proletarian"}
    theirs: Any = {"schema_name": "shop"}
    assert not any(migrations.include_name(name, "table", ours) for name in TABLES)
    assert all(migrations.include_name(name, "table", theirs) for name in TABLES)
    assert migrations.include_name("job", "column", ours)
    assert migrations.include_name("proletarian", "schema", {})
    assert not migrations.include_name(migrations.VERSION_TABLE, "table", theirs)


def test_downgrade_drops_the_default_schema_when_empty(empty_engine: Engine) -> None:
    """The last downgrade leaves no trace of the library."""
    with operations(empty_engine) as connection:
        migrations.upgrade(1)
        migrations.downgrade(0)
        assert not inspect(connection).has_schema("proletarian")


@pytest.mark.parametrize(
    "thing",
    [
        "TABLE proletarian.precious (id int)",
        "FUNCTION proletarian.precious() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "TYPE proletarian.precious AS ENUM ('a')",
    ],
    ids=["table", "function", "type"],
)
def test_downgrade_never_drops_what_is_not_ours(empty_engine: Engine, thing: str) -> None:
    """A schema in which anything else is left stays, and the downgrade succeeds."""
    with operations(empty_engine) as connection:
        migrations.upgrade(1)
        connection.execute(text(f"CREATE {thing}"))
        migrations.downgrade(0)
        connection.execute(text(f"DROP {thing.partition(' ')[0]} proletarian.precious"))
        assert inspect(connection).has_schema("proletarian")
        assert inspect(connection).get_table_names(schema="proletarian") == []


def test_named_schema_stays(empty_engine: Engine) -> None:
    """A schema that the user named is not dropped, even empty."""
    with operations(empty_engine) as connection:
        migrations.upgrade(1, schema="mail")
        migrations.downgrade(0, schema="mail")
        assert inspect(connection).has_schema("mail")


def test_existing_schema_needs_no_right_to_create_one(empty_engine: Engine) -> None:
    """A role that owns its schema, and may not create any, can run the migration both ways."""
    role = f"restricted_{empty_engine.url.database}"
    with empty_engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
    try:
        with operations(empty_engine) as connection:
            connection.execute(text("CREATE SCHEMA proletarian"))
            connection.execute(text(f"GRANT ALL ON SCHEMA proletarian TO {role}"))
            connection.execute(text(f"SET LOCAL ROLE {role}"))
            migrations.upgrade(1)
            migrations.downgrade(0)
            assert inspect(connection).has_schema("proletarian")
    finally:
        with empty_engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": 2}, "there is no version 2 .* knows 0 .* to 1"),
        ({"version": -1}, "there is no version -1"),
        ({"version": True}, "there is no version True"),
        ({"version": "1"}, "there is no version '1'"),
        ({"from_version": 9}, "there is no version 9"),
        ({"version": 1, "from_version": 1}, "from version 1 cannot end at version 1"),
        ({"version": 0, "from_version": 0}, "from version 0 cannot end at version 0"),
        ({"table": ""}, "table must be a non-empty string, not ''"),
        ({"table": 1}, "table must be a non-empty string, not 1"),
        ({"archived_table": " "}, "archived_table must be a non-empty string"),
        ({"running_table": b"x"}, "running_table must be a non-empty string"),
        ({"schema": ""}, "schema must be a non-empty string"),
        ({"archived_table": "job"}, "three tables need three different names"),
        ({"archived_table": "running"}, "three tables need three different names"),
    ],
)
@pytest.mark.parametrize("function", [migrations.upgrade, migrations.downgrade])
def test_bad_input(function: Any, arguments: dict[str, Any], message: str) -> None:
    """Bad input is refused before anything is done, and the message says what is wrong."""
    with pytest.raises(ValueError, match=message):
        function(**arguments)


def test_name_that_would_be_cut_off(empty_engine: Engine) -> None:
    """A table whose name PostgreSQL would cut off is not made, and the message names it."""
    with operations(empty_engine) as connection:
        with pytest.raises(ValueError, match=r"'archived_x{55}' is too long: .* 63 bytes"):
            migrations.upgrade(1, table="x" * 55, schema=None)
        assert inspect(connection).get_table_names() == []


def test_wrong_direction() -> None:
    """An upgrade does not go down, nor a downgrade up."""
    with pytest.raises(ValueError, match="an upgrade from version 1 cannot end at version 0"):
        migrations.upgrade(0, from_version=1)
    with pytest.raises(ValueError, match="a downgrade from version 0 cannot end at version 1"):
        migrations.downgrade(1, from_version=0)


def test_env_with_a_url_of_its_own(project: Project, empty_engine: Engine) -> None:
    """The shipped environment also runs from an alembic.ini that has nothing but a URL."""
    url = project.url.render_as_string(hide_password=False).replace("%", "%%")
    location = migrations.__path__[0]
    (project.path / "alembic.ini").write_text(
        f"[alembic]\nscript_location = {location}\nsqlalchemy.url = {url}\n"
    )
    project.succeed("upgrade", "head")
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE TABLE of_the_user (id int)"))
    project.succeed("check")
    with empty_engine.connect() as connection:
        assert set(inspect(connection).get_table_names(schema="proletarian")) == TABLES
    (project.path / "alembic.ini").write_text(f"[alembic]\nscript_location = {location}\n")
    with pytest.raises(ValueError, match="to a connection, or set the option"):
        project.alembic("upgrade", "head")
