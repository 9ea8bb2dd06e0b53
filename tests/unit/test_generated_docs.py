"""What the documentation takes from the code: columns, settings and messages are complete."""

from __future__ import annotations

import inspect
import logging
import re
import tomllib

import pytest
from sqlalchemy import inspect as sa_inspect

import sqlalchemy_proletarian
from sqlalchemy_proletarian import Base, ProletarianError, errors
from sqlalchemy_proletarian.telemetry.events import LEVELS

from .generated_docs import ROOT, facts

DOCS = ROOT / "docs"
TROUBLES = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
PLACES = [
    place
    for block in re.findall(r"^```\{messages\}\n(.*?)^```", TROUBLES, re.DOTALL | re.MULTILINE)
    for place in block.split()
]
ERRORS = [
    name
    for name, thing in vars(errors).items()
    if inspect.isclass(thing) and issubclass(thing, ProletarianError)
]


def test_each_message_is_listed_once() -> None:
    """A new message needs a place on the page about troubleshooting."""
    found = {m: [p for p in PLACES if facts.belongs(m, p)] for m in facts.raised_messages()}
    assert len(found) > 300
    assert {message: places for message, places in found.items() if len(places) != 1} == {}


def test_each_place_has_a_message() -> None:
    messages = facts.raised_messages()
    assert [p for p in PLACES if not any(facts.belongs(m, p) for m in messages)] == []


@pytest.mark.parametrize("name", ERRORS)
def test_each_error_has_a_cause(name: str) -> None:
    """The base class is not raised itself."""
    if name != "ProletarianError":
        assert f"sqlalchemy_proletarian.{name}`" in TROUBLES


@pytest.mark.parametrize("event", [e for e, level in LEVELS.items() if level >= logging.WARNING])
def test_each_event_that_warns_has_an_explanation(event: str) -> None:
    rows = re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \|", TROUBLES, re.MULTILINE)
    assert f"`{event}`" in ", ".join(rows).split(", ")


def test_each_table_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "tables.md").read_text(encoding="utf-8")
    tables = {mapper.class_.__name__ for mapper in Base.registry.mappers}
    assert set(re.findall(r"^```\{columns\} (\w+)$", page, re.MULTILINE)) == tables
    assert set(facts.MODELS) == tables


@pytest.mark.parametrize("model", facts.MODELS)
def test_each_column_has_a_meaning(model: str) -> None:
    columns = facts.columns_of(model)
    mapper = sa_inspect(getattr(sqlalchemy_proletarian, model))
    assert [column.name for column in columns] == [c.name for c in mapper.local_table.columns]
    assert [column.name for column in columns if not column.meaning.endswith(".")] == []


def test_each_setting_has_a_meaning() -> None:
    """The names of variables are those of the options."""
    settings = facts.worker_settings()
    for setting in settings:
        name = setting.option.removeprefix("--").replace("-", "_").upper()
        assert setting.variable == f"PROLETARIAN_{name}"
        assert setting.meaning, setting.option
    assert len(settings) > 20


def test_each_variable_and_extra_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    variables = {each.variable for each in facts.worker_settings()}
    for file in facts.PACKAGE.rglob("*.py"):
        found = set(re.findall(r'"(PROLETARIAN_[A-Z_]+)"', file.read_text(encoding="utf-8")))
        assert [name for name in found - variables if f"`{name}`" not in page] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = re.findall(r"^\| `(\w+)` \| [^-]", page.partition("## Extras")[2], re.MULTILINE)
    assert set(listed) == set(project["optional-dependencies"])
    assert [p for p in project["entry-points"]["sqlalchemy.plugins"] if f"`{p}`" not in page] == []
