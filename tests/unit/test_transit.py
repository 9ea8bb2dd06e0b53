"""What Clojure wrote is read as what it was; what is written, Clojure reads, or it is refused."""

from __future__ import annotations

import io
import json
import math
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from functools import partial
from typing import Any, TypedDict
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, HttpUrl, RootModel
from transit import transit_types as other
from transit.reader import Reader

from sqlalchemy_proletarian import PayloadError, Serializer, TransitSerializer
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
from tests.clojure import ARCHIVED_ROWS, JOB_ROWS, edn

TRANSIT = TransitSerializer()
EXACT = TransitSerializer(keyword_keys=False)
WHEN = datetime(2024, 2, 29, 12, 34, 56, 789000, tzinfo=UTC)
NEW = Keyword("new")
ID = UUID("f81d4fae-7dec-11d0-a765-00a0c91e6bf6")

ARCHIVED = {
    "list-empty": "()",
    "string-empty": '""',
    "kw-ns-top": ":foo/bar",
    "int-top": "42",
    "bigint": "[1 123456789012345678901234567890 -5]",
    "double-top": "1.5",
    "list-in-map": "{:l (1 (2 3) ()), :s #{1}}",
    "set-nested": "#{#{:aaaa}}",
    "map-double-key": '{1.5 "x"}',
    "map-bigdec-key": "{1.5M 1}",
    "cmap-set-key": "{#{1} 2}",
    "instant-top": '#instant "2024-02-29T12:34:56.789Z"',
    "uuid-top": f'#uuid "{ID}"',
    "uri": '{:u #transit.URI "https://example.com/æ?q=1#f"}',
    "link": '#link [#transit.URI "http://www.blah.com" "search" "blah" "prompt" "link"]',
    "chars-array": "[\\a \\b]",
    "record": "{:y 2, :x 1}",
    "cache-repeat-keys": (
        '[{:aaaa 1, :bbbb 2, :to "x"} {:aaaa 1, :bbbb 2, :to "x"} {:aaaa 1, :bbbb 2, :to "x"}]'
    ),
    "cache-nested-order": "{:outer {:inner {:deep :outer}}, :inner [:deep :outer :inner]}",
    "cache-inst-keys": (
        '[{#instant "2024-02-29T12:34:56.789Z" 1} {#instant "2024-02-29T12:34:56.789Z" 2}]'
    ),
    "tricky-vector-first-tag": '["~#set" [1]]',
    "sql-date": '#instant "1970-01-01T00:00:00Z"',
    "": "{:t :test/ok-returns-throwable}",
}
"""What the archived rows are, whose own description is their name; the others are {:case name}."""


@pytest.mark.parametrize("row", JOB_ROWS, ids=lambda row: row["name"])
def test_rows_of_the_original(row: dict[str, Any]) -> None:
    """A payload that Clojure wrote is read as what Clojure itself reads there."""
    without_n = re.sub(r"(\d)N\b", r"\1", row["decoded_edn"])
    value = TRANSIT.decode(row["payload"])
    assert edn(value) == without_n
    assert edn(EXACT.decode(EXACT.encode(value))) == without_n


@pytest.mark.parametrize("row", ARCHIVED_ROWS, ids=lambda row: row["name"] or "returns-throwable")
def test_archived_rows_of_the_original(row: dict[str, Any]) -> None:
    """So is one from its archive."""
    expected = ARCHIVED.get(row["name"], f'{{:case "{row["name"]}"}}')
    value = TRANSIT.decode(row["payload"])
    assert edn(value) == expected
    assert edn(EXACT.decode(EXACT.encode(value))) == expected


def test_keywords_are_strings() -> None:
    """A handler asks for payload["to"], and a keyword compares as its name."""
    payload = TRANSIT.decode('["^ ","~:to","a@b.c","~:kind","~:my.app/urgent"]')
    assert payload["to"] == "a@b.c"
    assert payload["kind"] == "my.app/urgent"
    assert f"{payload['kind']}" == "my.app/urgent"
    assert repr(payload["kind"]) == "Keyword('my.app/urgent')"


