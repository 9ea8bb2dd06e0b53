"""Tests of tables in the default schema, and of Alembic's template for several databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import alembic
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, MetaData, create_engine, inspect, text

from sqlalchemy_proletarian import migrations

from .conftest import Project, make_project, run_alembic


@pytest.fixture
def project(tmp_path: Path, empty: URL) -> Project:
    """A project on an empty database."""
    return make_project(tmp_path / "project", empty)


def tables_to_drop(project: Project, url: URL, **options: Any) -> list[str]:
    """Return the tables that autogenerate would drop when it connects with another URL."""
    output = Project(project.path, url).alembic("check", options=options).stdout
    found = {part.split("'")[0] for part in output.split("('remove_table', Table('")[1:]}
    return sorted(found - {"alembic_version"})


@pytest.mark.parametrize("database", ["postgresql"])
@pytest.mark.parametrize("include_schemas", [True, False])
@pytest.mark.parametrize(
    "names", [{}, {"table": "mail", "schema": "MailRoom"}], ids=["default names", "own names"]
)
def test_a_search_path(
    project: Project, database: str, include_schemas: bool, names: dict[str, Any]
) -> None:
    """The job tables are hidden with any search path; a user's table of the same name is not."""
    project.revision(", ".join(f"{name}={value!r}" for name, value in names.items()))
    project.succeed("upgrade", "head")
    schema, table = names.get("schema", "proletarian"), names.get("table", "job")
    engine = create_engine(project.url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE public.{table} (id integer)"))
        connection.execute(text(f'CREATE TABLE "{schema}".users (id integer)'))
    engine.dispose()
    library_url = project.url.update_query_dict({"options": f'-csearch_path="{schema}"'})
    options = {
        "include_schemas": include_schemas,
        "include_name": migrations.include_name_for(**names),
        "version_table_schema": "public",
    }
    assert tables_to_drop(project, library_url, **options) == (
        [table] if include_schemas else []
    ) + ["users"]
    user_tables = tables_to_drop(project, project.url, **options)
    assert user_tables == ([table, "users"] if include_schemas else [table])


@pytest.mark.parametrize("database", ["mariadb", "mysql"])
def test_tables_in_the_default_database_of_the_url_are_hidden(
    project: Project, database: str
) -> None:
    """On MySQL the URL may name the database that contains the job tables."""
    project.revision()
    project.succeed("upgrade", "head")
    library_url = project.url.set(database="proletarian")
    assert tables_to_drop(project, library_url, include_name=migrations.include_name) == []


@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_the_filter_works_without_an_alembic_environment(project: Project, database: str) -> None:
    """If the filter does not know the default schema, it hides the tables in any schema."""
    project.revision()
    project.succeed("upgrade", "head")
    query = {"options": "-csearch_path=proletarian,public"} if database == "postgresql" else {}
    engine = create_engine(project.url.update_query_dict(query))
    with engine.connect() as connection:
        options = {"include_schemas": True, "include_name": migrations.include_name}
        context = MigrationContext.configure(connection, opts=options)
        assert "job" not in str(compare_metadata(context, MetaData()))
    engine.dispose()


TABLES = {"mail", "archived_mail", "running_mail", "paused_mail", "recurring_mail", "places_mail"}
MULTIDB = Path(alembic.__file__).parent / "templates" / "multidb"


def test_each_database_of_the_multidb_template_gets_the_tables(
    tmp_path: Path, empty_database: URL
) -> None:
    """Alembic's template passes the name of the database to each revision."""
    path = tmp_path / "project"
    project = make_project(path, empty_database)
    source = (MULTIDB / "env.py").read_text()
    source = source.replace("fileConfig(config.config_file_name)", "pass")
    assert "run_migrations(engine_name=name)" in source
    (path / "migrations" / "env.py").write_text(source)
    project.ship_branch()
    ini = path / "alembic.ini"
    urls = {
        "engine1": empty_database.render_as_string(hide_password=False).replace("%", "%%"),
        "engine2": f"sqlite:///{tmp_path / 'second.db'}",
    }
    sections = "".join(f"\n[{name}]\nsqlalchemy.url = {url}\n" for name, url in urls.items())
    ini.write_text(f"{ini.read_text()}databases = engine1, engine2\n{sections}")
    names: dict[str, Any] = {"table": "mail", "schema": None}

    def tables(url: str) -> set[str]:
        engine = create_engine(url.replace("%%", "%"))
        found = set(inspect(engine).get_table_names()) - {"alembic_version"}
        engine.dispose()
        return found

    for command, target in (("upgrade", "heads"), ("downgrade", "proletarian@base")):
        answer = run_alembic(path, command, target, proletarian=names)
        assert answer.returncode == 0, answer.stdout
        expected = TABLES if command == "upgrade" else set()
        assert [tables(url) for url in urls.values()] == [expected, expected]
