"""``proletarian migrate``, run as its users run it."""

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
    """Run ``proletarian`` with the arguments; the URL goes through the environment."""
    if isinstance(url, URL):
        url = url.render_as_string(hide_password=False)
    environment = {k: v for k, v in os.environ.items() if k != "PROLETARIAN_DATABASE_URL"}
    if url is not None:
        environment["PROLETARIAN_DATABASE_URL"] = url
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def assert_one_line(result: subprocess.CompletedProcess[str]) -> None:
    """The command failed with exit code 1, one line, and no password."""
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "s3cret" not in result.stdout + result.stderr


def test_up_check_down(empty_database: URL, empty_engine: Engine) -> None:
    """The tables come with ``upgrade``, pass ``check``, and go with ``downgrade 0``."""
    plain = empty_database.set(drivername="postgresql").render_as_string(hide_password=False)
    for command, output in [
        (["upgrade"], "The job tables are at version 1.\n"),
        (["upgrade"], "The job tables are at version 1.\n"),
        (["check"], "The job tables match version 1.\n"),
        (["downgrade", "0"], "The tables were dropped.\n"),
        (["upgrade", "1"], "The job tables are at version 1.\n"),
    ]:
        result = run("migrate", *command, "--url", plain)
        assert (result.returncode, result.stdout, result.stderr) == (0, output, "")
    with empty_engine.connect() as connection:
        assert len(inspect(connection).get_table_names(schema="proletarian")) == 3


def test_upgrades_at_the_same_time(empty_database: URL) -> None:
    """Replicas that migrate at their start do not trip over each other."""
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


def test_sql_builds_what_upgrade_builds(empty_database: URL, empty_engine: Engine) -> None:
    """The printed scripts build the same tables and take them away, and ``upgrade`` knows of it."""
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


def test_sql_connects_to_nothing() -> None:
    """A URL given to ``sql`` says which dialect to write, and no more."""
    result = run("migrate", "sql", url="postgresql://nobody:s3cret@nowhere.invalid/x")
    assert result.returncode == 0
    assert "CREATE UNLOGGED TABLE proletarian.running" in result.stdout
    assert "s3cret" not in result.stdout
    nowhere = run("migrate", "sql", "1", "--from-version", "1")
    assert nowhere.returncode == 2
    assert "the tables would stay at version 1" in nowhere.stderr


def test_check_names_the_remedy_when_the_tables_are_missing(empty_database: URL) -> None:
    """On an empty database ``check`` fails and says which command creates the tables."""
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
def test_check_sees(
    empty_database: URL, empty_engine: Engine, change: str, difference: str
) -> None:
    """A table that was changed by hand is reported, with what to do about it."""
    migrate.upgrade(empty_database)
    assert migrate.check(empty_database) == migrate.CheckResult()
    with empty_engine.begin() as connection:
        connection.exec_driver_sql(change)
    result = migrate.check(empty_database)
    assert len(result.differences) == 1
    assert difference in result.differences[0]
    assert result.remedy is not None
    assert "does not repair" in result.remedy


def test_check_sees_a_condition_on_sqlite(tmp_path: Path) -> None:
    """Partial indexes are compared wherever there are any."""
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


def test_tables_of_the_models(empty_database: URL, empty_engine: Engine) -> None:
    """What ``create_all()`` makes is what the migration makes, and passes the check."""
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA proletarian"))
        Base.metadata.create_all(connection)
    assert migrate.check(empty_database) == migrate.CheckResult()


def test_check_sees_only_the_job_tables(empty_database: URL, empty_engine: Engine) -> None:
    """Other tables, also of the same names or in the same schema, are none of its business."""
    migrate.upgrade(empty_database)
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE TABLE job (id int)"))
        connection.execute(text("CREATE TABLE proletarian.invoice (id int)"))
        connection.execute(text("CREATE SCHEMA other CREATE TABLE archived_job (id int)"))
    assert migrate.check(empty_database) == migrate.CheckResult()


def test_check_on_a_search_path(empty_database: URL) -> None:
    """A connection whose default schema is that of the tables finds them as well."""
    migrate.upgrade(empty_database)
    url = empty_database.update_query_dict({"options": "-csearch_path=proletarian"})
    assert migrate.check(url) == migrate.CheckResult()