texts = st.text(st.characters(exclude_categories=["Cs"]))
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
times = st.datetimes(timezones=st.just(UTC)).map(
    lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000, fold=0)
)
finite = st.decimals(allow_nan=False, allow_infinity=False)
# Without booleans and what else equals an integer: such keys and members are one in Python.
scalars = (
    st.none()
    | st.integers()
    | texts
    | times
    | st.uuids()
    | st.binary()
    | words.map(Keyword)
    | words.map(Symbol)
)
hashable = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(inner, max_size=3)
        | st.dictionaries(inner, inner, max_size=3).map(FrozenMap)
        | st.lists(inner, max_size=3).map(List)
    ),
    max_leaves=5,
)
other_values = (
    st.booleans()
    | st.floats(allow_nan=False)
    | finite
    | st.fractions()
    | st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]).map(Char)
    | words.map(URI)
    | st.builds(Link, words.map(URI), words, st.none() | words, render=st.just("image"))
    | st.builds(TaggedValue, st.sampled_from(["point", "p", "my.app/x"]), texts)
)
payloads = st.recursive(
    hashable | other_values,
    lambda inner: (
        st.lists(inner)
        | st.sets(hashable, max_size=3)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.lists(inner, max_size=3).map(List)
    ),
    max_leaves=20,
)


