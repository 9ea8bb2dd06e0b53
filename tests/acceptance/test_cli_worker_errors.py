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


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("job:handlers", "there is no module 'job': did you mean 'jobs'?"),
        ("shop.jobs:handlers", "there is no module 'shop': run the command in the directory"),
        ("jobs.more:handlers", "there is no module 'jobs.more': 'jobs' is a module, not a package"),
        ("jobs:handler", "jobs.py has no 'handler': did you mean jobs:handlers?"),
        ("jobs:xyz", "has no 'xyz': it has jobs:handlers, jobs:coroutines, jobs:empty"),
        ("jobs", "TARGET must name an object of the module: write jobs:handlers"),
        ("jobs.py:handlers", "TARGET names a module, not a file: write jobs:handlers"),
        ("./jobs.py", "TARGET names a module, not a file: write jobs:handlers"),
        ("jobs:handlers(1)", "TARGET must be module:object or module:factory()"),
        ("jobs:number_of_things", "jobs:number_of_things is of type int: TARGET must be a Handlers"),
        ("jobs:os", "jobs:os is a module: TARGET must be a Handlers"),
        ("jobs:write", "jobs:write is the handler of 'write' alone: write jobs:handlers"),
        ("jobs:needs", "jobs:needs is a function that needs arguments: TARGET must be"),
        ("jobs:make_nothing", "what jobs:make_nothing() returns is None: it must return"),
        ("jobs:make_later", "jobs:make_later is async: make it a plain function"),
        ("jobs:handlers()", "jobs:handlers is a Handlers, not a factory: write it without ()"),
        ("jobs:make_trouble()", "calling jobs:make_trouble() failed: RuntimeError: no luck (jobs.py"),
        ("jobs:empty", "jobs:empty has no handlers: import the modules that register them"),
    ],
)
def test_a_wrong_target(project: Project, target: str, message: str):
    assert message in the_error(project, target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\nimport nowhere", "ModuleNotFoundError: No module named 'nowhere' (broken.py, line 2)"),
        ("from jobs import nothing", "ImportError: cannot import name 'nothing' from 'jobs'"),
        ("\n\n1 / 0", "ZeroDivisionError: division by zero (broken.py, line 3)"),
        ("x = = 1", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("import helper", "NameError: name 'oops' is not defined (helper.py, line 1)"),
        ("import json\njson.loads('x')", "(broken.py, line 2)"),
    ],
)
def test_an_error_in_the_module_names_its_place(project: Project, content: str, message: str):
    """An import that fails inside of the module is not a missing module."""
    project.write("broken.py", content)
    project.write("helper.py", "oops")
    error = the_error(project, "broken:handlers")
    assert error.startswith("importing broken failed: ")
    assert message in error
    done = project.run("broken:handlers", "--debug")
    assert "Traceback" in done.stderr


def test_a_package_whose_module_imports_a_missing_part_of_itself(project: Project):
    """The missing module begins with the name of the target's package: still not the target."""
    project.write("shop/__init__.py", "")
    project.write("shop/work.py", "import shop.missing")
    error = the_error(project, "shop.work:handlers")
    assert "No module named 'shop.missing' (shop/work.py, line 1)" in error
    assert "there is no module 'shop.wark': did you mean 'shop.work'?" in the_error(
        project, "shop.wark:handlers"
    )


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
        ("sqlite:///nowhere/shop.db", "create the directory of the file"),
        ("sqlite://", "in-memory"),
    ],
)
def test_a_wrong_url(project: Project, url: str, message: str):
    assert message in the_error(project, "jobs:handlers", "--url", url)


def test_a_missing_driver(project: Project):
    """A module of that name that cannot be imported stands for one that is not installed."""
    project.write("psycopg2.py", "raise ModuleNotFoundError(name='psycopg2')")
    url = project.url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    error = the_error(project, "jobs:handlers", PROLETARIAN_URL=url)
    assert error == "the module psycopg2 is not installed: pip install psycopg2-binary"


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--queues", "default"], "--queues"),
        (["--threads", "2", "--lease", "30s"], "--threads, --lease"),
        (["--url", "postgresql:///x"], "--url"),
        (["--pool-size", "2"], "--pool-size"),
    ],
)
def test_options_of_a_worker_that_has_its_own(
    project: Project, arguments: list[str], options: str
):
    error = the_error(project, "jobs:make_worker", *arguments)
    assert f"is a QueueWorker, which has its own options: {options} cannot change them" in error


def test_threads_do_not_run_coroutines(project: Project):
    error = the_error(project, "jobs:coroutines", "--threads", "4")
    assert "the handler of 'write' is async: use --concurrency 4" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "2", "--asyncio"], "--threads and --asyncio are two kinds of worker"),
        (["--threads", "2", "--concurrency", "2"], "both say how many jobs run at a time"),
        (["--drain", "--reload"], "--drain ends when no job is due"),
        (["--drain", "--max-jobs", "3"], "--drain ends when no job is due"),
        (["--lease", "30"], "'30' is not a duration: write 30s"),
        (["--lease", "0s"], "must be longer than zero"),
        (["--max-memory", "300"], "'300' is not a size: write 300MB or 1GiB"),
        (["--queues", "a,,b"], "has an empty name"),
        (["--processes", "0"], "0 is not in the range"),
    ],
)
def test_wrong_options(project: Project, arguments: list[str], message: str):
    assert message in the_error(project, "jobs:handlers", *arguments, code=2)


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
