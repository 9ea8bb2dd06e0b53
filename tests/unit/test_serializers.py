"""What a payload is after it was text: the same, or refused with its place."""

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


def surrogates_meet(value: Any) -> bool:
    """Tell whether JSON would make one character of two lone surrogates."""
    plain = json.dumps(value, ensure_ascii=True)
    return bool(json.loads(plain) != value)


def there_and_back(payload: Any, annotation: Any = None) -> Any:
    """Encode and decode."""
    text = JSON.encode(payload, annotation)
    text.encode()  # a lone surrogate would fail in the driver
    assert "\0" not in text
    return JSON.decode(text, annotation)


def same(left: Any, right: Any) -> bool:
    """Compare with types: 1, 1.0 and True are equal to ``==``."""
    return bool(left == right) and repr(left) == repr(right)


@given(payloads)
def test_round_trip(payload: Any) -> None:
    """Any JSON value comes back as it was: NUL, surrogates, huge integers and all."""
    assume(not surrogates_meet(payload))
    assert same(there_and_back(payload), payload)


@given(st.recursive(scalars, lambda inner: st.lists(inner).map(tuple), max_leaves=10))
def test_tuples_become_lists(payload: Any) -> None:
    """A tuple comes back as a list, at any depth, and nothing else changes."""
    assume(not surrogates_meet(payload))

    def listed(value: Any) -> Any:
        return [listed(v) for v in value] if isinstance(value, tuple) else value

    assert same(there_and_back(payload), listed(payload))


def test_awkward_texts() -> None:
    """A NUL, a lone surrogate and an emoji come back."""
    for text in ("\0", "a\0b", "\ud800", "x\udfff", "😀", "\N{LINE SEPARATOR}", "\\u0000", "é"):
        assert there_and_back({text: text}) == {text: text}


def test_surrogates_that_meet_are_refused() -> None:
    """Two lone surrogates that JSON would join are refused, not changed."""
    with pytest.raises(PayloadError, match="surrogates meet"):
        JSON.encode("\ud83d\ude00")


def test_readable_in_the_table() -> None:
    """Text outside ASCII is stored as it is, so that people can read and search it."""
    assert JSON.encode({"name": "Zoë 😀"}) == '{"name":"Zoë 😀"}'


def test_deep_nesting() -> None:
    """Hundreds of levels come back."""
    nested: Any = "bottom"
    for level in range(300):
        nested = [nested] if level % 2 else {"deeper": nested}
    assert there_and_back(nested) == nested


def test_too_deep() -> None:
    """What is nested deeper than Python can follow is refused, at either end."""
    nested: Any = []
    for _ in range(sys.getrecursionlimit() * 2):
        nested = [nested]
    with pytest.raises(PayloadError, match="nested too deeply"):
        JSON.encode(nested)
    with pytest.raises(PayloadError, match="not JSON"):
        JSON.decode("[" * 200_000 + "]" * 200_000)


def test_integer_with_too_many_digits() -> None:
    """An integer that Python will not write out is refused with Python's reason."""
    with pytest.raises(PayloadError, match="digits"):
        JSON.encode({"n": 10**5000})


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Unit(Enum):
    METRE = 1


def test_values_equal_to_plain_ones() -> None:
    """Members of StrEnum and IntEnum come back as the text or number that they equal."""
    assert there_and_back({"c": Colour.RED, "l": [Level.HIGH]}) == {"c": "red", "l": [3]}
    assert there_and_back({Colour.RED: 1}) == {"red": 1}


self_referring: list[Any] = [1]
self_referring.append(self_referring)
self_referring_dict: dict[str, Any] = {}
self_referring_dict["me"] = self_referring_dict
Point = namedtuple("Point", "x y")  # noqa: PYI024 - what a user may have


@pytest.mark.parametrize(
    ("payload", "place"),
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
        (self_referring, "payload contains itself"),
        ({"a": self_referring_dict}, "payload contains itself"),
    ],
)
def test_refused_with_the_place(payload: Any, place: str) -> None:
    """What JSON cannot give back is refused when it is encoded, and the message says where."""
    with pytest.raises(PayloadError) as refusal:
        JSON.encode(payload)
    assert str(refusal.value).startswith(place)


def test_refusal_does_not_repeat_a_huge_value() -> None:
    """The message about a bad value does not carry megabytes of it into the logs."""
    with pytest.raises(PayloadError) as refusal:
        JSON.encode({"raw": b"x" * 10**6})
    assert len(str(refusal.value)) < 500


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
def test_typed_round_trip(payload: Any, annotation: Any) -> None:
    """A payload comes back as the type that the handler's annotation names, its fields included."""
    back = there_and_back(payload, annotation)
    assert back == payload
    assert type(back) is type(payload)


@given(
    st.builds(Order, st.uuids(), st.datetimes(timezones=st.just(UTC)), note=st.none() | any_text)
)
def test_any_dataclass_round_trip(order: Order) -> None:
    """Whatever stands in a dataclass's fields comes back."""
    assume(not surrogates_meet(order.note))
    try:
        text = JSON.encode(order)
    except PayloadError:
        assert order.note is not None
        assert any("\ud800" <= character <= "\udfff" for character in order.note)
    else:
        assert JSON.decode(text, Order) == order


@pytest.mark.parametrize(
    ("payload", "annotation", "place"),
    [
        ([Frozen(float("nan"))], None, "payload[0]['n'] is nan"),  # type: ignore[arg-type]
        ({"o": [Frozen(object())]}, None, "payload['o'][0].n is a builtins.object"),  # type: ignore[arg-type]
        ({"to": object()}, Mail, "payload['to'] is a builtins.object"),
        ({"to": 10**5000}, dict[str, Any], "payload['to'] cannot be encoded"),
        ({"to": {1: 2}}, dict[str, Any], "payload['to'] has the key 1"),
    ],
)
def test_typed_payload_refused(payload: Any, annotation: Any, place: str) -> None:
    """A typed payload with a value that cannot be encoded is refused as any other."""
    with pytest.raises(PayloadError) as refusal:
        JSON.encode(payload, annotation)
    assert str(refusal.value).startswith(place)


def test_self_referring_dataclass() -> None:
    """A dataclass that contains itself is refused, not followed for ever."""

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
        ("hello", None, "it starts with 'hello'"),
        ('{"n": "x"}', Frozen, r"does not fit Frozen: Expected `int`, got `str` - at `\$.n`"),
        ("{}", Frozen, "does not fit Frozen"),
        ('{"id": "?"}', Model, "does not fit Model"),
        ('[{"id": 1}]', list[Model], "does not fit list"),
        ('{"to": 1}', Mail, "does not fit Mail"),
        ('"x"', int, "does not fit int: Expected `int`, got `str`"),
        ("3", Model | None, "does not fit"),
    ],
)
def test_text_that_does_not_fit(text: str, annotation: Any, reason: str) -> None:
    """Stored text that is malformed or of another shape is an error that says what is wrong."""
    with pytest.raises(PayloadError, match=reason):
        JSON.decode(text, annotation)


def test_malformed_text_is_quoted_in_part() -> None:
    """The message about malformed text quotes its beginning only."""
    with pytest.raises(PayloadError) as refusal:
        JSON.decode("x" * 10**6)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("annotation", [int, Order, Mail, Struct, Model, list[Model], Any, None])
def test_annotations_that_can_be_decoded(annotation: Any) -> None:
    """Dataclasses, TypedDicts, pydantic models and plain types may annotate a payload."""
    check_annotation(annotation)


def test_protocol() -> None:
    """The default serializer is one by the protocol that users' own follow."""
    assert isinstance(JSON, Serializer)
