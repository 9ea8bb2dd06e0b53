"""What ``proletarian worker`` says of a target and of options that are wrong."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sqlalchemy_proletarian.cli.explain import where_is
from sqlalchemy_proletarian.cli.settings import settings
from sqlalchemy_proletarian.cli.worker import parameters
from sqlalchemy_proletarian.cli.worker.command import worker
from sqlalchemy_proletarian.cli.worker.logs import TextLines
from sqlalchemy_proletarian.cli.worker.parameters import duration_text
from sqlalchemy_proletarian.cli.worker.reload import FileWatch
from sqlalchemy_proletarian.cli.worker.target import load_target
from sqlalchemy_proletarian.database.urls import async_url
from tests.acceptance.worker_command import JOBS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with the module ``jobs``; its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    settings.cache_clear()
    (tmp_path / "jobs.py").write_text(JOBS)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    settings.cache_clear()


def the_error(target: str) -> str:
    """Return the message for a target that cannot be loaded."""
    with pytest.raises(click.ClickException) as raised:
        load_target(target)
    assert "\n" not in raised.value.message
    return raised.value.message


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
        (
            "jobs:number_of_things",
            "jobs:number_of_things is of type int: TARGET must be a Handlers",
        ),
        ("jobs:os", "jobs:os is a module: TARGET must be a Handlers"),
        ("jobs:write", "jobs:write is the handler of 'write' alone: write jobs:handlers"),
        ("jobs:needs", "jobs:needs is a function that needs arguments: TARGET must be"),
        ("jobs:app", "jobs:app is of type jobs.App: TARGET must be a Handlers, a QueueWorker"),
        ("jobs:make_nothing", "what jobs:make_nothing() returns is None: it must return"),
        ("jobs:make_later", "jobs:make_later is async: make it a plain function"),
        ("jobs:handlers()", "jobs:handlers is a Handlers, not a factory: write it without ()"),
        (
            "jobs:make_trouble()",
            "calling jobs:make_trouble() failed: RuntimeError: no luck (jobs.py",
        ),
        ("jobs:empty", "jobs:empty has no handlers: import the modules that register them"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_wrong_target(target: str, message: str):
    assert message in the_error(target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\nimport nowhere", "ModuleNotFoundError: No module named 'nowhere' (broken.py, line 2)"),
        ("from jobs import nothing", "ImportError: cannot import name 'nothing' from 'jobs'"),
        ("\n\n1 / 0", "ZeroDivisionError: division by zero (broken.py, line 3)"),
        ("x = = 1", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("import helper", "NameError: name 'oops' is not defined (helper.py, line 1)"),
        ("import json\njson.loads('x')", "(broken.py, line 2)"),
        ("import os\nos.environ['NO_SUCH']", "KeyError: 'NO_SUCH' (broken.py, line 2)"),
    ],
)
def test_an_error_in_the_module_names_its_place(folder: Path, content: str, message: str):
    """An import that fails inside of the module is not a missing module."""
    (folder / "broken.py").write_text(content)
    (folder / "helper.py").write_text("oops")
    error = the_error("broken:handlers")
    assert error.startswith("importing broken failed: ")
    assert message in error


def test_the_line_of_an_error_has_the_place_only_in_your_code() -> None:
    """An error of a driver would otherwise name a file of the driver or of Python."""

    def line(call: Callable[[], object], **values: Any) -> str:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - any error will do
            call()
        error = raised.value.with_traceback(raised.tb.tb_next)  # without this test
        record = {"exc_info": (type(error), error, error.__traceback__), **values}
        return TextLines(debug=False, colours=False).format(logging.makeLogRecord(record))

    def own() -> None:
        raise OSError("no server")

    outside = partial(json.loads, "")
    assert line(own, event="polling-error").endswith(
        f"test_cli_worker.py, line {own.__code__.co_firstlineno + 1})"
    )
    assert line(outside, event="polling-error").endswith("(char 0)")


def test_a_package_whose_module_imports_a_missing_part_of_itself(folder: Path):
    """The missing module begins with the name of the target's package: still not the target."""
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").touch()
    (folder / "shop" / "work.py").write_text("import shop.missing")
    error = the_error("shop.work:handlers")
    assert "No module named 'shop.missing' (shop/work.py, line 1)" in error
    assert "there is no module 'shop.wark': did you mean 'shop.work'?" in the_error(
        "shop.wark:handlers"
    )


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
        (["--queues", "a=5,b"], "every queue needs a weight"),
        (["--queues", "a=5,b=0"], "every queue needs a weight"),
        (["--queues", "a=5,a=1"], "every queue needs a weight"),
        (["--processes", "0"], "0 is not in the range"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_wrong_options(arguments: list[str], message: str):
    result = CliRunner().invoke(worker, ["jobs:handlers", *arguments], prog_name="worker")
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("1m30s", timedelta(seconds=90)),
        ("1.5h", timedelta(minutes=90)),
        ("2 min", timedelta(minutes=2)),
        ("1d", timedelta(days=1)),
    ],
)
def test_durations(text: str, duration: timedelta):
    assert parameters.duration(text) == duration


