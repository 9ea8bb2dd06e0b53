"""Tests of the versioned functions that a user's revision calls."""

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
from sqlalchemy_proletarian.models import (
    ArchivedJobMixin,
    Base,
    JobMixin,
    LimitPlaceMixin,
    PausedQueueMixin,
    RecurringJobMixin,
    RunningJobMixin,
)

from .conftest import Project, catalog

TABLES = {"job", "archived_job", "running", "paused_queue", "recurring", "limit_place"}


@contextmanager
def operations(engine: Engine) -> Generator[Connection, None, None]:
    """Make Alembic's ``op`` use a transaction of the engine, as in a revision."""
    with (
        engine.begin() as connection,
        Operations.context(MigrationContext.configure(connection)),
    ):
        yield connection


def models(table: str, schema: str | None) -> MetaData:
    """Map the mixins to tables with other names, as a user would."""

    class OwnBase(DeclarativeBase):
        metadata = MetaData(schema=schema)

    type("OwnJob", (JobMixin, OwnBase), {"__tablename__": table})
    type("OwnArchivedJob", (ArchivedJobMixin, OwnBase), {"__tablename__": f"archived_{table}"})
    type("OwnRunningJob", (RunningJobMixin, OwnBase), {"__tablename__": f"running_{table}"})
    type("OwnPaused", (PausedQueueMixin, OwnBase), {"__tablename__": f"paused_{table}"})
    type("OwnRecurring", (RecurringJobMixin, OwnBase), {"__tablename__": f"recurring_{table}"})
    type("OwnPlace", (LimitPlaceMixin, OwnBase), {"__tablename__": f"places_{table}"})
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
def test_the_migrations_build_the_tables_of_the_models(
    empty_engine: Engine, metadata: MetaData, names: dict[str, Any]
) -> None:
    """PostgreSQL's catalog has equal columns and indexes after migrating and ``create_all()``."""
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


def test_only_the_running_table_is_unlogged(empty_engine: Engine) -> None:
    """The jobs survive a crash of the server."""
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
            "paused_queue": "p",
            "recurring": "p",
            "limit_place": "p",
        }


def test_on_sqlite_the_tables_match_the_models() -> None:
    """On SQLite the tables have no schema."""
    engine = create_engine("sqlite://")
    metadata = models("task", None)
    with operations(engine) as connection:
        migrations.upgrade(1, table="task", schema=None)
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        migrations.downgrade(0, table="task", schema=None)
        assert inspect(connection).get_table_names() == []
    engine.dispose()


def test_a_revision_of_the_user_can_be_upgraded_and_downgraded(
    project: Project, empty_engine: Engine
) -> None:
    """Alembic's command line runs the revision up, down and up again."""
    project.revision('table="email_job", schema="mail"')
    for command in (["upgrade", "head"], ["downgrade", "base"], ["upgrade", "head"]):
        project.succeed(*command)
        with empty_engine.connect() as connection:
            tables = set(inspect(connection).get_table_names(schema="mail"))
        expected = {
            "email_job",
            "archived_email_job",
            "running_email_job",
            "paused_email_job",
            "recurring_email_job",
            "places_email_job",
        }
        assert tables == (expected if command[0] == "upgrade" else set())


def test_autogenerate_finds_no_difference_for_mapped_tables(project: Project) -> None:
    """Autogenerate compares the migrated tables with the models."""
    (project.path / "models.py").write_text(
        "from sqlalchemy_proletarian.models import Base\n\nmetadata = Base.metadata\n"
    )
    project.revision()
    project.succeed("upgrade", "head")
    checked = project.succeed("check", options={"include_schemas": True})
    assert "No new upgrade operations" in checked


def test_the_offline_scripts_create_and_drop_the_same_tables(
    project: Project, empty_engine: Engine
) -> None:
    """The scripts come from ``alembic upgrade --sql`` and ``alembic downgrade --sql``."""
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


def test_the_shipped_branch_runs_in_a_users_project(project: Project) -> None:
    """The library's revisions are a separate branch of the user's history."""
    project.ship_branch()
    project.succeed("upgrade", "proletarian@head")
    assert "proletarian_0001 (proletarian)" in project.succeed("heads")
    assert project.succeed("current").startswith("proletarian_0001")
    project.succeed("downgrade", "proletarian@base")


