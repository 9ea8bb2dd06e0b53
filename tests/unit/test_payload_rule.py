"""What is enqueued comes back equal, or is refused with its place: every part of it."""

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
    """As libraries that stop the clock in tests have it."""


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


class Endless(msgspec.Struct):
    n: int = 1

    def __post_init__(self) -> None:
        if self.n == 2:
            raise RecursionError


@dataclass
class Unseen(Loose):
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


class Unwritten(BaseModel):
    n: int = 1

    @field_serializer("n")
    def never(self, n: int) -> str:
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
    def twice(self) -> int:
        return 2 * self.n


class Secrets(BaseModel):
    token: SecretStr = SecretStr("")
    key: SecretBytes = SecretBytes(b"")


class ToldSecret(BaseModel):
    token: SecretStr

    @field_serializer("token")
    def told(self, token: SecretStr) -> str:
        return token.get_secret_value()


class Shouted(BaseModel):
    word: str

    @model_serializer
    def shouted(self) -> dict[str, str]:
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
    """A user's own."""


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
    """Nothing knows how to rebuild it."""


@pytest.fixture(name="session")
def a_session() -> Session:
    return Session(create_engine("sqlite://"))


def handler_of(annotation: Any, serializer: Any = None) -> Any:
    """Return a handler whose payload has that annotation; None is none."""

    def function(payload): ...  # type: ignore[no-untyped-def]

    if annotation is not None:
        function.__annotations__["payload"] = annotation
    return Handlers()("job", serializer=serializer)(function)


def received(session: Session, annotation: Any, payload: Any, serializer: Any = None) -> Any:
    """Enqueue by a handler with this annotation, and return what the handler would get."""
    handler = handler_of(annotation, serializer)
    job = handler.enqueue(session, payload)
    session.expunge_all()
    return handler.decode(job.payload, serializer or JSON)


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
    (ToldSecret, ToldSecret(token=SecretStr("abc")), ToldSecret(token=SecretStr("abc"))),
    (Zoo, Zoo(animals=[Animal(name="a")]), Zoo(animals=[Animal(name="a")])),
    (Private, Private(n=2), Private(n=2)),
    (Annotated[int, ["unhashable"]], 1, 1),
    (Required, Required.model_construct(user_id=7), Required.model_construct(user_id=7)),
    (dict[str, bool | int | None], {"a": True, "b": 1, "c": None}, {"a": True, "b": 1, "c": None}),
]


@pytest.mark.parametrize(("annotation", "payload", "back"), EQUAL, ids=map(str, range(len(EQUAL))))
def test_equal(session: Session, annotation: Any, payload: Any, back: Any) -> None:
    """A value that is equal to one of the declared type comes back as that one."""
    got = received(session, annotation, payload)
    assert got == back
    assert repr(got) == repr(back)


