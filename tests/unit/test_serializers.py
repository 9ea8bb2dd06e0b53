"""Tests that the JSON serializer keeps a payload unchanged or rejects it with its path."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, NotRequired, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel

from sqlalchemy_proletarian import JSONSerializer, PayloadError, Serializer
from sqlalchemy_proletarian.serializers.typed import check_annotation

JSON = JSONSerializer()
WHEN = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)
ID = UUID("0190d1a4-0000-7000-8000-000000000001")

any_text = st.text(st.characters())  # NUL, control characters and lone surrogates included
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**4000), 10**4000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text
)
payloads = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(any_text, inner), max_leaves=30
)


def has_surrogate_pair(value: Any) -> bool:
    """Return whether JSON would join two lone surrogates into one character."""
    plain = json.dumps(value, ensure_ascii=True)
    return bool(json.loads(plain) != value)


def round_trip(payload: Any, annotation: Any = None) -> Any:
    """Return the payload after it was encoded and decoded."""
    text = JSON.encode(payload, annotation)
    text.encode()  # the driver would fail on a lone surrogate
    assert "\0" not in text
    return JSON.decode(text, annotation)


def same(left: Any, right: Any) -> bool:
    """Return whether two values are equal and of equal types: ``1 == 1.0 == True`` in Python."""
    return bool(left == right) and repr(left) == repr(right)


@given(payloads)
def test_any_json_value_is_kept(payload: Any) -> None:
    """This includes NUL, lone surrogates and huge integers."""
    assume(not has_surrogate_pair(payload))
    assert same(round_trip(payload), payload)


@given(st.one_of(payloads, st.floats()), st.booleans(), st.sampled_from((None, 2)))
def test_json_of_other_programs_is_decoded_as_python_does(
    payload: Any, escaped: bool, indent: int | None
) -> None:
    """This includes infinities, NaN and escaped surrogates, which strict JSON parsers reject."""
    text = json.dumps(payload, ensure_ascii=escaped, indent=indent)
    assert repr(JSON.decode(text)) == repr(json.loads(text))  # NaN does not equal itself


@given(st.recursive(scalars, lambda inner: st.lists(inner).map(tuple), max_leaves=10))
def test_tuples_become_lists(payload: Any) -> None:
    """A tuple is decoded to a list at any depth, and nothing else changes."""
    assume(not has_surrogate_pair(payload))

    def listed(value: Any) -> Any:
        return [listed(v) for v in value] if isinstance(value, tuple) else value

    assert same(round_trip(payload), listed(payload))


def test_unusual_characters_are_kept() -> None:
    """A NUL, a lone surrogate and an emoji are kept."""
    for text in ("\0", "a\0b", "\ud800", "x\udfff", "😀", "\N{LINE SEPARATOR}", "\\u0000", "é"):
        assert round_trip({text: text}) == {text: text}


def test_a_pair_of_lone_surrogates_is_rejected() -> None:
    """JSON would join them into one character."""
    with pytest.raises(PayloadError, match="surrogates meet"):
        JSON.encode("\ud83d\ude00")


def test_text_outside_ascii_is_not_escaped() -> None:
    """People can read the text in the table and search for it."""
    assert JSON.encode({"name": "Zoë 😀"}) == '{"name":"Zoë 😀"}'


def test_hundreds_of_levels_are_kept() -> None:
    nested: Any = "bottom"
    for level in range(300):
        nested = [nested] if level % 2 else {"deeper": nested}
    assert round_trip(nested) == nested


def test_too_deeply_nested_values_are_rejected() -> None:
    """A value that exceeds Python's recursion limit is rejected by encode and decode."""
    nested: Any = []
    for _ in range(sys.getrecursionlimit() * 2):
        nested = [nested]
    with pytest.raises(PayloadError, match="nested too deeply"):
        JSON.encode(nested)
    with pytest.raises(PayloadError, match="not JSON"):
        JSON.decode("[" * 200_000 + "]" * 200_000)


def test_an_integer_with_too_many_digits_is_rejected() -> None:
    """An integer that Python does not convert to text is rejected with Python's message."""
    with pytest.raises(PayloadError, match="digits"):
        JSON.encode({"n": 10**5000})


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Unit(Enum):
    METRE = 1


