"""Tests that each part of a payload is decoded to an equal value, or rejected with its path."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pytest
from asyncpg.pgproto import pgproto
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretBytes,
    SecretStr,
    SerializeAsAny,
    computed_field,
    field_serializer,
    model_serializer,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column
from sqlmodel import Field as SQLField
from sqlmodel import SQLModel

from sqlalchemy_proletarian import (
    HandlerError,
    Handlers,
    JSONSerializer,
    PayloadError,
    Serializer,
    TransitSerializer,
    enqueue,
)
from sqlalchemy_proletarian.execution.perform import decode_payload

JSON, TRANSIT = JSONSerializer(), TransitSerializer(keyword_names=False)
BOTH = pytest.mark.parametrize("serializer", [JSON, TRANSIT], ids=["json", "transit"])
ID = UUID("0190d1a4-0000-7000-8000-000000000001")
WHEN = datetime(2024, 2, 29, 12, 30, 15, 123000, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
SET_BACK = datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN)
T = TypeVar("T")


class Markup(str):
    __slots__ = ()


class Frozen(datetime):
    """A subclass of datetime, as libraries that freeze the clock in tests define it."""


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Loose:
    data: Any = None
    price: float = 0.0


@dataclass
class Uncompared:
    at: Any = field(default=None, compare=False)


@dataclass(eq=False)
class Identity:
    n: int = 1


@dataclass
class Event:
    at: datetime


@dataclass
class Grows:
    n: int

    def __post_init__(self) -> None:
        self.n += 1


@dataclass
class Lengthens:
    items: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.items.append(0)


class FailsSecondTime(msgspec.Struct):
    n: int = 1

    def __post_init__(self) -> None:
        if self.n == 2:
            raise RecursionError


@dataclass
class BrokenRepr(Loose):
    def __repr__(self) -> str:
        raise RuntimeError


@dataclass
class BoxOf(Generic[T]):
    value: T


@attrs.define
class Attrs:
    data: Any = None
    seen: int = attrs.field(default=0, init=False, eq=False)


class Struct(msgspec.Struct):
    data: Any = None


class Form(TypedDict):
    at: datetime
    data: Any


class OneWay(BaseModel):
    user_id: int = Field(default=0, serialization_alias="out", validation_alias="in")


class Required(BaseModel):
    user_id: int = Field(serialization_alias="out", validation_alias="in")


class Unserializable(BaseModel):
    n: int = 1

    @field_serializer("n")
    def serialize_n(self, n: int) -> str:
        msg = f"not {n}"
        raise ValueError(msg)


class BothWays(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    user_id: int = Field(default=0, serialization_alias="out", validation_alias="in")


class Aliased(BaseModel):
    user_id: int = Field(alias="user-id")


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def unrebuildable(self) -> int:
        return 2 * self.n


class Secrets(BaseModel):
    token: SecretStr = SecretStr("")
    key: SecretBytes = SecretBytes(b"")


class WrittenSecret(BaseModel):
    token: SecretStr

    @field_serializer("token")
    def serialize_token(self, token: SecretStr) -> str:
        return token.get_secret_value()


class UpperCased(BaseModel):
    word: str

    @model_serializer
    def serialize_upper(self) -> dict[str, str]:
        return {"word": self.word.upper()}


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    n: int = 1


class Animal(BaseModel):
    name: str = ""


class Dog(Animal):
    lives: int = 1


class Zoo(BaseModel):
    animals: list[Animal] = []
    guest: SerializeAsAny[Animal] | None = None


class Box(BaseModel, Generic[T]):
    value: T


class Private(BaseModel):
    n: int = 1
    _row: Row | None = PrivateAttr(default=None)


@pydantic_dataclass
class Checked:
    at: datetime
    data: Any = None


class Base(DeclarativeBase):
    """A declarative base of a user."""


class Row(Base):
    __tablename__ = "rule_row"
    id: Mapped[int] = mapped_column(primary_key=True)


class DataRow(MappedAsDataclass, Base):
    __tablename__ = "rule_data_row"
    id: Mapped[int] = mapped_column(primary_key=True)


class ModelRow(SQLModel, table=True):
    __tablename__ = "rule_model_row"
    id: int | None = SQLField(default=None, primary_key=True)


class NotMapped(SQLModel):
    n: int = 1


@dataclass
class OfRow:
    row: DataRow | None = None


class OfModelRow(BaseModel):
    row: ModelRow | None = None


@dataclass
class Mentions:
    n: int = 1
    model: ClassVar[type[Row]] = Row


class Opaque:
    """A class that no payload can be decoded to."""


@pytest.fixture(name="session")
def a_session() -> Session:
    return Session(create_engine("sqlite://"))


def handler_of(annotation: Any, serializer: Any = None) -> Any:
    """Return a handler whose payload has the annotation, or no annotation if it is None."""

    def function(payload): ...  # type: ignore[no-untyped-def]

    if annotation is not None:
        function.__annotations__["payload"] = annotation
    return Handlers()("job", serializer=serializer)(function)


def received(session: Session, annotation: Any, payload: Any, serializer: Any = None) -> Any:
    """Enqueue with a handler that has this annotation, and return the payload that it would get."""
    handler = handler_of(annotation, serializer)
    job = handler.enqueue(session, payload)
    session.expunge_all()
    return decode_payload(handler, job.payload, serializer or JSON)


EQUAL = [
    (float, 1, 1.0),
    (Loose, Loose((1, (2,)), 3), Loose([1, [2]], 3.0)),
    (str, Colour.RED, "red"),
    (Colour, "red", Colour.RED),
    (int, Level.HIGH, 3),
    (dict, {"a": Markup("x"), Markup("b"): Level.HIGH}, {"a": "x", "b": 3}),
    (Loose, Loose(Markup("x")), Loose("x")),
    (datetime, Frozen(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)),
    (list[UUID], [pgproto.UUID(str(ID))], [ID]),
    (tuple[int, int], Point(1, 2), (1, 2)),
    (list[int], (1, 2), [1, 2]),
    (set[int], frozenset({1}), {1}),
    (Loose, Loose(OrderedDict(a=1)), Loose({"a": 1})),
    (Box[int], Box(value=1), Box[int](value=1)),
    (Attrs, Attrs([1]), Attrs([1])),
    (Mentions, Mentions(2), Mentions(2)),
    (Open, Open(n=1, more="x"), Open(n=1, more="x")),  # type: ignore[call-arg]
    (NotMapped, NotMapped(n=2), NotMapped(n=2)),
    (BothWays, BothWays(user_id=7), BothWays(user_id=7)),
    (WrittenSecret, WrittenSecret(token=SecretStr("abc")), WrittenSecret(token=SecretStr("abc"))),
    (Zoo, Zoo(animals=[Animal(name="a")]), Zoo(animals=[Animal(name="a")])),
    (Private, Private(n=2), Private(n=2)),
    (Annotated[int, ["unhashable"]], 1, 1),
    (Required, Required.model_construct(user_id=7), Required.model_construct(user_id=7)),
    (dict[str, bool | int | None], {"a": True, "b": 1, "c": None}, {"a": True, "b": 1, "c": None}),
]


@pytest.mark.parametrize(("annotation", "payload", "back"), EQUAL, ids=map(str, range(len(EQUAL))))
def test_values_equal_to_one_of_the_declared_type_are_converted(
    session: Session, annotation: Any, payload: Any, back: Any
) -> None:
    """A value that is equal to a value of the declared type is decoded to the latter."""
    got = received(session, annotation, payload)
    assert got == back
    assert repr(got) == repr(back)


EXACT = [
    (datetime, datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
    (datetime, datetime(2024, 1, 1)),  # noqa: DTZ001 - a naive datetime stays naive
    (datetime, datetime(2024, 1, 1, tzinfo=timezone(-timedelta(hours=3, minutes=30)))),
    (time, time(1, 2, 3, 4, tzinfo=UTC)),
    (timedelta, timedelta.max),
    (timedelta, -timedelta.resolution),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("1E+400")),
    (Decimal, Decimal("-0.0")),
    (float, -0.0),
    (float, 5e-324),
    (int, 10**30),
    (dict[str, int | bool], {"a": True, "b": 1}),
    (dict[int, dict[UUID, list[date]]], {1: {ID: [date(2024, 1, 1)]}}),
    (Event, Event(datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC))),
    (dict[str, float], {"nested": -0.0}),
]


@pytest.mark.parametrize(("annotation", "payload"), EXACT, ids=map(str, range(len(EXACT))))
def test_precision_is_kept(session: Session, annotation: Any, payload: Any) -> None:
    """Microseconds, UTC offsets, digits and signs are kept."""
    assert repr(received(session, annotation, payload)) == repr(payload)


@pytest.mark.parametrize("annotation", [Event, Checked, list[Event], list[datetime]])
def test_a_time_in_the_repeated_hour_can_be_enqueued(session: Session, annotation: Any) -> None:
    """In Python such a time is unequal to every time of another zone."""
    payload: Any = SET_BACK if annotation == list[datetime] else Event(SET_BACK)
    payload = Checked(SET_BACK) if annotation is Checked else payload
    got = received(session, annotation, payload if isinstance(annotation, type) else [payload])
    one = got[0] if isinstance(got, list) else got
    at = getattr(one, "at", one)
    assert at.astimezone(UTC) == SET_BACK.astimezone(UTC)
    assert at.utcoffset() == SET_BACK.utcoffset()


def test_an_object_without_eq_is_compared_by_its_fields(session: Session) -> None:
    assert received(session, Identity, Identity(5)).n == 5


class Late(BaseModel):
    other: Later | None = None  # noqa: F821 - the test defines it later


def test_a_model_may_refer_to_a_class_defined_later(session: Session) -> None:
    """The handler can be registered before the class that the model refers to exists."""
    handler = handler_of(Late)
    with pytest.raises(PayloadError, match="not fully defined"):
        handler.enqueue(session, Late.model_construct())
    globals()["Later"] = type("Later", (BaseModel,), {"__module__": __name__})
    assert received(session, Late, Late()) == Late()


def unrebuildable(made: FailsSecondTime) -> FailsSecondTime:
    """Return an object that cannot be created again."""
    made.n = 2
    return made


SHARED: list[Any] = [{}]
CHANGED = [
    (Uncompared, Uncompared(WHEN), ".at is datetime.datetime("),
    (Loose, Loose(Point(1, 2)), ".data is Point(x=1, y=2)"),
    (Loose, Loose([{"a": Decimal(1)}]), ".data[0]['a'] is Decimal('1')"),
    (Loose, Loose({"ids": [ID]}), ".data['ids'][0] is UUID("),
    (Loose, Loose(b"x"), ".data is b'x'"),
    (Loose, Loose({1}), ".data is {1}"),
    (Loose, Loose({1: 2}), ".data[1] is 2 (builtins.int), but would come back as absent"),
    (Loose, Loose(deque([1])), ".data is a collections.deque"),
    (Loose, Loose([Opaque()]), ".data[0] is a tests.unit.test_payload_rule.Opaque"),
    (Loose, Loose([[1], SHARED, SHARED, Opaque()]), ".data[3] is a tests.unit"),
    (Loose, Loose({(1, 2): 3}), " cannot be encoded: Only dicts with"),
    (Loose, BrokenRepr(), " is an object (tests.unit.test_payload_rule.BrokenRepr)"),
    (Loose, Loose(Loose()), ".data is Loose("),
    (Attrs, Attrs(WHEN), ".data is datetime.datetime("),
    (Struct, Struct(WHEN), ".data is datetime.datetime("),
    (Form, {"at": WHEN, "data": WHEN}, "['data'] is datetime.datetime("),
    (BoxOf, BoxOf(WHEN), ".value is datetime.datetime("),
    (Checked, Checked(WHEN, WHEN), ".data is datetime.datetime("),
    (Box[Any], Box[Any](value=WHEN), ".value is datetime.datetime("),
    (dict[str, Any], {"at": WHEN}, "['at'] is a datetime.datetime"),
    (Grows, Grows(1), ".n is 2 (builtins.int), but would come back as 3"),
    (Lengthens, Lengthens(), ".items is [0] (builtins.list), but would come back as [0, 0]"),
    (Unserializable, Unserializable(), " cannot be encoded: Error serializing to JSON"),
    (FailsSecondTime, unrebuildable(FailsSecondTime()), " contains itself or is nested too deeply"),
    (float, 2**53 + 1, " is 9007199254740993 (builtins.int)"),
    (tuple[int, int], [1, 2], " is [1, 2] (builtins.list)"),
    (Loose, {"data": 1}, " is {'data': 1} (builtins.dict)"),
    (Event, Event("2024"), ".at would not come back"),  # type: ignore[arg-type]
    (Loose, Loose(price=True), ".price would not come back"),
    (datetime, datetime(1880, 1, 1, tzinfo=BERLIN), " is datetime.datetime(1880"),
    (OneWay, OneWay.model_construct(user_id=7), ".user_id is 7 (builtins.int), but"),
    (Secrets, Secrets(token=SecretStr("a")), ".token is a SecretStr, which is stored as asterisks"),
    (list[Secrets], [Secrets(key=SecretBytes(b"a"))], "[0].key is a SecretBytes, which is stored"),
    (UpperCased, UpperCased(word="a"), ".word is 'a' (builtins.str), but would come back as 'A'"),
    (Zoo, Zoo(animals=[Dog()]), ".animals[0] is Dog("),
    (Zoo, Zoo(guest=Dog()), ".guest is Dog("),
    (dict[str, Animal], {"a": Dog()}, "['a'] is Dog("),
    (Box[str], Box[str](value="\ud800"), " cannot be encoded"),
    (Box[Any], Box[Any](value=Opaque()), " cannot be encoded"),
    (None, Loose(), " is a tests.unit.test_payload_rule.Loose, but the handler declares no type"),
    (Any, [Animal()], "[0] is a tests.unit.test_payload_rule.Animal, but the handler declares"),
    (dict, {"a": Struct()}, "['a'] is a tests.unit.test_payload_rule.Struct, but the handler"),
]


@pytest.mark.parametrize(
    ("annotation", "payload", "message"), CHANGED, ids=map(str, range(len(CHANGED)))
)
def test_changed(session: Session, annotation: Any, payload: Any, message: str) -> None:
    """A value that would be decoded to a different one is rejected; the message has its path."""
    with pytest.raises(PayloadError) as error:
        received(session, annotation, payload)
    assert str(error.value).startswith(f"payload{message}")
    assert not session.new


@pytest.mark.parametrize(
    ("annotation", "payload"),
    [
        (Annotated[int, msgspec.Meta(ge=0)], -1),
        (Annotated[list[Animal], Field(min_length=1)], []),
        (Annotated[str, msgspec.Meta(max_length=2)] | None, "abc"),
    ],
)
def test_constraints_of_an_annotation_apply_on_both_sides(
    session: Session, annotation: Any, payload: Any
) -> None:
    """A constraint of an annotation is checked when a payload is encoded and decoded."""
    with pytest.raises(PayloadError, match="would not come back"):
        received(session, annotation, payload)
    with pytest.raises(PayloadError, match="does not fit"):
        decode_payload(handler_of(annotation), JSON.encode(payload), JSON)


any_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.uuids()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.dates()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.sampled_from([Colour.RED, Level.HIGH, Point(1, 2), Markup("a"), Animal(), Row(id=1)]),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans() | st.uuids(), inner)
        | st.builds(Loose, inner)
        | st.builds(Box[Any], value=inner)
    ),
    max_leaves=8,
)


def with_lists(value: Any) -> Any:
    """Return the value with its tuples replaced by lists."""
    if type(value) in (list, tuple):
        return [with_lists(part) for part in value]
    return (
        {key: with_lists(part) for key, part in value.items()} if isinstance(value, dict) else value
    )


@given(any_value)
def test_every_untyped_value_is_kept_or_rejected(value: Any) -> None:
    """A value without a declared type is decoded to an equal one (tuples to lists) or rejected."""
    for payload in (Loose(value), Box[Any](value=value), {"a": value}):
        kind = Any if isinstance(payload, dict) else type(payload)
        try:
            text = JSON.encode(payload, kind)
        except PayloadError:
            continue
        back = JSON.decode(text, kind)
        got = back["a"] if kind is Any else back.data if kind is Loose else back.value
        assert got == with_lists(value)


def test_an_alias_that_cannot_be_read_is_rejected(session: Session) -> None:
    """The message says how to fix the aliases of the model."""
    with pytest.raises(PayloadError, match="set populate_by_name=True"):
        received(session, OneWay, OneWay.model_construct(user_id=7))


BY_ITS_CLASS = [
    (Loose(WHEN), ".data"),
    (Attrs(ID), ".data"),
    (Struct(Decimal(1)), ".data"),
    (Uncompared(WHEN), ".at"),
    (BoxOf(WHEN), ".value"),
    (Secrets(token=SecretStr("a")), ".token"),
    (Zoo(animals=[Dog()]), ".animals[0]"),
    (Grows(1), ".n"),
]


@BOTH
@pytest.mark.parametrize(("payload", "place"), BY_ITS_CLASS, ids=map(str, range(8)))
def test_where_no_handler_is_known(serializer: Serializer, payload: Any, place: str) -> None:
    """A typed object at any depth must be decodable by its own class."""
    if serializer is TRANSIT and place in (".data", ".at", ".value"):
        payload = type(payload)(timedelta(1))  # Transit supports the others
    for wrapped, around in ((payload, ""), ({"a": [payload]}, "['a'][0]")):
        with pytest.raises(PayloadError) as error:
            serializer.encode(wrapped)
        assert str(error.value).startswith(f"payload{around}{place} is ")


@BOTH
@pytest.mark.parametrize(
    "payload",
    [Loose([1]), Attrs({"a": None}), Struct("a"), Aliased(**{"user-id": 7}), Computed(n=1)],
    ids=lambda payload: type(payload).__name__,
)
def test_a_typed_object_can_be_enqueued_without_a_handler(
    serializer: Serializer, payload: Any
) -> None:
    """An object that its own class can decode needs no handler."""
    kind = type(payload)
    assert serializer.decode(serializer.encode(payload), kind) == payload
    assert serializer.decode(serializer.encode([payload]), list[kind]) == [payload]


# Mapped objects.


def expired(row: Any) -> Any:
    """Return a mapped object that was expired by a commit and whose session is closed."""
    engine = create_engine("sqlite://")
    type(row).metadata.create_all(engine)
    with Session(engine) as session:
        session.add(row)
        session.commit()
    return row


@BOTH
@pytest.mark.parametrize("kind", [Row, DataRow, ModelRow])
@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda row: row, ""),
        (lambda row: {"rows": [row]}, "['rows'][0]"),
        (lambda row: Loose({"rows": [row]}), ".data['rows'][0]"),
        (lambda row: [Struct(row)], "[0].data"),
        (Attrs, ".data"),
        (lambda row: Box[Any](value=[row]), ".value[0]"),
    ],
    ids=map(str, range(6)),
)
def test_mapped_objects(serializer: Serializer, kind: Any, wrap: Any, place: str) -> None:
    """A mapped object is rejected at any depth, even if it can no longer be loaded."""
    payload = wrap(expired(kind(id=1)))
    annotations = [None, Any] if not place or place[0] == "[" else [None, type(payload)]
    for annotation in annotations:
        if annotation is Any and isinstance(payload, list):
            continue  # rejected because of the Struct
        with pytest.raises(PayloadError) as error:
            serializer.encode(payload, annotation)
        message = (
            f"payload{place} is a mapped object of {kind.__module__}.{kind.__qualname__}: pass"
        )
        assert str(error.value).startswith(message)


@BOTH
@pytest.mark.parametrize("payload", [OfRow(DataRow(id=1)), OfModelRow(row=ModelRow(id=1))])
def test_a_mapped_object_in_a_field_declared_for_it_is_rejected(
    serializer: Serializer, payload: Any
) -> None:
    with pytest.raises(PayloadError, match=r"payload\.row is a mapped object"):
        serializer.encode(payload)
    with pytest.raises(PayloadError, match=r"payload\['a'\]\.row is a mapped object"):
        serializer.encode({"a": payload})


@pytest.mark.parametrize(
    "annotation", [OfRow, list[OfModelRow], OfModelRow | None, dict[str, OfRow], BoxOf[Row]]
)
def test_a_payload_type_with_a_mapped_class_is_rejected(annotation: Any) -> None:
    with pytest.raises(HandlerError, match="is a mapped class: take its id"):
        handler_of(annotation)


@pytest.mark.parametrize(
    "annotation",
    [list[Opaque], dict[str, Opaque | None], tuple[int, Opaque], list[Box[int] | Struct]],
)
def test_an_undecodable_payload_type_is_rejected(annotation: Any) -> None:
    """A handler is rejected if its annotation has an undecodable type at any depth."""
    with pytest.raises(HandlerError, match="no payload can be decoded to 'payload'"):
        handler_of(annotation)


def test_an_unresolvable_field_annotation_is_rejected() -> None:
    """A dataclass is rejected if the annotation of a field names a class that does not exist."""
    made = dataclass(
        type("Made", (), {"__annotations__": {"n": "Nowhere"}, "__module__": __name__})
    )
    with pytest.raises(HandlerError, match="cannot be resolved: name 'Nowhere'"):
        handler_of(made)
    with pytest.raises(PayloadError, match="would not come back"):
        JSON.encode(made(1))  # type: ignore[call-arg]


# Transit and custom serializers.


@pytest.mark.parametrize(
    ("annotation", "payload"),
    [
        (list[UUID], [ID]),
        (datetime, WHEN),
        (date, date(2024, 1, 1)),
        (list[time], [time(1)]),
        (dict[str, timedelta], {"a": timedelta(1)}),
        (Colour, Colour.RED),
        (set[Level], {Level.HIGH}),
        (list[Form], [Form(at=WHEN, data=[1])]),
        (Form | None, None),
        (Aliased, Aliased(**{"user-id": 7})),
        (BothWays, BothWays(user_id=7)),
        (Computed, Computed(n=1)),
        (Required, Required.model_construct(user_id=7)),
        (dict[str, WrittenSecret], {"a": WrittenSecret(token=SecretStr("a"))}),
        (Loose, Loose(WHEN)),
        (Loose, Loose({1: {ID}})),
        (float, 1),
        (dict, {"a": WHEN}),
    ],
    ids=map(str, range(18)),
)
def test_transit_keeps_its_own_and_annotated_types(
    session: Session, annotation: Any, payload: Any
) -> None:
    """A type that Transit supports or the annotation declares is decoded to an equal value."""
    assert received(session, annotation, payload, TRANSIT) == payload


@pytest.mark.parametrize(
    ("annotation", "payload", "message"),
    [
        (Loose, Loose(date(2024, 1, 1)), ".data is datetime.date(2024, 1, 1)"),
        (dict[str, Any], {"on": date(2024, 1, 1)}, "['on'] is a datetime.date"),
        (Animal, Dog(), " is Dog("),
        (list[Secrets], [Secrets(token=SecretStr("a"))], "[0].token is a SecretStr"),
        (list[int], ["a"], "[0] would not come back"),
        (list[Unserializable], [Unserializable()], "[0] cannot be encoded: Error calling function"),
        (Any, {"a": Loose()}, "['a'] is a tests.unit.test_payload_rule.Loose, but the handler"),
        (None, [Animal()], "[0] is a tests.unit.test_payload_rule.Animal, but the handler"),
        (Loose, [Loose(price="x")], " would not come back"),  # type: ignore[arg-type]
    ],
    ids=map(str, range(9)),
)
def test_transit_rejects_values_that_would_change(
    session: Session, annotation: Any, payload: Any, message: str
) -> None:
    """The message has the path of the value."""
    with pytest.raises(PayloadError) as error:
        received(session, annotation, payload, TRANSIT)
    assert str(error.value).startswith(f"payload{message}")


def test_transit_rejects_an_invalid_typed_object() -> None:
    """Without a handler, an object is rejected if its own class cannot decode it."""
    with pytest.raises(PayloadError, match=r"payload\[0\] would not come back"):
        TRANSIT.encode([Loose(price="x")])  # type: ignore[arg-type]


def test_a_custom_serializer_may_only_encode(session: Session) -> None:
    """A custom serializer is not asked to decode: a producer may have no key for decryption."""
    seen: list[Any] = []

    class Sealed:
        def encode(self, payload: Any, annotation: Any = None) -> str:
            seen.append(annotation)
            return JSON.encode(payload, annotation)[::-1]

        def decode(self, text: str, annotation: Any = None) -> Any:  # noqa: ARG002
            raise RuntimeError

    handler_of(Event, Sealed()).enqueue(session, Event(WHEN))
    handler_of(None, Sealed()).enqueue(session, {"a": 1})
    enqueue(session, "job", [1], serializer=Sealed())
    assert seen == [Event, Any, None]
    with pytest.raises(PayloadError, match=r"payload\.data is"):
        handler_of(Loose, Sealed()).enqueue(session, Loose(WHEN))