@pytest.mark.parametrize("include_schemas", [True, False])
def test_include_name_hides_the_job_tables(
    project: Project, empty_engine: Engine, include_schemas: bool
) -> None:
    """With the filter, autogenerate ignores the job tables and still finds the user's tables."""
    schema = "proletarian" if include_schemas else None
    project.revision(f"schema={schema!r}")
    project.succeed("upgrade", "head")
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version_proletarian (version_num text)"))
    options = {"include_schemas": include_schemas}
    filtered = options | {"include_name": migrations.include_name_for(schema=schema)}
    unfiltered = project.alembic("check", options=options).stdout
    for table in TABLES:
        assert f"('remove_table', Table('{table}'" in unfiltered
    project.succeed("check", options=filtered)
    with empty_engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {schema or 'public'}.of_the_user (id int)"))
    output = project.alembic("check", options=filtered).stdout
    assert "('remove_table', Table('of_the_user'" in output
    assert output.count("remove_table") == 1


def test_include_name_hides_only_the_default_tables() -> None:
    """``include_name`` hides the tables with default names in the default schema only."""
    ours: Any = {"schema_name": "proletarian"}
    theirs: Any = {"schema_name": "shop"}
    assert not any(migrations.include_name(name, "table", ours) for name in TABLES)
    assert all(migrations.include_name(name, "table", theirs) for name in TABLES)
    assert migrations.include_name("job", "column", ours)
    assert migrations.include_name("proletarian", "schema", {})
    assert not migrations.include_name(migrations.VERSION_TABLE, "table", theirs)


def test_downgrade_drops_the_default_schema_when_empty(empty_engine: Engine) -> None:
    """The downgrade to version 0 also drops the library's schema."""
    with operations(empty_engine) as connection:
        migrations.upgrade(1)
        migrations.downgrade(0)
        assert not inspect(connection).has_schema("proletarian")


@pytest.mark.parametrize(
    "object_",
    [
        "TABLE proletarian.precious (id int)",
        "FUNCTION proletarian.precious() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "TYPE proletarian.precious AS ENUM ('a')",
    ],
    ids=["table", "function", "type"],
)
def test_downgrade_does_not_drop_other_objects_in_the_schema(
    empty_engine: Engine, object_: str
) -> None:
    """The downgrade succeeds and keeps a schema that is not empty."""
    with operations(empty_engine) as connection:
        migrations.upgrade(1)
        connection.execute(text(f"CREATE {object_}"))
        migrations.downgrade(0)
        connection.execute(text(f"DROP {object_.partition(' ')[0]} proletarian.precious"))
        assert inspect(connection).has_schema("proletarian")
        assert inspect(connection).get_table_names(schema="proletarian") == []


def test_downgrade_keeps_a_schema_named_by_the_user(empty_engine: Engine) -> None:
    """Such a schema is kept even if it is empty."""
    with operations(empty_engine) as connection:
        migrations.upgrade(1, schema="mail")
        migrations.downgrade(0, schema="mail")
        assert inspect(connection).has_schema("mail")


def test_an_existing_schema_needs_no_privilege_to_create_one(empty_engine: Engine) -> None:
    """A role that may not create schemas can upgrade and downgrade in an existing schema."""
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
        ({"archived_table": "job"}, "the tables need different names"),
        ({"archived_table": "running"}, "the tables need different names"),
        ({"paused_table": "running"}, "the tables need different names"),
        ({"recurring_table": "running"}, "the tables need different names"),
    ],
)
@pytest.mark.parametrize("function", [migrations.upgrade, migrations.downgrade])
def test_invalid_arguments_are_rejected(
    function: Any, arguments: dict[str, Any], message: str
) -> None:
    """The database is not changed, and the message describes the error."""
    with pytest.raises(ValueError, match=message):
        function(**arguments)


def test_a_name_that_postgresql_would_truncate_is_rejected(empty_engine: Engine) -> None:
    """No table is created, and the message has the name."""
    with operations(empty_engine) as connection:
        with pytest.raises(ValueError, match=r"'recurring_x{54}' is too long: .* 63 bytes"):
            migrations.upgrade(1, table="x" * 54, schema=None)
        assert inspect(connection).get_table_names() == []


def test_upgrade_and_downgrade_reject_the_wrong_direction() -> None:
    """An upgrade must not end at a lower version, and a downgrade must not end at a higher one."""
    with pytest.raises(ValueError, match="an upgrade from version 1 cannot end at version 0"):
        migrations.upgrade(0, from_version=1)
    with pytest.raises(ValueError, match="a downgrade from version 0 cannot end at version 1"):
        migrations.downgrade(1, from_version=0)


def test_the_shipped_environment_runs_with_a_url_only(
    project: Project, empty_engine: Engine
) -> None:
    """The alembic.ini needs only ``script_location`` and ``sqlalchemy.url``."""
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