@pytest.mark.parametrize("text", ["", "30", "s", "1x", "-1s", "1s2", "9" * 300 + "s"])
def test_what_is_no_duration(text: str):
    with pytest.raises(click.BadParameter):
        parameters.duration(text)


@pytest.mark.parametrize(
    ("given", "queues"),
    [
        ("a", ("a",)),
        ("b, a", ("b", "a")),
        (["b", "a"], ("b", "a")),
        ("a=5,b=1", {"a": 5, "b": 1}),
        ({"a": 5, "b": 1}, {"a": 5, "b": 1}),
    ],
)
def test_queues(given: Any, queues: Any):
    assert parameters.queues(given) == queues


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("300MB", 300_000_000),
        ("1GiB", 2**30),
        ("1.5g", 3 * 2**29),
        ("512 KiB", 2**19),
        ("2kb", 2000),
    ],
)
def test_sizes(text: str, size: int):
    assert parameters.size(text) == size


@pytest.mark.parametrize(
    ("duration", "text"),
    [(90.0, "90 s"), (120.0, "2 min"), (0.5, "0.5 s"), (timedelta(days=1), "1 d")],
)
def test_durations_as_text(duration: Any, text: str):
    assert duration_text(duration) == text


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgresql://a/b", "postgresql+psycopg"),
        ("postgresql+psycopg2://a/b", "postgresql+psycopg"),
        ("postgresql+asyncpg://a/b", "postgresql+asyncpg"),
        ("mariadb+pymysql://a/b", "mariadb+asyncmy"),
        ("sqlite:///b", "sqlite+aiosqlite"),
    ],
)
def test_urls_for_an_event_loop(given: str, driver: str):
    assert async_url(given).drivername == driver


def test_the_password_is_left_out():
    url = async_url("postgresql://ada:se:cret@host:1/shop")
    assert where_is(url) == "postgresql+psycopg://ada@host:1/shop"


def test_changed_files_are_found(folder: Path):
    """Also new, removed and nested ones, but not those of hidden directories and environments."""
    for name in ("shop", ".hidden", "environment"):
        (folder / name).mkdir()
    (folder / "environment" / "pyvenv.cfg").touch()
    watch = FileWatch(folder)
    assert watch.changed() == []
    (folder / "shop" / "new.py").write_text("x = 1")
    (folder / "shop" / "data.txt").touch()
    (folder / ".hidden" / "new.py").touch()
    (folder / "environment" / "new.py").touch()
    assert watch.changed() == ["shop/new.py"]
    (folder / "shop" / "new.py").write_text("x = 12")
    (folder / "jobs.py").unlink()
    assert watch.changed() == ["jobs.py", "shop/new.py"]
    assert watch.changed() == []
