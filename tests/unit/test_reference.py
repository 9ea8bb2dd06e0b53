"""The reference: it lists every public name, and the docstrings say what a reader needs."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sqlalchemy_proletarian import QueueWorker
from sqlalchemy_proletarian.worker.options import WorkerOptions

from .generated_docs import facts

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
            "telemetry",
            "testing",
            "testing.asyncio",
            "transit",
        )
    ),
]
TWINS = (f"{PACKAGE}.asyncio", f"{PACKAGE}.testing.asyncio")
"""Their functions refer to those without ``await`` for what both have in common."""
VALUES = (str, int, tuple)
"""Public names that are constants."""


def found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


NAMES = [f"{module}.{name}" for module in MODULES for name in import_module(module).__all__]
CALLABLES = [name for name in NAMES if not isinstance(found(name), VALUES)]


def methods() -> Iterator[tuple[str, Any]]:
    for name in CALLABLES:
        for attribute, member in vars(found(name)).items() if inspect.isclass(found(name)) else ():
            if not attribute.startswith("_") and isinstance(
                member, property | classmethod | staticmethod
            ):
                yield f"{name}.{attribute}", getattr(member, "__func__", None) or member.fget
            elif not attribute.startswith("_") and inspect.isfunction(member):
                yield f"{name}.{attribute}", member


METHODS = dict(methods())


@cache
def attribute_docs(thing: type[Any]) -> set[str]:
    """Return the names that have a string below them, in a class and its bases."""
    names: set[str] = set()
    for kind in thing.__mro__:
        if not kind.__module__.startswith(PACKAGE):
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(definition, ast.ClassDef)
        for node, after in pairwise(definition.body):
            if not isinstance(after, ast.Expr) or not isinstance(after.value, ast.Constant):
                continue
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.Assign):
                names.update(each.id for each in node.targets if isinstance(each, ast.Name))
    return names


def docstring(name: str) -> str:
    """Return the documentation of a public name: for a value, the string below it."""
    thing = found(name)
    text = inspect.getdoc(thing) or ""
    if text and not isinstance(thing, VALUES):
        return text
    return facts.value_docs().get(name, "")


def fields_of(thing: Any) -> list[str]:
    """Return what a class has for its readers: the fields of a value, or the members of an enum."""
    if issubclass(thing, Enum):
        return list(thing.__members__)
    if is_dataclass(thing):
        return [name for name in thing.__dataclass_fields__ if not name.startswith("_")]
    if getattr(thing, "_is_protocol", False):
        return [name for name in thing.__annotations__ if not name.startswith("_")]
    return []


def is_mapped(thing: Any) -> bool:
    """Return whether a class is of a table: the page of tables describes its columns."""
    return "__mapper__" in vars(thing) or thing.__name__.endswith(("Mixin", "Base"))


def parameters_of(thing: Any) -> list[str]:
    """Return the parameters; all options of the class that describes them for all workers."""
    if typing.is_typeddict(thing):
        return sorted(thing.__optional_keys__)
    names = []
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.name in {"self", "cls"} or parameter.name.startswith("_"):
            continue
        if thing is QueueWorker and parameter.kind is parameter.VAR_KEYWORD:
            names += WorkerOptions.__annotations__
            continue
        names.append(parameter.name)
    return names


def described(text: str, name: str) -> bool:
    return f":param {name}:" in text


def test_the_reference_lists_every_public_name() -> None:
    """A name that two modules have is listed once."""
    pages = "\n".join(page.read_text() for page in PAGES.glob("*.md"))
    listed = re.findall(r"^\.\. auto\w+:: (\S+)", pages, re.MULTILINE)
    assert sorted(listed) == sorted(set(listed))
    there = {id(found(name)) for name in listed}
    assert [n for n in NAMES if n not in listed and id(found(n)) not in there] == []
    assert [name for name in listed if name not in NAMES] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_since_when_it_exists(name: str) -> None:
    assert re.search(r"^\s*\.\. versionadded:: \d+\.\d+$", docstring(name), re.MULTILINE), name


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_name_describes_its_parameters_or_fields(name: str) -> None:
    thing = found(name)
    text = docstring(name)
    if inspect.isclass(thing):
        if is_mapped(thing):
            return
        fields = fields_of(thing)
        if fields:
            without = [each for each in fields if not described(text, each)]
            assert set(without) <= attribute_docs(thing), name
            return
        if getattr(thing, "_is_protocol", False):
            return
        if issubclass(thing, Exception | str | tuple) and not {"__init__", "__new__"} & {
            *vars(thing)
        }:
            return
    elif name.startswith(TWINS) and re.search(
        r"See :func:`(sqlalchemy_proletarian[\w.]*)`.* for\s+the\s+parameters", text
    ):
        return
    if name == f"{PACKAGE}.migrations.include_name":  # Alembic calls it
        return
    assert [each for each in parameters_of(thing) if not described(text, each)] == [], name


@pytest.mark.parametrize("name", METHODS)
def test_a_public_method_describes_its_parameters(name: str) -> None:
    text = inspect.getdoc(METHODS[name]) or ""
    assert text, name
    given = parameters_of(METHODS[name])
    assert [each for each in given if not described(text, each)] == [], name


def raises_itself(function: Any) -> set[str]:
    """Return the errors for callers that a function raises in its own body."""
    code = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    return {
        node.exc.func.id
        for node in ast.walk(code)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id.endswith("Error")
    }


@pytest.mark.parametrize(
    "name", [*METHODS, *(n for n in CALLABLES if inspect.isfunction(found(n)))]
)
def test_functions_name_their_errors_and_results(name: str) -> None:
    function = METHODS.get(name) or found(name)
    text = inspect.getdoc(function) or ""
    elsewhere = re.search(r"\b(result\s+and|parameters\s+and)\s+errors", text)
    if not elsewhere:
        assert [e for e in raises_itself(function) if f":raises {e}:" not in text] == [], name
    if name.endswith(".include_name"):  # Alembic calls it
        return
    annotation = str(inspect.signature(function).return_annotation)
    says = re.search(r":return:|:returns:|\b[Rr]eturns?\b|[Yy]ield|Whether|^The |^By |^How ", text)
    assert annotation in {"None", "<class 'inspect._empty'>"} or says or elsewhere, name