def test_later_version(empty_database: URL, empty_engine: Engine) -> None:
    """An earlier release that migrates at its start leaves the tables of a later one alone."""
    migrate.upgrade(empty_database)
    with empty_engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = 'proletarian_0007'"))
    result = run("migrate", "upgrade", url=empty_database)
    assert result.returncode == 0, result.stderr
    assert "at version 7, which is later than this release's 1" in result.stdout
    assert migrate.check(empty_database) == migrate.CheckResult()
    result = run("migrate", "downgrade", "0", url=empty_database)
    assert_one_line(result)
    assert "at version 7, but this release can downgrade from version 1" in result.stderr
    assert migrate.check(empty_database) == migrate.CheckResult()


def test_role_without_the_right_to_create(empty_database: URL, empty_engine: Engine) -> None:
    """A role that may not create anything is told what it needs, in one line."""
    role = f"restricted_{empty_database.database}"
    with empty_engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
    try:
        url = empty_database.update_query_dict({"options": f"-crole={role}"})
        result = run("migrate", "upgrade", url=url)
        assert_one_line(result)
        assert "permission denied for" in result.stderr
        assert "ask an administrator to GRANT CREATE on it to the role" in result.stderr
    finally:
        with empty_engine.begin() as connection:
            connection.execute(text(f"DROP ROLE {role}"))


def test_tables_made_by_other_means(empty_database: URL, empty_engine: Engine) -> None:
    """``upgrade`` over tables it did not make, and ``downgrade`` of lost ones, say so in a line."""
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA proletarian"))
        Base.metadata.create_all(connection)
    result = run("migrate", "upgrade", url=empty_database)
    assert_one_line(result)
    assert 'relation "job" already exists (the tables were created by other' in result.stderr
    with empty_engine.begin() as connection:
        Base.metadata.drop_all(connection)
    assert run("migrate", "upgrade", url=empty_database).returncode == 0
    with empty_engine.begin() as connection:
        Base.metadata.drop_all(connection)
    result = run("migrate", "downgrade", "0", url=empty_database)
    assert_one_line(result)
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
        ("nosuch://someone:s3cret@nowhere/x", "sqlalchemy.dialects:nosuch"),
    ],
)
def test_bad_urls(url: str, message: str) -> None:
    """A server that cannot be reached and a URL that is none end in one line without password."""
    result = run("migrate", "check", "--url", url)
    assert_one_line(result)
    assert message in result.stderr


@pytest.mark.parametrize("command", [["upgrade"], ["downgrade", "0"], ["check"]])
def test_database_that_does_not_exist(command: list[str], empty_database: URL) -> None:
    """What the server says about a wrong database reaches the user, whichever the command."""
    result = run("migrate", *command, url=empty_database.set(database="no_such_database"))
    assert_one_line(result)
    assert 'database "no_such_database" does not exist' in result.stderr


def test_missing_and_wrong_arguments() -> None:
    """Without a URL the command names the option and the variable; it refuses unknown versions."""
    result = run("migrate", "upgrade")
    assert result.returncode == 2
    assert "Missing option '--url' (env var: 'PROLETARIAN_DATABASE_URL')" in result.stderr
    result = run("migrate", "upgrade", "2", "--url", "postgresql://x")
    assert result.returncode == 2
    assert "2 is not in the range" in result.stderr
    assert "Missing argument 'VERSION'" in run("migrate", "downgrade").stderr


def test_version() -> None:
    """``--version`` prints the version of the installed package."""
    assert run("--version").stdout == "proletarian, version 0.1.0\n"


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg", "postgresql+asyncpg"])
def test_functions_take_any_url(driver: str, empty_database: URL) -> None:
    """The functions behind the command take the application's URL, as text, whatever its driver."""
    url = empty_database.set(drivername=driver).render_as_string(hide_password=False)
    migrate.upgrade(url, 1)
    assert not migrate.check(url).differences
    migrate.downgrade(url)
    assert migrate.check(url).differences
    not_a_url: Any = "nowhere"
    with pytest.raises(ArgumentError):
        migrate.check(not_a_url)
