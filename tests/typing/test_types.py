"""Tests of the types of the public API, with mypy and pyright.

The other modules of this folder call the API. The comment above a wrong call names the errors that
the two type checkers must report for it::

    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, 7)

At least one of a checker's errors must be reported, and no other. Elsewhere, no error must be
reported. The modules are not executed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CALLS = [
    Path(__file__).with_name(f"{name}.py")
    for name in (
        "models",
        "enqueueing",
        "handling",
        "workers",
        "asynchronous",
        "testing_kit",
        "recurring",
        "unique",
        "on_changes",
        "batch_handlers",
        "telemetry",
        "health_and_metrics",
    )
]
EXPECTED = re.compile(r" *# error: mypy=([\w,-]+) pyright=([\w,-]+)")

Errors = dict[str, set[str]]
"""The codes of the errors, by ``module:line``."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the calls, and the package as it is installed, in the folder ``site``."""
    project = tmp_path_factory.mktemp("project")
    for path in CALLS:
        shutil.copy(path, project)
    package = project / "site" / "sqlalchemy_proletarian"
    shutil.copytree(ROOT / "sqlalchemy_proletarian", package)
    shutil.copytree(ROOT / "alembic_migrations", package / "migrations")
    return project


@pytest.fixture(scope="module")
def _pyright(tmp_path_factory: pytest.TempPathFactory, project: Path) -> None:
    """Let pyright's first call download its program, in one process of the tests at a time."""
    with (tmp_path_factory.getbasetemp().parent / "pyright.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(project, "pyright", "--version")


def run(project: Path, *command: str) -> str:
    """Run a type checker of this environment, which finds the package in the folder ``site``."""
    scripts = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "MYPYPATH": str(project / "site"),
        "PYTHONPATH": str(project / "site"),
    }
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return done.stdout


def expected_errors(checker: str) -> Errors:
    """Return the errors that the comments announce for the lines below them."""
    errors: Errors = {}
    for path in CALLS:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if match := EXPECTED.fullmatch(line):
                codes = match[1] if checker == "mypy" else match[2]
                errors[f"{path.name}:{number + 1}"] = set(codes.split(","))
    return errors


def mypy_errors(project: Path) -> Iterator[tuple[str, int, str]]:
    """Yield the module, line and code of the errors that mypy reports."""
    options = ("--strict", "--cache-dir=.cache", "--output=json", "--config-file=")
    files = [path.name for path in CALLS]
    for line in run(project, "mypy", *options, *files).splitlines():
        found = json.loads(line)
        if found["severity"] == "error":
            yield found["file"], found["line"], found["code"]


def pyright_report(project: Path, *arguments: str) -> dict[str, Any]:
    """Return what pyright reports."""
    report: dict[str, Any] = json.loads(run(project, "pyright", "--outputjson", *arguments))
    return report


def pyright_errors(project: Path) -> Iterator[tuple[str, int, str]]:
    """Yield the module, line and rule of the errors that pyright reports."""
    files = [path.name for path in CALLS]
    for found in pyright_report(project, *files)["generalDiagnostics"]:
        if found["severity"] == "error":
            line = found["range"]["start"]["line"] + 1
            yield Path(found["file"]).name, line, found.get("rule", "syntax")


@pytest.mark.usefixtures("_pyright")
@pytest.mark.parametrize(
    ("checker", "errors_of"), [("mypy", mypy_errors), ("pyright", pyright_errors)]
)
def test_wrong_calls_are_errors_and_right_calls_are_none(
    project: Path, checker: str, errors_of: Any
) -> None:
    found: Errors = defaultdict(set)
    for module, line, code in errors_of(project):
        found[f"{module}:{line}"].add(code)
    expected = expected_errors(checker)
    assert expected
    missing = {line: codes for line, codes in expected.items() if not found[line] & codes}
    unexpected = {
        line: more for line, codes in found.items() if (more := codes - expected.get(line, set()))
    }
    assert (missing, unexpected) == ({}, {})


@pytest.mark.usefixtures("_pyright")
def test_all_types_of_the_package_are_known(project: Path) -> None:
    """A type that pyright must infer, or cannot know, lowers the score."""
    options = ("--verifytypes", "sqlalchemy_proletarian", "--ignoreexternal")
    report = pyright_report(project, *options)["typeCompleteness"]
    problems = {
        symbol["name"]: [found["message"] for found in symbol["diagnostics"]]
        for symbol in report["symbols"]
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    }
    assert problems == {}
    assert report["completenessScore"] == 1
    assert report["exportedSymbolCounts"]["withKnownType"] > 1000