EXACT = [
    (datetime, datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
    (datetime, datetime(2024, 1, 1)),  # noqa: DTZ001 - a naive one stays naive
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
def test_exact(session: Session, annotation: Any, payload: Any) -> None:
    """Microseconds, offsets, digits and signs are kept."""
    assert repr(received(session, annotation, payload)) == repr(payload)


@pytest.mark.parametrize("annotation", [Event, Checked, list[Event], list[datetime]])
def test_the_hour_that_a_clock_is_set_back(session: Session, annotation: Any) -> None:
    """Python holds such a time to be equal to none of another zone; it can be enqueued still."""
    payload: Any = SET_BACK if annotation == list[datetime] else Event(SET_BACK)
    payload = Checked(SET_BACK) if annotation is Checked else payload
    got = received(session, annotation, payload if isinstance(annotation, type) else [payload])
    one = got[0] if isinstance(got, list) else got
    at = getattr(one, "at", one)
    assert at.astimezone(UTC) == SET_BACK.astimezone(UTC)
    assert at.utcoffset() == SET_BACK.utcoffset()


def test_compared_by_identity(session: Session) -> None:
    """An object without an ``__eq__`` of its own is compared by its fields."""
    assert received(session, Identity, Identity(5)).n == 5


class Late(BaseModel):
    other: Later | None = None  # noqa: F821 - as its test says


def test_a_model_that_is_completed_later(session: Session) -> None:
    """A handler may be registered while a model refers to a class that follows."""
    handler = handler_of(Late)
    with pytest.raises(PayloadError, match="not fully defined"):
        handler.enqueue(session, Late.model_construct())
    globals()["Later"] = type("Later", (BaseModel,), {"__module__": __name__})
    assert received(session, Late, Late()) == Late()


def twice(endless: Endless) -> Endless:
    """Return an object that cannot be made again."""
    endless.n = 2
    return endless


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
    (Loose, Unseen(), " is an object (tests.unit.test_payload_rule.Unseen)"),
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
    (Unwritten, Unwritten(), " cannot be encoded: Error serializing to JSON"),
    (Endless, twice(Endless()), " contains itself or is nested too deeply"),
    (float, 2**53 + 1, " is 9007199254740993 (builtins.int)"),
    (tuple[int, int], [1, 2], " is [1, 2] (builtins.list)"),
    (Loose, {"data": 1}, " is {'data': 1} (builtins.dict)"),
    (Event, Event("2024"), ".at would not come back"),  # type: ignore[arg-type]
    (Loose, Loose(price=True), ".price would not come back"),
    (datetime, datetime(1880, 1, 1, tzinfo=BERLIN), " is datetime.datetime(1880"),
    (OneWay, OneWay.model_construct(user_id=7), ".user_id is 7 (builtins.int), but"),
    (Secrets, Secrets(token=SecretStr("a")), ".token is a SecretStr, which is stored as asterisks"),
    (list[Secrets], [Secrets(key=SecretBytes(b"a"))], "[0].key is a SecretBytes, which is stored"),
    (Shouted, Shouted(word="a"), ".word is 'a' (builtins.str), but would come back as 'A'"),
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
    ("annotation", "payload", "said"), CHANGED, ids=map(str, range(len(CHANGED)))
)
def test_changed(session: Session, annotation: Any, payload: Any, said: str) -> None:
    """What would come back as something else is refused, and the message says where."""
    with pytest.raises(PayloadError) as refusal:
        received(session, annotation, payload)
    assert str(refusal.value).startswith(f"payload{said}")
    assert not session.new


@pytest.mark.parametrize(
    ("annotation", "payload"),
    [
        (Annotated[int, msgspec.Meta(ge=0)], -1),
        (Annotated[list[Animal], Field(min_length=1)], []),
        (Annotated[str, msgspec.Meta(max_length=2)] | None, "abc"),
    ],
)
def test_constraints_of_an_annotation(session: Session, annotation: Any, payload: Any) -> None:
    """What an annotation asks for besides the type holds at both ends."""
    with pytest.raises(PayloadError, match="would not come back"):
        received(session, annotation, payload)
    with pytest.raises(PayloadError, match="does not fit"):
        handler_of(annotation).decode(JSON.encode(payload), JSON)


anything = st.recursive(
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


def listed(value: Any) -> Any:
    """Return a value with lists where it has tuples."""
    if type(value) in (list, tuple):
        return [listed(part) for part in value]
    return {key: listed(part) for key, part in value.items()} if isinstance(value, dict) else value


@given(anything)
def test_any_value(value: Any) -> None:
    """Whatever stands where no type is declared comes back equal, but for tuples, or is refused."""
    for payload in (Loose(value), Box[Any](value=value), {"a": value}):
        kind = Any if isinstance(payload, dict) else type(payload)
        try:
            text = JSON.encode(payload, kind)
        except PayloadError:
            continue
        back = JSON.decode(text, kind)
        got = back["a"] if kind is Any else back.data if kind is Loose else back.value
        assert got == listed(value)


def test_aliases_that_are_written_but_not_read(session: Session) -> None:
    """The refusal says what to do about the aliases of a model."""
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
    """A typed object must come back by its own class, wherever it stands in a payload."""
    if serializer is TRANSIT and place in (".data", ".at", ".value"):
        payload = type(payload)(timedelta(1))  # Transit has the others
    for wrapped, around in ((payload, ""), ({"a": [payload]}, "['a'][0]")):
        with pytest.raises(PayloadError) as refusal:
            serializer.encode(wrapped)
        assert str(refusal.value).startswith(f"payload{around}{place} is ")


@BOTH
@pytest.mark.parametrize(
    "payload",
    [Loose([1]), Attrs({"a": None}), Struct("a"), Aliased(**{"user-id": 7}), Computed(n=1)],
    ids=lambda payload: type(payload).__name__,
)
def test_stored_by_its_class(serializer: Serializer, payload: Any) -> None:
    """What comes back by its own class may be enqueued without a handler."""
    kind = type(payload)
    assert serializer.decode(serializer.encode(payload), kind) == payload
    assert serializer.decode(serializer.encode([payload]), list[kind]) == [payload]


# Mapped objects.


def expired(row: Any) -> Any:
    """Return a mapped object as it is after the commit, when its session is closed."""
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
    """A mapped object is refused by name wherever it stands, also one that cannot load any more."""
    payload = wrap(expired(kind(id=1)))
    annotations = [None, Any] if not place or place[0] == "[" else [None, type(payload)]
    for annotation in annotations:
        if annotation is Any and isinstance(payload, list):
            continue  # refused for the Struct
        with pytest.raises(PayloadError) as refusal:
            serializer.encode(payload, annotation)
        said = f"payload{place} is a mapped object of {kind.__module__}.{kind.__qualname__}: pass"
        assert str(refusal.value).startswith(said)


@BOTH
@pytest.mark.parametrize("payload", [OfRow(DataRow(id=1)), OfModelRow(row=ModelRow(id=1))])
def test_mapped_objects_in_fields_of_their_class(serializer: Serializer, payload: Any) -> None:
    """So is one in a field that is declared for it."""
    with pytest.raises(PayloadError, match=r"payload\.row is a mapped object"):
        serializer.encode(payload)
    with pytest.raises(PayloadError, match=r"payload\['a'\]\.row is a mapped object"):
        serializer.encode({"a": payload})


@pytest.mark.parametrize(
    "annotation", [OfRow, list[OfModelRow], OfModelRow | None, dict[str, OfRow], BoxOf[Row]]
)
def test_annotations_that_mention_mapped_classes(annotation: Any) -> None:
    """A handler is refused if its payload has a field for a mapped object."""
    with pytest.raises(HandlerError, match="is a mapped class: take its id"):
        handler_of(annotation)


@pytest.mark.parametrize(
    "annotation",
    [list[Opaque], dict[str, Opaque | None], tuple[int, Opaque], list[Box[int] | Struct]],
)
def test_annotations_that_nothing_decodes_to(annotation: Any) -> None:
    """An annotation that names, at any depth, a type which nothing rebuilds is refused."""
    with pytest.raises(HandlerError, match="no payload can be decoded to 'payload'"):
        handler_of(annotation)


def test_annotation_of_a_field_that_cannot_be_resolved() -> None:
    """So is a dataclass whose field names a class that is not there."""
    made = dataclass(
        type("Made", (), {"__annotations__": {"n": "Nowhere"}, "__module__": __name__})
    )
    with pytest.raises(HandlerError, match="cannot be resolved: name 'Nowhere'"):
        handler_of(made)
    with pytest.raises(PayloadError, match="would not come back"):
        JSON.encode(made(1))  # type: ignore[call-arg]


# Transit, and serializers of the user's own.


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
        (dict[str, ToldSecret], {"a": ToldSecret(token=SecretStr("a"))}),
        (Loose, Loose(WHEN)),
        (Loose, Loose({1: {ID}})),
        (float, 1),
        (dict, {"a": WHEN}),
    ],
    ids=map(str, range(18)),
)
def test_transit(session: Session, annotation: Any, payload: Any) -> None:
    """What Transit has, or the annotation rebuilds, comes back by TransitSerializer, too."""
    assert received(session, annotation, payload, TRANSIT) == payload


