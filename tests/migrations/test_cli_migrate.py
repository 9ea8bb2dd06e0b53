"""Tests of the ``proletarian migrate`` command, run as a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, inspect, text
from sqlalchemy.exc import ArgumentError

from sqlalchemy_proletarian import migrate
from sqlalchemy_proletarian.migrations import VERSION_TABLE
from sqlalchemy_proletarian.models import Base

from .conftest import catalog

COMMAND = [sys.executable, "-m", "sqlalchemy_proletarian.cli"]


def run(*arguments: str, url: URL | str | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``proletarian`` with the arguments; the URL is passed in the environment."""
    if isinstance(url, URL):
        url = url.render_as_string(hide_password=False)
    environment = {k: v for k, v in os.environ.items() if k != "PROLETARIAN_URL"}
    if url is not None:
        environment["PROLETARIAN_URL"] = url
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def assert_fails_with_one_line(result: subprocess.CompletedProcess[str]) -> None:
    """Check that the command failed with exit code 1 and one line without the password."""
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "s3cret" not in result.stdout + result.stderr


def test_upgrade_check_and_downgrade(empty_database: URL, empty_engine: Engine) -> None:
    """``upgrade`` creates the tables, ``check`` accepts them and ``downgrade 0`` drops them."""
    plain = empty_database.set(drivername="postgresql").render_as_string(hide_password=False)
    for command, output in [
        (["upgrade"], "The job tables are at version 1.\n"),
        (["upgrade"], "The job tables are at version 1.\n"),
        (["check"], "The job tables match version 1.\n"),
        (["downgrade", "0"], "The tables were dropped.\n"),
        (["downgrade", "0"], "The tables were dropped.\n"),
        (["upgrade", "1"], "The job tables are at version 1.\n"),
    ]:
        result = run("migrate", *command, "--url", plain)
        assert (result.returncode, result.stdout, result.stderr) == (0, output, "")
        left = inspect(empty_engine).get_table_names()
        assert left == ([] if "downgrade" in command else [VERSION_TABLE])
    assert len(inspect(empty_engine).get_table_names(schema="proletarian")) == 6


def test_concurrent_upgrades_all_succeed(empty_database: URL) -> None:
    """Several replicas of an application may migrate at the same time when they start."""
    url = empty_database.render_as_string(hide_password=False)
    replicas = [
        subprocess.Popen(
            [*COMMAND, "migrate", "upgrade", "--url", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(4)
    ]
    outputs = [replica.communicate()[0] for replica in replicas]
    assert outputs == ["The job tables are at version 1.\n"] * len(replicas)


def test_the_sql_scripts_are_equivalent_to_upgrade_and_downgrade(
    empty_database: URL, empty_engine: Engine
) -> None:
    """The scripts also set the version, so that ``upgrade`` continues from there."""
    up = run("migrate", "sql")
    down = run("migrate", "sql", "0", "--from-version", "1")
    assert (up.stderr, down.stderr) == ("", "")
    with empty_engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(up.stdout)
        by_script = catalog(connection, "proletarian")
        assert run("migrate", "upgrade", url=empty_database).returncode == 0
        connection.exec_driver_sql(down.stdout)
        assert not inspect(connection).has_schema("proletarian")
        assert run("migrate", "upgrade", url=empty_database).returncode == 0
        assert catalog(connection, "proletarian") == by_script


def test_sql_does_not_connect_to_the_database() -> None:
    """``sql`` uses the URL only to choose the dialect."""
    result = run("migrate", "sql", url="postgresql://nobody:s3cret@nowhere.invalid/x")
    assert result.returncode == 0
    assert "CREATE UNLOGGED TABLE proletarian.running" in result.stdout
    assert "s3cret" not in result.stdout
    no_steps = run("migrate", "sql", "1", "--from-version", "1")
    assert no_steps.returncode == 2
    assert "the tables would stay at version 1" in no_steps.stderr


def test_check_reports_missing_tables(empty_database: URL) -> None:
    """The message names the command that creates the tables."""
    result = run("migrate", "check", url=empty_database)
    assert result.returncode == 1
    for table in Base.metadata.tables:
        assert f"  table {table} is missing\n" in result.stderr
    assert "index" not in result.stderr
    assert "run 'proletarian migrate upgrade'" in result.stderr


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("DROP INDEX proletarian.ix_job_claim", "index ix_job_claim on proletarian.job is missing"),
        (
            "CREATE INDEX extra ON proletarian.job (error)",
            "index extra on proletarian.job is not in the models",
        ),
        (
            "ALTER TABLE proletarian.archived_job DROP COLUMN error",
            "column error of proletarian.archived_job is missing",
        ),
        (
            "ALTER TABLE proletarian.running ADD COLUMN extra int",
            "column extra of proletarian.running is not in the models",
        ),
        (
            "ALTER TABLE proletarian.job ALTER COLUMN queue DROP NOT NULL",
            "column queue of proletarian.job: nullable is True, should be False",
        ),
        (
            "ALTER TABLE proletarian.job ALTER COLUMN attempts TYPE bigint",
            "column attempts of proletarian.job: type is BIGINT, should be INTEGER",
        ),
        (
            "ALTER TABLE proletarian.job ALTER COLUMN priority SET DEFAULT 3",
            "column priority of proletarian.job: default is 3, should be 5",
        ),
        ("DROP TABLE proletarian.running", "table proletarian.running is missing"),
        (
            "ALTER TABLE proletarian.job ADD CONSTRAINT extra UNIQUE (error)",
            "remove_constraint UniqueConstraint",
        ),
        (
            (
                "DROP INDEX proletarian.ux_job_unique_key;"
                "CREATE UNIQUE INDEX ux_job_unique_key ON proletarian.job (queue, unique_key)"
            ),
            (
                "index ux_job_unique_key on proletarian.job: "
                "condition is none, should be unique_key IS NOT NULL"
            ),
        ),
        (
            "ALTER TABLE proletarian.running SET LOGGED",
            "table proletarian.running is logged, should be UNLOGGED",
        ),
        (
            "ALTER TABLE proletarian.archived_job SET UNLOGGED",
            "table proletarian.archived_job is UNLOGGED, should be logged: a crash",
        ),
    ],
)
def test_check_reports_tables_changed_by_hand(
    empty_database: URL, empty_engine: Engine, change: str, difference: str
) -> None:
    """Each difference is reported, with a remedy."""
    migrate.upgrade(empty_database)
    assert migrate.check(empty_database) == migrate.CheckResult()
    with empty_engine.begin() as connection:
        connection.exec_driver_sql(change)
    result = migrate.check(empty_database)
    assert len(result.differences) == 1
    assert difference in result.differences[0]
    assert result.remedy is not None
    assert "does not repair" in result.remedy


