"""Cognitect's transit-js must read the Transit that the package writes."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlalchemy_proletarian import TransitSerializer
from sqlalchemy_proletarian.transit import (
    URI,
    Char,
    FrozenMap,
    Keyword,
    Link,
    List,
    Symbol,
    TaggedValue,
)
from tests.clojure import ARCHIVED_ROWS, JOB_ROWS
from tests.databases.servers import missing
from tests.unit.test_transit import other_values, scalars

PROGRAM = Path(__file__).with_name("transit_js.js")
PACKAGE = "transit-js@0.8.874"
EXACT = TransitSerializer(keyword_keys=False)
ID = UUID("f81d4fae-7dec-11d0-a765-00a0c91e6bf6")
WHEN = datetime(2024, 2, 29, 12, 34, 56, 789000, tzinfo=UTC)


@pytest.fixture(scope="session")
def transit_js(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """Yield a function that reads Transit with transit-js and returns the described value."""
    if not (shutil.which("node") and shutil.which("npm")):
        missing("npm")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
    done = subprocess.run(install, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with subprocess.Popen(
        ["node", str(PROGRAM)],
        env=os.environ | {"NODE_PATH": str(folder / "node_modules")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as node:
        assert node.stdin is not None
        assert node.stdout is not None

        def read(text: str) -> Any:
            node.stdin.write(f"{json.dumps(text)}\n")
            node.stdin.flush()
            return json.loads(node.stdout.readline())

        yield read


def comparable(kind: str, *parts: Any) -> Any:
    """Return a value described by transit-js in the format of :func:`described`."""
    match kind:
        case "constant":
            return parts[0]
        case "number":
            return described(float(parts[0]))
        case "integer":
            return "number", parts[0]
        case "vector":
            return (kind, *(comparable(*part) for part in parts))
        case "set":
            return kind, frozenset(comparable(*part) for part in parts)
        case "map":
            return kind, frozenset((comparable(*k), comparable(*v)) for k, v in parts)
        case "tagged":
            return kind, parts[0], comparable(*parts[1])
        case "bytes":
            return kind, bytes(parts[0])
    return kind, *parts


def described(value: Any) -> Any:
    """Return a value with its type in JavaScript, which has no integers and no chars."""
    match value:
        case None | bool():
            return value
        case int():
            return "number", str(value)
        case float():
            return "number", str(int(value)) if value.is_integer() else repr(value)
        case Decimal():
            return described(TaggedValue("f", str(value)))
        case Fraction():
            return described(TaggedValue("ratio", [value.numerator, value.denominator]))
        case Keyword() | Symbol():
            return type(value).__name__.lower(), str(value)
        case URI():
            return described(TaggedValue("r", str(value)))
        case str():
            return "text", str(value)
        case UUID():
            return "uuid", str(value)
        case datetime():
            return "instant", round(value.timestamp() * 1000)
        case bytes():
            return "bytes", value
        case List():
            return described(TaggedValue("list", list(value)))
        case list() | tuple():
            return ("vector", *map(described, value))
        case set() | frozenset():
            return "set", frozenset(map(described, value))
        case dict() | FrozenMap():
            return "map", frozenset((described(key), described(of)) for key, of in value.items())
        case TaggedValue(tag, inner):
            return "tagged", tag, described(inner)
        case Link():
            names = ("href", "rel", "name", "prompt", "render")
            given = {name: getattr(value, name) for name in names}
            return described(TaggedValue("link", {k: v for k, v in given.items() if v is not None}))
    raise TypeError(value)


def test_rows_written_by_clojure(transit_js: Callable[[str], Any]) -> None:
    """transit-js reads rows written by Clojure, and our encoding of them, like the package."""
    for row in JOB_ROWS + ARCHIVED_ROWS:
        value = EXACT.decode(row["payload"])
        for text in (row["payload"], EXACT.encode(value)):
            assert comparable(*transit_js(text)) == described(value), row["name"]


# In transit-js, an empty vector equals an empty map: members of sets and keys of maps are scalars,
# or there is only one. It also fails on sets of three members of which two have the same hash, such
# as 0 and nil.
payloads = st.recursive(
    scalars | other_values,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner, max_size=3).map(List)
        | st.sets(scalars, max_size=2)
        | st.dictionaries(scalars, inner, max_size=4)
        | st.dictionaries(st.lists(scalars, max_size=3).map(tuple), inner, max_size=1)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(payloads)
def test_generated_payloads(transit_js: Callable[[str], Any], payload: Any) -> None:
    """transit-js reads every payload that can be written."""
    assert comparable(*transit_js(EXACT.encode(payload))) == described(payload)


MAPPING: dict[str, tuple[Any, list[Any]]] = {
    "nil": (None, ["constant", None]),
    "true": (True, ["constant", True]),
    "string": ("~text", ["text", "~text"]),
    "long": (2**53, ["integer", "9007199254740992"]),
    "bigint": (-(2**70), ["integer", "-1180591620717411303424"]),
    "double": (1.5, ["number", 1.5]),
    "##Inf": (-math.inf, ["number", "-Infinity"]),
    "##NaN": (math.nan, ["number", "NaN"]),
    "bigdec": (Decimal("1.50"), ["tagged", "f", ["text", "1.50"]]),
    "ratio": (Fraction(1, 3), ["tagged", "ratio", ["vector", ["integer", "1"], ["integer", "3"]]]),
    "vector": ((1, [2]), ["vector", ["number", 1], ["vector", ["number", 2]]]),
    "map": ({"to": "x"}, ["map", [["keyword", "to"], ["text", "x"]]]),
    "map with a vector as key": ({(1,): 2}, ["map", [["vector", ["number", 1]], ["number", 2]]]),
    "set": ({1}, ["set", ["number", 1]]),
    "keyword": (Keyword("my.app/k"), ["keyword", "my.app/k"]),
    "symbol": (Symbol("s"), ["symbol", "s"]),
    "char": (Char("c"), ["text", "c"]),
    "URI": (URI("http://x/æ"), ["tagged", "r", ["text", "http://x/æ"]]),
    "list": (List((1,)), ["tagged", "list", ["vector", ["number", 1]]]),
    "instant": (WHEN, ["instant", 1709210096789]),
    "UUID": (ID, ["uuid", str(ID)]),
    "byte array": (b"\x00\xff", ["bytes", [0, 255]]),
    "link": (
        Link(URI("x"), "r"),
        [
            "tagged",
            "link",
            [
                "map",
                [["text", "href"], ["tagged", "r", ["text", "x"]]],
                [["text", "rel"], ["text", "r"]],
            ],
        ],
    ),
    "tagged value": (TaggedValue("point", [1]), ["tagged", "point", ["vector", ["number", 1]]]),
}
"""The table in docs/howto/clojure.md: Python values and their values in transit-js."""


@pytest.mark.parametrize("clojure", MAPPING)
def test_documented_types(transit_js: Callable[[str], Any], clojure: str) -> None:
    """transit-js reads each type as documented."""
    value, expected = MAPPING[clojure]
    assert transit_js(TransitSerializer().encode(value)) == expected