@pytest.mark.parametrize(
    ("annotation", "payload", "said"),
    [
        (Loose, Loose(date(2024, 1, 1)), ".data is datetime.date(2024, 1, 1)"),
        (dict[str, Any], {"on": date(2024, 1, 1)}, "['on'] is a datetime.date"),
        (Animal, Dog(), " is Dog("),
        (list[Secrets], [Secrets(token=SecretStr("a"))], "[0].token is a SecretStr"),
        (list[int], ["a"], "[0] would not come back"),
        (list[Unwritten], [Unwritten()], "[0] cannot be encoded: Error calling function"),
        (Any, {"a": Loose()}, "['a'] is a tests.unit.test_payload_rule.Loose, but the handler"),
        (None, [Animal()], "[0] is a tests.unit.test_payload_rule.Animal, but the handler"),
        (Loose, [Loose(price="x")], " would not come back"),  # type: ignore[arg-type]
    ],
    ids=map(str, range(9)),
)
def test_refused_by_transit(session: Session, annotation: Any, payload: Any, said: str) -> None:
    """What would come back from Transit as something else is refused with its place."""
    with pytest.raises(PayloadError) as refusal:
        received(session, annotation, payload, TRANSIT)
    assert str(refusal.value).startswith(f"payload{said}")


def test_transit_of_a_typed_object_that_does_not_fit() -> None:
    """Where no handler is known, an object that its own class would refuse is refused."""
    with pytest.raises(PayloadError, match=r"payload\[0\] would not come back"):
        TRANSIT.encode([Loose(price="x")])  # type: ignore[arg-type]


def test_a_serializer_that_only_writes(session: Session) -> None:
    """A serializer of one's own is taken at its word: a producer may have no key to read with."""
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
