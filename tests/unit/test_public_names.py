"""The names of the package, some of which are imported when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sqlalchemy_proletarian


def test_every_public_name_is_there() -> None:
    """In a new process, where nothing has imported the modules that are loaded later."""
    program = (
        "from sqlalchemy_proletarian import *; import sqlalchemy_proletarian as package;"
        "assert all(getattr(package, name) is globals()[name] for name in package.__all__)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match=r"'sqlalchemy_proletarian' has no .*'QueWorker'"):
        _ = sqlalchemy_proletarian.QueWorker


def test_all_names_are_listed_before_they_are_used() -> None:
    program = "import sqlalchemy_proletarian as p; assert set(p.__all__) <= set(dir(p))"
    subprocess.run([sys.executable, "-c", program], check=True)