def test_str_and_int_enums_become_plain_values() -> None:
    """A member of a StrEnum or IntEnum is decoded to the equal text or number."""
    assert round_trip({"c": Colour.RED, "l": [Level.HIGH]}) == {"c": "red", "l": [3]}
    assert round_trip({Colour.RED: 1}) == {"red": 1}


contains_itself: list[Any] = [1]
contains_itself.append(contains_itself)
dict_contains_itself: dict[str, Any] = {}
dict_contains_itself["me"] = dict_contains_itself
Point = namedtuple("Point", "x y")  # noqa: PYI024 - users may have such classes


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({1, 2}, "payload is a builtins.set"),
        ({"ids": {1, 2}}, "payload['ids'] is a builtins.set"),
        ([0, {"raw": b"\xff"}], "payload[1]['raw'] is a builtins.bytes"),
        ({"a": ({"b": WHEN},)}, "payload['a'][0]['b'] is a datetime.datetime"),
        ([date(2024, 1, 1)], "payload[0] is a datetime.date"),
        ({"delay": timedelta(1)}, "payload['delay'] is a datetime.timedelta"),
        ({"sum": Decimal(1)}, "payload['sum'] is a decimal.Decimal"),
        ({"id": ID}, "payload['id'] is a uuid.UUID"),
        ({"path": Path("x")}, "payload['path'] is a pathlib"),
        ({"unit": Unit.METRE}, "payload['unit'] is a"),
        ({"at": Point(1, 2)}, "payload['at'] is a"),
        (OrderedDict(a=1), "payload is a collections.OrderedDict"),
        ({"x": 1j}, "payload['x'] is a builtins.complex"),
        ({"f": print}, "payload['f'] is a"),
        ([object], "payload[0] is a builtins.type"),
        (range(3), "payload is a builtins.range"),
        ((n for n in ()), "payload is a builtins.generator"),
        ({"a": [1.5, float("nan")]}, "payload['a'][1] is nan"),
        (float("inf"), "payload is inf"),
        ({"low": -float("inf")}, "payload['low'] is -inf"),
        ({"by id": {1: "x"}}, "payload['by id'] has the key 1"),
        ([{None: 1}], "payload[0] has the key None"),
        ([{10**5000: 1}], "payload[0] has the key a huge int"),
        ({("a", "b"): 1}, "payload has the key ('a', 'b')"),
        ({True: 1}, "payload has the key True"),
        ({b"k": 1}, "payload has the key b'k'"),
        (contains_itself, "payload contains itself"),
        ({"a": dict_contains_itself}, "payload contains itself"),
    ],
)
def test_unsupported_values_are_rejected_with_their_path(payload: Any, path: str) -> None:
    """A value that JSON cannot represent is rejected when it is encoded."""
    with pytest.raises(PayloadError) as error:
        JSON.encode(payload)
    assert str(error.value).startswith(path)


def test_the_message_does_not_repeat_a_huge_value() -> None:
    """Megabytes of a value would otherwise end up in the logs."""
    with pytest.raises(PayloadError) as error:
        JSON.encode({"raw": b"x" * 10**6})
    assert len(str(error.value)) < 500


@dataclass
class Line:
    name: str
    price: Decimal


@dataclass
class Order:
    id: UUID
    at: datetime
    lines: list[Line] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    colour: Colour = Colour.RED
    note: str | None = None
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Frozen:
    n: int


class Mail(TypedDict):
    to: str
    at: datetime
    ids: list[UUID]
    urgent: NotRequired[bool]


class Struct(msgspec.Struct):
    when: date
    sizes: tuple[int, ...]


class Model(BaseModel):
    id: UUID
    at: datetime
    lines: list[Line] = []
    inner: Model | None = None


ORDER = Order(ID, WHEN, [Line("tea", Decimal("3.10"))], {"new"}, Colour.RED, "€\0", b"\xff\x00")


