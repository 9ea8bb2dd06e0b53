"""Tests that Transit payloads are exchanged with Clojure without changes, or are rejected."""

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
"""The expected EDN of archived rows by name; the payload of all other rows is {:case name}."""


@pytest.mark.parametrize("row", JOB_ROWS, ids=lambda row: row["name"])
def test_job_rows_written_by_clojure_are_read(row: dict[str, Any]) -> None:
    """A payload is decoded to the value that Clojure decodes it to."""
    without_n = re.sub(r"(\d)N\b", r"\1", row["decoded_edn"])
    value = TRANSIT.decode(row["payload"])
    assert edn(value) == without_n
    assert edn(EXACT.decode(EXACT.encode(value))) == without_n


@pytest.mark.parametrize("row", ARCHIVED_ROWS, ids=lambda row: row["name"] or "returns-throwable")
def test_archived_rows_written_by_clojure_are_read(row: dict[str, Any]) -> None:
    expected = ARCHIVED.get(row["name"], f'{{:case "{row["name"]}"}}')
    value = TRANSIT.decode(row["payload"])
    assert edn(value) == expected
    assert edn(EXACT.decode(EXACT.encode(value))) == expected


def test_keywords_compare_as_strings() -> None:
    """A handler can use ``payload["to"]``, because a keyword is equal to its name."""
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
# No booleans or other values that equal an integer: Python treats them as the same key or member.
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


def with_types(value: Any, *, names_are_text: bool = False) -> Any:
    """Return a representation of the value that differs for values of different types."""
    inner = partial(with_types, names_are_text=names_are_text)
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
def test_any_transit_value_is_kept(payload: Any) -> None:
    """The types of the values are kept, too."""
    text = EXACT.encode(payload)
    text.encode()
    assert with_types(EXACT.decode(text)) == with_types(payload)


@given(payloads)
def test_values_are_equal_if_string_keys_become_keywords(payload: Any) -> None:
    """A keyword is equal to the string that it was encoded from."""
    decoded = TRANSIT.decode(TRANSIT.encode(payload))
    assert with_types(decoded, names_are_text=True) == with_types(payload, names_are_text=True)


def as_transit_python2(value: Any) -> Any:
    """Return the value that transit-python2 would decode."""
    if isinstance(value, bool):
        return other.true if value else other.false
    if isinstance(value, Keyword | Symbol | URI):
        return getattr(other, type(value).__name__)(str(value))
    if isinstance(value, dict | FrozenMap):
        return other.frozendict(
            {as_transit_python2(k): as_transit_python2(v) for k, v in value.items()}
        )
    if isinstance(value, list | tuple):
        return tuple(map(as_transit_python2, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(as_transit_python2, value))
    return value


# transit-python2 has no ratios, bytes or chars, and its milliseconds are floats.
seconds = times.map(lambda time: time.replace(microsecond=0))
supported_scalars = st.none() | st.integers() | texts | seconds | st.uuids() | words.map(Keyword)
supported_values = st.recursive(
    supported_scalars
    | st.booleans()
    | st.floats(allow_nan=False)
    | finite
    | words.map(Symbol)
    | words.map(URI),
    lambda inner: (
        st.lists(inner)
        | st.sets(
            supported_scalars | st.lists(supported_scalars, max_size=2).map(tuple), max_size=2
        )
        | st.dictionaries(supported_scalars | st.tuples(supported_scalars), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(supported_values)
def test_transit_python2_reads_the_encoded_text(payload: Any) -> None:
    """An independent implementation of Transit decodes an equal value."""
    read = Reader("json").read(io.StringIO(EXACT.encode(payload)))
    assert read == as_transit_python2(payload)


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
def test_the_encoded_text_of_each_type(payload: Any, text: str | None) -> None:
    """The text is that of the Clojure library, but without cache codes."""
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


def test_repeated_keys_are_written_without_cache_codes() -> None:
    """Every reader accepts text without cache codes."""
    assert TRANSIT.encode([{"name": 1}, {"name": 2}]) == '[["^ ","~:name",1],["^ ","~:name",2]]'


def test_string_keys_are_kept_if_keyword_keys_is_false() -> None:
    """Only keywords and the fields of typed payloads are then written as keywords."""
    assert EXACT.encode({"a": 1, Keyword("b"): Inner(2)}) == (
        '["^ ","a",1,"~:b",["^ ","~:n",2,"~:by_name",["^ "]]]'
    )


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Unsupported:
    pass


contains_itself: list[Any] = [1]
contains_itself.append(contains_itself)


@dataclass
class Inner:
    n: Any
    by_name: dict[str, int] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"at": [Unsupported()]}, "payload['at'][0] is a tests.unit.test_transit.Unsupported"),
        ({"due": date(2024, 1, 1)}, "payload['due'] is a datetime.date"),
        ([timedelta(1)], "payload[0] is a datetime.timedelta"),
        (OrderedDict(a=1), "payload is a collections.OrderedDict"),
        ({"at": WHEN.replace(tzinfo=None)}, "payload['at'] is a datetime without a time zone"),
        ({"at": WHEN + timedelta(microseconds=1)}, "payload['at'] is a datetime with microseconds"),
        ({WHEN.replace(tzinfo=None): 1}, "payload has the key datetime.datetime("),
        ([{1: {(Unsupported(),): 1}}], "payload[0][1] has the key (<tests.unit"),
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
        ([TaggedValue("point", [1, Unsupported()])], "payload[0].value[1] is a tests"),
        ([Link(URI("x"), None)], "payload[0] is a link with"),  # type: ignore[arg-type]
        ([Link(URI("x"), "r", render="film")], "payload[0] is a link with"),
        ([Inner([Unsupported()])], "payload[0].n[0] cannot be encoded"),
        (contains_itself, "payload contains itself"),
    ],
)
def test_unsupported_values_are_rejected_with_their_path(payload: Any, message: str) -> None:
    """The value would stop a Clojure worker or be decoded to a different value."""
    with pytest.raises(PayloadError) as error:
        TRANSIT.encode(payload)
    text = str(error.value)
    assert text.startswith(message)
    assert len(text) < 500


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not Transit"),
        ("[1] x", "is not Transit"),
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
def test_malformed_text_is_rejected(text: str, reason: str | None) -> None:
    """The message describes the problem and quotes only the start of the text."""
    with pytest.raises(PayloadError) as error:
        TRANSIT.decode(text)
    assert (reason or "equal in Python") in str(error.value)
    assert len(str(error.value)) < 400


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
def test_text_of_other_writers_is_read(text: str, value: Any) -> None:
    """The Clojure library reads these forms, although it does not write them."""
    expected = {Fraction(1, 2), Link(URI("x"), "r")} if value is None and "ratio" in text else value
    assert TRANSIT.decode(text) == expected