def loose(value: Any, *, names_are_text: bool = False) -> Any:
    """Return what tells values apart by their types, where ``==`` does not."""
    inner = partial(loose, names_are_text=names_are_text)
    if isinstance(value, frozenset | set):
        return "set", frozenset(map(inner, value))
    if isinstance(value, dict | FrozenMap):
        return "map", frozenset((inner(k), inner(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, List) else "vector"
        return (kind, *map(inner, value))
    if isinstance(value, TaggedValue):
        return "tagged", value.tag, inner(value.value)
    if isinstance(value, str) and names_are_text:
        return str(value)
    return type(value), repr(value)


@given(payloads)
def test_round_trip(payload: Any) -> None:
    """Whatever Transit has comes back as it was, types included."""
    text = EXACT.encode(payload)
    text.encode()
    assert loose(EXACT.decode(text)) == loose(payload)


@given(payloads)
def test_round_trip_with_keyword_keys(payload: Any) -> None:
    """Where strings become keywords, what comes back is equal."""
    back = TRANSIT.decode(TRANSIT.encode(payload))
    assert loose(back, names_are_text=True) == loose(payload, names_are_text=True)


def as_read_by_the_other(value: Any) -> Any:
    """Return what transit-python2 makes of ``value``."""
    if isinstance(value, bool):
        return other.true if value else other.false
    if isinstance(value, Keyword | Symbol | URI):
        return getattr(other, type(value).__name__)(str(value))
    if isinstance(value, dict | FrozenMap):
        return other.frozendict(
            {as_read_by_the_other(k): as_read_by_the_other(v) for k, v in value.items()}
        )
    if isinstance(value, list | tuple):
        return tuple(map(as_read_by_the_other, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(as_read_by_the_other, value))
    return value


# It has no ratios, bytes or chars, and its milliseconds are floats.
seconds = times.map(lambda time: time.replace(microsecond=0))
known_to_it = st.none() | st.integers() | texts | seconds | st.uuids() | words.map(Keyword)
independent = st.recursive(
    known_to_it
    | st.booleans()
    | st.floats(allow_nan=False)
    | finite
    | words.map(Symbol)
    | words.map(URI),
    lambda inner: (
        st.lists(inner)
        | st.sets(known_to_it | st.lists(known_to_it, max_size=2).map(tuple), max_size=2)
        | st.dictionaries(known_to_it | st.tuples(known_to_it), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(independent)
def test_another_reader_agrees(payload: Any) -> None:
    """Another implementation of Transit reads what is written as what it was."""
    read = Reader("json").read(io.StringIO(EXACT.encode(payload)))
    assert read == as_read_by_the_other(payload)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"to": "a@b.c"}, '["^ ","~:to","a@b.c"]'),
        ({Keyword("a/b"): Keyword("c")}, '["^ ","~:a/b","~:c"]'),
        ({}, '["^ "]'),
        ([], "[]"),
        ("hello", '["~#\'","hello"]'),
        (None, '["~#\'",null]'),
        (Keyword("foo"), '["~#\'","~:foo"]'),
        ([2**53 - 1, 2**53, -(2**53), 1 - 2**53], None),
        ([2**63 - 1, 2**63, -(2**63), -(2**63) - 1], None),
        ([1.5, 1.0, 1e16, -0.0], "[1.5,1.0,1e+16,-0.0]"),
        ([math.nan, math.inf, -math.inf], '["~zNaN","~zINF","~z-INF"]'),
        (Decimal("1.50"), '["~#\'","~f1.50"]'),
        (Fraction(1, 3), '["~#ratio",["~n1","~n3"]]'),
        (WHEN, '["~#\'","~m1709210096789"]'),
        (WHEN.astimezone(timezone(timedelta(hours=2))), '["~#\'","~m1709210096789"]'),
        (datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=UTC), '["~#\'","~m-1"]'),
        (b"\x00\x01\x02\x07\x80\xff", '["~#\'","~bAAECB4D/"]'),
        ({ID: 1}, f'["^ ","~u{ID}",1]'),
        (
            {1: 2, None: 3, 1.5: 4, WHEN: 5, Decimal("2.5"): 6, math.inf: 7, Char("c"): 8},
            '["^ ","~i1",2,"~_",3,"~d1.5",4,"~m1709210096789",5,"~f2.5",6,"~zINF",7,"~cc",8]',
        ),
        ({(1, 2): "v", 1: 5, "str": 3, None: 4}, None),
        (["~x", "^x", "`x", "^ ", "^0", "#x"], '["~~x","~^x","~`x","~^ ","~^0","#x"]'),
        ([TaggedValue("point", [1, 2])], '[["~#point",[1,2]]]'),
        (TaggedValue("p", "xy"), '["~#\'","~pxy"]'),
        (TaggedValue("p", Keyword("xy")), '["~#p","~:xy"]'),
        ((1, 2), "[1,2]"),
        (List((1, 2)), '["~#list",[1,2]]'),
        ("nul \0 and 😀", '["~#\'","nul \\u0000 and 😀"]'),
    ],
)
def test_as_it_is_written(payload: Any, text: str | None) -> None:
    """The forms are those of the original, spelt out: nothing refers to an earlier string."""
    written = TRANSIT.encode(payload)
    if text is not None:
        assert written == text
    elif isinstance(payload, dict):
        assert written == '["~#cmap",[[1,2],"v",1,5,"~:str",3,null,4]]'
    else:
        numbers = json.loads(written)
        small = [n for n in payload if abs(n) < 2**53]
        assert [n for n in numbers if isinstance(n, int)] == small
        for number in set(payload) - set(small):
            fits = -(2**63) <= number < 2**63
            assert ("~i" if fits else "~n") + str(number) in numbers


def test_no_codes() -> None:
    """Keys that repeat are spelt out each time: every reader takes that."""
    assert TRANSIT.encode([{"name": 1}, {"name": 2}]) == '[["^ ","~:name",1],["^ ","~:name",2]]'


def test_string_keys() -> None:
    """With keyword_keys=False only what is a keyword is written as one, and typed fields."""
    assert EXACT.encode({"a": 1, Keyword("b"): Inner(2)}) == (
        '["^ ","a",1,"~:b",["^ ","~:n",2,"~:by_name",["^ "]]]'
    )


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Unheard:
    pass


self_referring: list[Any] = [1]
self_referring.append(self_referring)


@dataclass
class Inner:
    n: Any
    by_name: dict[str, int] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"at": [Unheard()]}, "payload['at'][0] is a tests.unit.test_transit.Unheard"),
        ({"due": date(2024, 1, 1)}, "payload['due'] is a datetime.date"),
        ([timedelta(1)], "payload[0] is a datetime.timedelta"),
        (OrderedDict(a=1), "payload is a collections.OrderedDict"),
        ({"at": WHEN.replace(tzinfo=None)}, "payload['at'] is a datetime without a time zone"),
        ({"at": WHEN + timedelta(microseconds=1)}, "payload['at'] is a datetime with microseconds"),
        ({WHEN.replace(tzinfo=None): 1}, "payload has the key datetime.datetime("),
        ([{1: {(Unheard(),): 1}}], "payload[0][1] has the key (<tests.unit"),
        ({"\ud800": 1}, "payload has the key '\\ud800', which has a lone surrogate"),
        (["\ud83d"], "payload[0] has a lone surrogate in it"),
        ([Char("\ud83d")], "payload[0] has a lone surrogate in it"),
        ({"n": 10**5000}, "payload['n'] cannot be encoded"),
        ([{10**5000: 1}], "payload[0] has the key a huge int, which cannot be encoded"),
        ([Fraction(10**5000)], "payload[0] cannot be encoded"),
        ([Decimal("NaN")], "payload[0] is a Decimal that the JVM does not support"),
        ([Decimal("-Infinity")], "payload[0] is a Decimal that the JVM does not support"),
        ([Decimal("1E+9999999999")], "payload[0] is a Decimal that the JVM does not support"),
        ([TaggedValue("m", 17)], "payload[0] has the tag 'm'"),
        ([TaggedValue("", 17)], "payload[0] has the tag ''"),
        ([TaggedValue("point", [1, Unheard()])], "payload[0].value[1] is a tests"),
        ([Link(URI("x"), None)], "payload[0] is a link with"),  # type: ignore[arg-type]
        ([Link(URI("x"), "r", render="film")], "payload[0] is a link with"),
        ([Inner([Unheard()])], "payload[0].n[0] cannot be encoded"),
        (self_referring, "payload contains itself"),
    ],
)
def test_refused_with_the_place(payload: Any, message: str) -> None:
    """What would stop a Clojure worker, or come back changed, is refused at the call."""
    with pytest.raises(PayloadError) as refusal:
        TRANSIT.encode(payload)
    text = str(refusal.value)
    assert text.startswith(message)
    assert len(text) < 500


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not Transit"),
        ("[1] x", "it starts with"),
        ("{", "is not Transit"),
        ('{"x":NaN}', "NaN is not JSON"),
        ('{"x":"~foo"}', "'oo' cannot be read as ~f"),
        ('["~mxx"]', "'xx' cannot be read as ~m"),
        ('["~m99999999999999999999"]', "is not Transit"),
        ('["~#m",1709210096789]', "the tag m has the value 1709210096789"),
        ('["~txx"]', "cannot be read as ~t"),
        ('["~t2024-02-29T12:34:56"]', "cannot be read as ~t"),
        ('["~u{f81d4fae7dec11d0a76500a0c91e6bf6}"]', "cannot be read as ~u"),
        ('["~uxx"]', "cannot be read as ~u"),
        ('["~b-_-_"]', "cannot be read as ~b"),
        ('["~i1_000"]', "cannot be read as ~i"),
        ('["~fInfinity"]', "cannot be read as ~f"),
        ('["~zNothing"]', "cannot be read as ~z"),
        ('["~?x"]', "cannot be read as ~?"),
        ('["~c"]', "cannot be read as ~c"),
        ('["~c😀"]', "cannot be read as ~c"),
        ('{"x":"^1"}', "the code '^1' refers to no string"),
        ('["^"]', "the code '^' refers to no string"),
        ('[1,"^ "]', "the code '^ ' refers to no string"),
        ('["^000"]', "refers to no string"),
        ('["^ ",1]', "is not Transit"),
        ('["~#cmap",[1]]', "is not Transit"),
        ('["~#set",1]', "the tag set has the value 1"),
        ('["~#set",{"a":1}]', "the tag set has the value"),
        ('["~#ratio",["~n1","~n0"]]', "cannot be read as ~ratio"),
        ('["~#ratio",["~n1"]]', "cannot be read as ~ratio"),
        ('["~#link",["^ ","~:x",1]]', "cannot be read as ~link"),
        ('["~#set",[1],[2]]', "has 2 values"),
        ('[1,"~#set"]', "the tag set has no value"),
        ('["^ ","~:a",1,"a",2]', "two keys of a map are equal in Python: 'a'"),
        ('["~#set",[1,"~?t"]]', None),
        ('["~#set",[1,true]]', "two members of a set are equal in Python"),
        ("[" * 200_000 + "]" * 200_000, "is not Transit"),
    ],
)
def test_text_that_is_no_transit(text: str, reason: str | None) -> None:
    """Stored text that is malformed is an error that says why, and quotes its beginning only."""
    with pytest.raises(PayloadError) as refusal:
        TRANSIT.decode(text)
    assert (reason or "equal in Python") in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"~:to":"a@b.c"}', {"to": "a@b.c"}),
        ('{"to":"a@b.c","n":1}', {"to": "a@b.c", "n": 1}),
        ("{}", {}),
        ("42", 42),
        ("null", None),
        ('"~:foo"', Keyword("foo")),
        ('{"~#set":[1]}', {1}),
        ('{"~#cmap":[[1],"v"]}', {(1,): "v"}),
        ('{"~#\'":42}', 42),
        ('["^ ",["~#set",[1]],2]', {frozenset({1}): 2}),
        ('{"path":"~/home"}', {"path": TaggedValue("/", "home")}),
        ('["~t2024-02-29T14:34:56.789+02:00","~t2024-02-29T12:34:56.789Z"]', [WHEN, WHEN]),
        ('["~#m","1709210096789"]', WHEN),
        ("[12345678901234567890]", [12345678901234567890]),
        ('["~","`x"]', ["~", "`x"]),
        ('["~#set",[["~#ratio",["~n1","~n2"]],["~#link",["^ ","rel","r","href","~rx"]]]]', None),
        ('["~#set",[["^ ","~:a",[1]]]]', {FrozenMap({"a": (1,)})}),
    ],
)
def test_forms_that_others_write(text: str, value: Any) -> None:
    """Forms that the original reads, though it does not write them, are read as it reads them."""
    expected = {Fraction(1, 2), Link(URI("x"), "r")} if value is None and "ratio" in text else value
    assert TRANSIT.decode(text) == expected


