"""The reference: every public name is in it, with its parameters and the version it came with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "reference"
PACKAGE = "sqlalchemy_proletarian"
MODULES = [
    PACKAGE,
    *(
        f"{PACKAGE}.{name}"
        for name in (
            "asyncio",
            "dashboard",
            "health",
            "manage",
            "migrate",
            "migrations",
            "opentelemetry",
            "testing",
        )
    ),
]
NAMES = [f"{module}.{name}" for module in MODULES for name in import_module(module).__all__]


def found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def callables() -> Iterator[tuple[str, Any]]:
    """Yield the public functions, classes and methods."""
    for name in NAMES:
        thing = found(name)
        if inspect.isclass(thing):
            yield name, thing
            for attribute, member in vars(thing).items():
                if inspect.isfunction(member) and not attribute.startswith("_"):
                    yield f"{name}.{attribute}", member
        elif callable(thing):
            yield name, thing


def test_the_reference_lists_every_public_name() -> None:
    pages = "\n".join(page.read_text() for page in PAGES.glob("*.md"))
    listed = set(re.findall(r"^\.\. auto\w+:: (\S+)", pages, re.MULTILINE))
    elsewhere = {f"{PACKAGE}.Health"}  # under health, where it belongs
    assert set(NAMES) - elsewhere == listed


@pytest.mark.parametrize(
    ("name", "thing"), [pytest.param(*each, id=each[0]) for each in callables()]
)
def test_docstrings_have_what_a_reader_needs(name: str, thing: Any) -> None:
    """Each parameter is described, and each name says since when it exists."""
    text = inspect.getdoc(thing) or ""
    assert text, name
    if "." not in name.removeprefix(found_module(name)).lstrip("."):
        assert ".. versionadded::" in text, name
    given = [
        parameter.name
        for parameter in inspect.signature(thing).parameters.values()
        if parameter.name not in {"self", "cls"} and not parameter.name.startswith("_")
    ]
    assert [name for name in given if f":param {name}:" not in text] == [], name


def found_module(name: str) -> str:
    return max((module for module in MODULES if name.startswith(module + ".")), key=len)