@pytest.mark.parametrize(
    ("payload", "annotation"),
    [
        (ORDER, Order),
        ([ORDER, ORDER], list[Order]),
        ({"first": ORDER}, dict[str, Order]),
        (None, Order | None),
        (Frozen(3), Frozen),
        ({"to": "a@example.com", "at": WHEN, "ids": [ID]}, Mail),
        ({"to": "a@example.com", "at": WHEN, "ids": [], "urgent": True}, Mail),
        (Struct(date(2024, 1, 1), (1, 2)), Struct),
        (Model(id=ID, at=WHEN, lines=[Line("a", Decimal(1))]), Model),
        (Model(id=ID, at=WHEN, inner=Model(id=ID, at=WHEN)), Model),
        ([Model(id=ID, at=WHEN)], list[Model]),
        (None, Model | None),
        ((1, 2), tuple[int, int]),
        (3, int),
        ("x", str),
        ({"a": [1]}, dict),
        ([1, "x"], list),
    ],
)
def test_a_payload_is_decoded_to_its_annotated_type(payload: Any, annotation: Any) -> None:
    """The fields of the payload also have their declared types."""
    back = round_trip(payload, annotation)
    assert back == payload
    assert type(back) is type(payload)


@given(
    st.builds(Order, st.uuids(), st.datetimes(timezones=st.just(UTC)), note=st.none() | any_text)
)
def test_any_field_value_of_a_dataclass_is_kept(order: Order) -> None:
    assume(not has_surrogate_pair(order.note))
    try:
        text = JSON.encode(order)
    except PayloadError:
        assert order.note is not None
        assert any("\ud800" <= character <= "\udfff" for character in order.note)
    else:
        assert JSON.decode(text, Order) == order


@pytest.mark.parametrize(
    ("payload", "annotation", "path"),
    [
        ([Frozen(float("nan"))], None, "payload[0]['n'] is nan"),  # type: ignore[arg-type]
        ({"o": [Frozen(object())]}, None, "payload['o'][0].n is a builtins.object"),  # type: ignore[arg-type]
        ({"to": object()}, Mail, "payload['to'] is a builtins.object"),
        ({"to": 10**5000}, dict[str, Any], "payload['to'] cannot be encoded"),
        ({"to": {1: 2}}, dict[str, Any], "payload['to'] has the key 1"),
    ],
)
def test_unsupported_values_in_a_typed_payload_are_rejected(
    payload: Any, annotation: Any, path: str
) -> None:
    with pytest.raises(PayloadError) as error:
        JSON.encode(payload, annotation)
    assert str(error.value).startswith(path)


def test_a_dataclass_that_contains_itself_is_rejected() -> None:
    """Encoding it would otherwise not end."""

    @dataclass
    class Node:
        next: Any = None

    node = Node()
    node.next = node
    with pytest.raises(PayloadError, match="cannot be encoded"):
        JSON.encode(node)


@pytest.mark.parametrize(
    ("text", "annotation", "reason"),
    [
        ("", None, "the payload is not JSON"),
        ("{", None, "the payload is not JSON"),
        ("hello", None, "is not JSON: Expecting value: line 1 column 1"),
        ('{"n": "x"}', Frozen, r"does not fit Frozen: Expected `int`, got `str` - at `\$.n`"),
        ("{}", Frozen, "does not fit Frozen"),
        ('{"id": "?"}', Model, "does not fit Model"),
        ('[{"id": 1}]', list[Model], "does not fit list"),
        ('{"to": 1}', Mail, "does not fit Mail"),
        ('"x"', int, "does not fit int: Expected `int`, got `str`"),
        ("3", Model | None, "does not fit"),
    ],
)
def test_malformed_or_mismatched_text_is_rejected(text: str, annotation: Any, reason: str) -> None:
    """The message describes the problem."""
    with pytest.raises(PayloadError, match=reason):
        JSON.decode(text, annotation)


def test_the_message_quotes_only_the_start_of_malformed_text() -> None:
    with pytest.raises(PayloadError) as error:
        JSON.decode("x" * 10**6)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("annotation", [int, Order, Mail, Struct, Model, list[Model], Any, None])
def test_supported_payload_annotations(annotation: Any) -> None:
    check_annotation(annotation)


def test_the_default_serializer_follows_the_protocol() -> None:
    """Custom serializers of users follow the same protocol."""
    assert isinstance(JSON, Serializer)