def code(number: int) -> str:
    """Return the code of a cached string."""
    return "^" + (
        chr(48 + number) if number < 44 else chr(48 + number // 44) + chr(48 + number % 44)
    )


def test_more_strings_than_the_cache_holds() -> None:
    """After 1,936 strings the codes begin anew with the next, and not before."""
    names = [f"~:key-{number:04}" for number in range(1937)]
    full = TRANSIT.decode(json.dumps([*names[:1936], code(0), code(1935)]))
    assert full[1936:] == ["key-0000", "key-1935"]
    over = TRANSIT.decode(json.dumps([*names, code(0)]))
    assert over[-1] == "key-1936"
    with pytest.raises(PayloadError, match="refers to no string"):
        TRANSIT.decode(json.dumps([*names, code(1)]))


class Mail(TypedDict):
    to: str
    on: date


class Struct(msgspec.Struct, rename="kebab", tag="struct"):
    send_at: datetime
    ids: set[UUID]


class Row(msgspec.Struct, array_like=True):
    a: int
    b: str


class TaggedRow(msgspec.Struct, array_like=True, tag=True):
    a: int


@attrs.define
class Attrs:
    a: int
    when: datetime


class Model(BaseModel):
    id: UUID
    at: datetime
    site: HttpUrl
    sizes: dict[str, Decimal] = {}


class Root(RootModel[list[int]]):
    pass


@dataclass
class Order:
    id: UUID
    at: datetime
    on: date
    lines: list[Inner] = field(default_factory=list)
    price: Decimal = Decimal("1.50")
    third: Fraction = Fraction(1, 3)
    tags: set[str] = field(default_factory=set)
    kind: Keyword = NEW
    colour: Colour = Colour.RED
    level: Level = Level.HIGH
    raw: bytes = b"\xff"
    wait: timedelta = timedelta(seconds=1)


@pytest.mark.parametrize("serializer", [TRANSIT, EXACT])
@pytest.mark.parametrize(
    ("payload", "annotation"),
    [
        (Order(ID, WHEN, date(2024, 1, 1), [Inner(1, {"a": 2})], tags={"x"}), Order),
        ([Inner(1)], list[Inner]),
        ({"to": "x", "on": date(2024, 1, 1)}, Mail),
        (Struct(WHEN, {ID}), Struct),
        (Row(1, "b"), Row),
        (TaggedRow(1), TaggedRow),
        (Attrs(1, WHEN), Attrs),
        (Model(id=ID, at=WHEN, site=HttpUrl("http://x/"), sizes={"a": Decimal("1.5")}), Model),
        ([Model(id=ID, at=WHEN, site=HttpUrl("http://x/"))], list[Model]),
        (Root([1, 2]), Root),
        ({"a": {"b": 1}}, dict[str, dict[str, int]]),
        (3, int),
    ],
)
def test_typed_round_trip(serializer: Serializer, payload: Any, annotation: Any) -> None:
    """A payload comes back as the type that the handler's annotation names."""
    back = serializer.decode(serializer.encode(payload, annotation), annotation)
    assert back == payload
    assert type(back) is type(payload)


def test_typed_payload_in_clojure() -> None:
    """Clojure sees the fields of a typed payload as keywords, and values of its own types."""
    order = Order(ID, WHEN, date(2024, 1, 1), [Inner(1)], tags={"x"})
    assert edn(EXACT.decode(EXACT.encode(order))) == (
        f'{{:id #uuid "{ID}", :at #instant "2024-02-29T12:34:56.789Z", :on "2024-01-01", '
        ':lines [{:n 1, :by_name {}}], :price 1.50M, :third Fraction(1, 3), :tags #{"x"}, '
        ':kind :new, :colour "red", :level 3, :raw #bytes "ff", :wait "PT1S"}'
    )
    assert TRANSIT.encode(Struct(WHEN, set())) == (
        '["^ ","~:type","struct","~:send-at","~m1709210096789","~:ids",["~#set",[]]]'
    )
    model = Model(id=ID, at=WHEN, site=HttpUrl("http://x/"))
    assert edn(EXACT.decode(EXACT.encode(model))) == (
        f'{{:id #uuid "{ID}", :at #instant "2024-02-29T12:34:56.789Z", :site "http://x/", '
        ":sizes {}}"
    )


def test_typed_payload_from_clojure() -> None:
    """A map with keyword keys fills a dataclass, at any depth; one that does not fit is refused."""
    text = '["^ ","~:n",["^ ","~:x",1],"~:by_name",["^ ","~:a",1]]'
    assert TRANSIT.decode(text, Inner) == Inner({"x": 1}, {"a": 1})
    with pytest.raises(PayloadError, match="does not fit Inner"):
        TRANSIT.decode('["^ ","~:n",1,"~:by_name",["^ ","~:a","x"]]', Inner)


@pytest.mark.parametrize("payload", [Inner(Unheard()), Inner([Unheard()])])
def test_typed_payload_refused(payload: Any) -> None:
    """A typed payload with a value that cannot be encoded is refused, with its place."""
    with pytest.raises(PayloadError, match=r"payload\.n.* cannot be encoded"):
        TRANSIT.encode(payload)


class Anything(BaseModel):
    x: Any


def test_pydantic_payload_refused() -> None:
    """So is a pydantic model."""
    with pytest.raises(PayloadError, match=r"payload\['x'\] cannot be encoded"):
        TRANSIT.encode(Anything(x=Unheard()))


@pytest.mark.parametrize("name", [":send", ":my.app/send-email", ":a", ":A_b.c-d9/E"])
def test_names_that_clojure_reads(name: str) -> None:
    """Names written as keywords pass."""
    TRANSIT.check_names(queue=name, job_type=name)


MISREAD = [
    *("send", "nil", "123", "mail@host", "foo:"),
    *(":", ":foo:", "::foo", ":1abc", ":a/", ":/a", ":a/b/c", ":æ", ":a b", ":a\n", ""),
]


@pytest.mark.parametrize("name", MISREAD)
def test_names_that_clojure_misreads(name: str) -> None:
    """Others are refused, whichever of the two it is, unless they are meant."""
    with pytest.raises(ValueError, match="job_type must be written as a keyword"):
        TRANSIT.check_names(queue=":a", job_type=name)
    with pytest.raises(ValueError, match="queue must be written as a keyword"):
        TRANSIT.check_names(queue=name, job_type=":a")
    TransitSerializer(keyword_names=False).check_names(queue=name, job_type=name)


def test_values() -> None:
    """The values of its own say what they are, and a frozen map is a mapping."""
    assert [repr(v) for v in (Symbol("s"), Char("c"), URI("u"), List((1,)))] == [
        "Symbol('s')",
        "Char('c')",
        "URI('u')",
        "List([1])",
    ]
    frozen = FrozenMap({"a": 1})
    assert (frozen["a"], len(frozen), repr(frozen)) == (1, 1, "FrozenMap({'a': 1})")
    assert frozen == {"a": 1}
    with pytest.raises(ValueError, match="one character"):
        Char("ab")


def test_protocol() -> None:
    """It is a serializer by the protocol."""
    assert isinstance(TRANSIT, Serializer)