def cache_code(number: int) -> str:
    """Return the cache code of the string with this number."""
    return "^" + (
        chr(48 + number) if number < 44 else chr(48 + number // 44) + chr(48 + number % 44)
    )


def test_the_cache_starts_again_when_it_is_full() -> None:
    """The cache holds 1,936 strings; the next string gets the first code again."""
    names = [f"~:key-{number:04}" for number in range(1937)]
    full = TRANSIT.decode(json.dumps([*names[:1936], cache_code(0), cache_code(1935)]))
    assert full[1936:] == ["key-0000", "key-1935"]
    over = TRANSIT.decode(json.dumps([*names, cache_code(0)]))
    assert over[-1] == "key-1936"
    with pytest.raises(PayloadError, match="refers to no string"):
        TRANSIT.decode(json.dumps([*names, cache_code(1)]))


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
def test_a_payload_is_decoded_to_its_annotated_type(
    serializer: Serializer, payload: Any, annotation: Any
) -> None:
    decoded = serializer.decode(serializer.encode(payload, annotation), annotation)
    assert decoded == payload
    assert type(decoded) is type(payload)


def test_clojure_reads_fields_of_a_typed_payload_as_keywords() -> None:
    """The values of the fields have Clojure's types."""
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


def test_a_map_from_clojure_is_decoded_to_a_dataclass() -> None:
    """The keys of the map are keywords at any depth; a map of the wrong type is rejected."""
    text = '["^ ","~:n",["^ ","~:x",1],"~:by_name",["^ ","~:a",1]]'
    assert TRANSIT.decode(text, Inner) == Inner({"x": 1}, {"a": 1})
    with pytest.raises(PayloadError, match="does not fit Inner"):
        TRANSIT.decode('["^ ","~:n",1,"~:by_name",["^ ","~:a","x"]]', Inner)


@pytest.mark.parametrize("payload", [Inner(Unsupported()), Inner([Unsupported()])])
def test_unsupported_values_in_a_typed_payload_are_rejected(payload: Any) -> None:
    """The message has the path of the value."""
    with pytest.raises(PayloadError, match=r"payload\.n.* cannot be encoded"):
        TRANSIT.encode(payload)


class Anything(BaseModel):
    x: Any


def test_unsupported_values_in_a_pydantic_model_are_rejected() -> None:
    with pytest.raises(PayloadError, match=r"payload\['x'\] cannot be encoded"):
        TRANSIT.encode(Anything(x=Unsupported()))


@pytest.mark.parametrize("name", [":send", ":my.app/send-email", ":a", ":A_b.c-d9/E"])
def test_names_written_as_keywords_are_accepted(name: str) -> None:
    TRANSIT.check_names(queue=name, job_type=name)


MISREAD = [
    *("send", "nil", "123", "mail@host", "foo:"),
    *(":", ":foo:", "::foo", ":1abc", ":a/", ":/a", ":a/b/c", ":æ", ":a b", ":a\n", ""),
]


@pytest.mark.parametrize("name", MISREAD)
def test_other_names_are_rejected(name: str) -> None:
    """Queues and job types are checked unless ``keyword_names=False``."""
    with pytest.raises(ValueError, match="job_type must be written as a keyword"):
        TRANSIT.check_names(queue=":a", job_type=name)
    with pytest.raises(ValueError, match="queue must be written as a keyword"):
        TRANSIT.check_names(queue=name, job_type=":a")
    TransitSerializer(keyword_names=False).check_names(queue=name, job_type=name)


def test_the_value_types_have_a_repr_and_a_frozen_map_is_a_mapping() -> None:
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


def test_it_follows_the_serializer_protocol() -> None:
    assert isinstance(TRANSIT, Serializer)
