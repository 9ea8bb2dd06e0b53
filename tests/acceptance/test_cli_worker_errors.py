"""What ``proletarian worker`` says when something is wrong: one line with the remedy."""

from __future__ import annotations

import socket

import pytest
from sqlalchemy import URL, create_engine, text

from .worker_command import Project


def the_error(project: Project, *arguments: str, code: int = 1, **variables: str) -> str:
    """Run a worker that does not start; return its error, which is one line."""
    done = project.run(*arguments, **variables)
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    if code == 1:
        assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[-1].removeprefix("Error: ")


def test_a_wrong_target(project: Project):
    error = the_error(project, "jobs:handler")
    assert error.endswith("jobs.py has no 'handler': did you mean jobs:handlers?")


def test_an_error_in_the_module_names_its_place(project: Project):
    """An import that fails inside of the module is not a missing module."""
    project.write("broken.py", "\nimport nowhere")
    error = the_error(project, "broken:handlers")
    assert error == (
        "importing broken failed: ModuleNotFoundError: No module named 'nowhere' (broken.py, line "
        "2); --debug shows the traceback"
    )
    assert "Traceback" in project.run("broken:handlers", "--debug").stderr


def test_no_url(project: Project):
    assert "there is no database URL: pass --url" in the_error(
        project, "jobs:handlers", PROLETARIAN_URL=""
    )


@pytest.mark.parametrize("target", ["jobs:handlers", "jobs:coroutines"])
def test_no_tables(project: Project, target: str):
    with project.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA proletarian CASCADE"))
    error = the_error(project, target)
    assert "proletarian.job does not exist" in error
    assert "'proletarian migrate upgrade --url …'" in error


@pytest.mark.parametrize("target", ["jobs:handlers", "jobs:coroutines"])
@pytest.mark.parametrize("driver", ["postgresql", "postgresql+asyncpg", "mysql+pymysql"])
def test_a_closed_port(project: Project, target: str, driver: str):
    """The password is not shown."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        error = the_error(
            project, target, PROLETARIAN_URL=f"{driver}://ada:secret@127.0.0.1:{port}/shop"
        )
    assert error.startswith("cannot connect to ")
    assert f"ada@127.0.0.1:{port}/shop: " in error
    assert "secret" not in error
    assert error.endswith("(is the database server running, and are the host and port correct?)")


def test_a_database_that_does_not_exist(project: Project):
    url = project.url.set(database="nowhere").render_as_string(hide_password=False)
    error = the_error(project, "jobs:handlers", PROLETARIAN_URL=url)
    assert error.endswith("(check the database of the URL, or create it)")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "this is not a database URL"),
        ("foo://x/y", "there is no SQLAlchemy dialect 'foo': the URL must begin with postgresql"),
        ("oracle+oracledb://x/y", "the module oracledb is not installed"),
        ("sqlite:///nowhere/shop.db", "there is no SQLite database"),
        ("sqlite://", "in-memory"),
    ],
)
def test_a_wrong_url(project: Project, url: str, message: str):
    assert message in the_error(project, "jobs:handlers", "--url", url)


def test_a_missing_driver(project: Project):
    """A module of that name that cannot be imported stands for one that is not installed."""
    project.write("psycopg2.py", "raise ModuleNotFoundError(name='psycopg2')")
    url = project.url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    done = project.run_alone("jobs:handlers", PROLETARIAN_URL=url)
    assert done.returncode == 1
    error = done.stderr.removeprefix("Error: ")
    assert error.startswith("the module psycopg2 is not installed: pip install psycopg2-binary")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--queues", "default"], "--queues"),
        (["--threads", "2", "--lease", "30s"], "--threads, --lease"),
        (["--url", "postgresql:///x"], "--url"),
        (["--pool-size", "2"], "--pool-size"),
    ],
)
def test_options_of_a_worker_that_has_its_own(project: Project, arguments: list[str], options: str):
    error = the_error(project, "jobs:make_worker", *arguments)
    assert f"is a QueueWorker, which has its own options: {options} cannot change them" in error


def test_threads_do_not_run_coroutines(project: Project):
    error = the_error(project, "jobs:coroutines", "--threads", "4")
    assert "the handler of 'write' is async: use --concurrency 4" in error


def test_it_waits_for_a_database_on_request(project: Project, server_url: URL):
    """With --wait it starts when the database is there, and tells meanwhile what it waits for."""
    name = f"{project.url.database}_late"
    url = project.url.set(database=name)
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    try:
        with project.started(
            "jobs:handlers",
            "--wait",
            "60s",
            PROLETARIAN_URL=url.render_as_string(hide_password=False),
        ) as worker:
            worker.wait_for("cannot connect to .*; trying for 1 min")
            with admin.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
            assert worker.ends() == 1
        assert "create the job tables with 'proletarian migrate upgrade" in worker.output
        assert worker.output.count("cannot connect") == 1
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        admin.dispose()