def test_check_compares_partial_indexes_on_sqlite(tmp_path: Path) -> None:
    """The condition of a partial index is compared on each database that has partial indexes."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    migrate.upgrade(url)
    assert migrate.check(url) == migrate.CheckResult()
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ux_job_unique_key")
        connection.exec_driver_sql("CREATE UNIQUE INDEX ux_job_unique_key ON job(queue,unique_key)")
    assert migrate.check(url).differences == (
        "index ux_job_unique_key on job: condition is none, should be unique_key IS NOT NULL",
    )


def test_tables_made_by_create_all_pass_the_check(
    empty_database: URL, empty_engine: Engine
) -> None:
    """``create_all()`` creates the same tables as the migrations."""
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA proletarian"))
        Base.metadata.create_all(connection)
    assert migrate.check(empty_database) == migrate.CheckResult()


def test_check_ignores_other_tables(empty_database: URL, empty_engine: Engine) -> None:
    """Tables of the same name in other schemas and other tables in the schema are ignored."""
    migrate.upgrade(empty_database)
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE TABLE job (id int)"))
        connection.execute(text("CREATE TABLE proletarian.invoice (id int)"))
        connection.execute(text("CREATE SCHEMA other CREATE TABLE archived_job (id int)"))
    assert migrate.check(empty_database) == migrate.CheckResult()


def test_check_finds_the_tables_in_the_default_schema(empty_database: URL) -> None:
    """The tables may be in the default schema of the connection."""
    migrate.upgrade(empty_database)
    url = empty_database.update_query_dict({"options": "-csearch_path=proletarian"})
    assert migrate.check(url) == migrate.CheckResult()


def test_tables_of_a_later_version_are_left_unchanged(
    empty_database: URL, empty_engine: Engine
) -> None:
    """An older release that migrates when it starts does not change the tables of a newer one."""
    migrate.upgrade(empty_database)
    with empty_engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = 'proletarian_0007'"))
    result = run("migrate", "upgrade", url=empty_database)
    assert result.returncode == 0, result.stderr
    assert "at version 7, which is later than this release's 1" in result.stdout
    assert migrate.check(empty_database) == migrate.CheckResult()
    result = run("migrate", "downgrade", "0", url=empty_database)
    assert_fails_with_one_line(result)
    assert "at version 7, but this release can downgrade from version 1 at most" in result.stderr
    assert migrate.check(empty_database) == migrate.CheckResult()


def test_a_role_without_create_privilege_gets_a_hint(
    empty_database: URL, empty_engine: Engine
) -> None:
    """The error is one line and names the missing privilege."""
    role = f"restricted_{empty_database.database}"
    with empty_engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
    try:
        url = empty_database.update_query_dict({"options": f"-crole={role}"})
        result = run("migrate", "upgrade", url=url)
        assert_fails_with_one_line(result)
        assert "permission denied for" in result.stderr
        assert "ask an administrator to GRANT CREATE on it to the role" in result.stderr
    finally:
        with empty_engine.begin() as connection:
            connection.execute(text(f"DROP ROLE {role}"))


def test_tables_created_or_dropped_by_other_means_are_reported(
    empty_database: URL, empty_engine: Engine
) -> None:
    """``upgrade`` with existing tables and ``downgrade`` without tables fail with one line."""
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA proletarian"))
        Base.metadata.create_all(connection)
    result = run("migrate", "upgrade", url=empty_database)
    assert_fails_with_one_line(result)
    assert 'relation "job" already exists (the tables were created by other' in result.stderr
    with empty_engine.begin() as connection:
        Base.metadata.drop_all(connection)
    assert run("migrate", "upgrade", url=empty_database).returncode == 0
    with empty_engine.begin() as connection:
        Base.metadata.drop_all(connection)
    result = run("migrate", "downgrade", "0", url=empty_database)
    assert_fails_with_one_line(result)
    assert "some or all of the tables do not exist" in result.stderr


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://someone:s3cret@127.0.0.1:1/x", "Connection refused"),
        ("postgres://someone:s3cret@127.0.0.1:1/x", "Connection refused"),
        ("postgresql+asyncpg://someone:s3cret@127.0.0.1:1/x", "Connection refused"),
        ("postgresql://u:s3cret@/x?host=127.0.0.1:1&host=127.0.0.2:1", "Connection refused"),
        ("someone:s3cret@nowhere", "this is not a database URL"),
        ("postgresql://someone:s3cret@nowhere:port/x", "this is not a database URL"),
        ("postgresql://someone:s3@s3cret@nowhere/x", "write an @ in the password"),
        ("nosuch://someone:s3cret@nowhere/x", "no SQLAlchemy dialect 'nosuch'"),
    ],
)
def test_errors_of_urls_do_not_show_the_password(url: str, message: str) -> None:
    """An invalid URL or an unreachable server results in one line without the password."""
    result = run("migrate", "check", "--url", url)
    assert_fails_with_one_line(result)
    assert message in result.stderr


@pytest.mark.parametrize("command", [["upgrade"], ["downgrade", "0"], ["check"]])
def test_a_missing_database_is_reported(command: list[str], empty_database: URL) -> None:
    """Each command prints the server's message."""
    result = run("migrate", *command, url=empty_database.set(database="no_such_database"))
    assert_fails_with_one_line(result)
    assert 'database "no_such_database" does not exist' in result.stderr


def test_missing_and_invalid_arguments_are_reported() -> None:
    """Without a URL, the message names the option and the variable."""
    result = run("migrate", "upgrade")
    assert result.returncode == 2
    assert "there is no database URL: pass --url" in result.stderr
    assert "PROLETARIAN_URL" in result.stderr
    result = run("migrate", "upgrade", "2", "--url", "postgresql://x")
    assert result.returncode == 2
    assert "2 is not in the range" in result.stderr
    assert "Missing argument 'VERSION'" in run("migrate", "downgrade").stderr


def test_the_version_option_prints_the_package_version() -> None:
    assert run("--version").stdout == "proletarian, version 0.1.0\n"


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg", "postgresql+asyncpg"])
def test_the_functions_accept_any_driver_in_the_url(driver: str, empty_database: URL) -> None:
    """The functions accept the application's URL as text, with a sync or an async driver."""
    url = empty_database.set(drivername=driver).render_as_string(hide_password=False)
    migrate.upgrade(url, 1)
    assert not migrate.check(url).differences
    migrate.downgrade(url)
    assert migrate.check(url).differences
    not_a_url: Any = "no_steps"
    with pytest.raises(ArgumentError):
        migrate.check(not_a_url)
