"""Tests that payloads of a declared type are decoded to an equal value, or rejected at enqueue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pytest
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SecretStr,
    computed_field,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column
from sqlmodel import Field as SQLField
from sqlmodel import SQLModel

from sqlalchemy_proletarian import (
    HandlerError,
    Handlers,
    JSONSerializer,
    PayloadError,
    TransitSerializer,
)
from sqlalchemy_proletarian.execution.perform import decode_payload

ID = UUID("0190d1a4-0000-7000-8000-000000000001")
WHEN = datetime(2024, 2, 29, 12, 30, 15, 123000, tzinfo=UTC)
ELSEWHERE = datetime(2024, 2, 29, 14, 30, tzinfo=timezone(timedelta(hours=2)))
T = TypeVar("T")


class Colour(Enum):
    RED = "red"


class Word(StrEnum):
    YES = "yes"


class Mail(TypedDict):
    to: str
    at: datetime


class Pair(NamedTuple):
    name: str
    at: date


UserId = NewType("UserId", int)


@dataclass
class Loose:
    data: Any = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Derived(Loose):
    extra: int = 0


@attrs.define
class Attrs:
    at: datetime
    price: Decimal


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    at: datetime


class Aliased(BaseModel):
    user_id: int = Field(alias="userId")


class TwoAliases(BaseModel):
    user_id: int = Field(serialization_alias="out", validation_alias=AliasChoices("in", "into"))


class ByName(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    user_id: int = Field(alias="userId")


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.n


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    id: UUID
    at: datetime
    tags: frozenset[str] = frozenset()


class Box(BaseModel, Generic[T]):
    value: T


class Names(RootModel[list[str]]):
    pass


class Meow(BaseModel):
    kind: Literal["cat"] = "cat"


class Bark(BaseModel):
    kind: Literal["dog"] = "dog"
    at: datetime


class Secret(BaseModel):
    token: SecretStr


class Hidden(BaseModel):
    shown: int
    hidden: int = Field(default=0, exclude=True)


class Private(BaseModel):
    shown: int
    _seen: int = PrivateAttr(default=0)


class Base(BaseModel):
    a: int = 1


class Sub(Base):
    b: int = 2


@dataclass
class WithModel:
    model: Aliased


class Row(DeclarativeBase):
    """A declarative base."""


class DataRow(MappedAsDataclass, Row):
    __tablename__ = "data_row"
    id: Mapped[int] = mapped_column(primary_key=True)


class PlainRow(Row):
    __tablename__ = "plain_row"
    id: Mapped[int] = mapped_column(primary_key=True)


class ModelRow(SQLModel, table=True):
    id: int | None = SQLField(default=None, primary_key=True)


def enqueue_and_decode(annotation: Any, payload: Any, serializer: Any = None) -> Any:
    """Enqueue with a handler that has this annotation, and return the payload that it would get."""
    handlers = Handlers()

    def function(payload: Any) -> None: ...

    function.__annotations__["payload"] = annotation
    handler = handlers("job", serializer=serializer)(function)
    with Session() as session:
        session.bind = object()  # type: ignore[assignment]  # nothing is flushed
        session.get_bind = lambda *_, **__: None  # type: ignore[method-assign]
        job = handler.enqueue(session, payload)
        session.expunge_all()
    return decode_payload(handler, job.payload, serializer or JSONSerializer())


GOOD = [
    (UUID, ID),
    (datetime, WHEN),
    (datetime, ELSEWHERE),
    (datetime, datetime(2024, 1, 1)),  # noqa: DTZ001 - it stays naive
    (date, date(2024, 1, 1)),
    (time, time(12, 30)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (Decimal, Decimal("1.10")),
    (Colour, Colour.RED),
    (Word, Word.YES),
    (str, "text"),
    (bytes, b"\x00\xff"),
    (list[UUID], [ID]),
    (list[Mail], [Mail(to="a", at=WHEN)]),
    (Mail | None, Mail(to="a", at=WHEN)),
    (Mail | None, None),
    (set[int], {1, 2}),
    (frozenset[UUID], frozenset({ID})),
    (tuple[int, str], (1, "a")),
    (Pair, Pair("a", date(2024, 1, 1))),
    (dict[int, str], {1: "a"}),
    (dict[UUID, datetime], {ID: WHEN}),
    (Literal["a", "b"], "a"),
    (UserId, UserId(3)),
    (Annotated[int, msgspec.Meta(ge=0)], 3),
    (Cat | Dog, Dog(WHEN)),
    (Attrs, Attrs(WHEN, Decimal("1.10"))),
    (Loose, Loose([1, "a", None], {"a": {"b": 1.5}})),
    (Aliased, Aliased(userId=7)),
    (TwoAliases, TwoAliases(into=7)),
    (ByName, ByName(user_id=7)),
    (Computed, Computed(n=2)),
    (Strict, Strict(id=ID, at=WHEN, tags=frozenset({"a"}))),
    (Box[datetime], Box[datetime](value=WHEN)),
    (Names, Names(["a"])),
    (Annotated[Meow | Bark, Field(discriminator="kind")], Bark(at=WHEN)),
    (list[Aliased], [Aliased(userId=7)]),
    (dict[str, Strict], {"a": Strict(id=ID, at=WHEN)}),
    (Aliased | None, None),
    (Private, Private(shown=1)),
    (WithModel, WithModel(Aliased(userId=7))),
]


@pytest.mark.parametrize(("annotation", "payload"), GOOD, ids=map(str, range(len(GOOD))))
def test_it_comes_back_equal(annotation: Any, payload: Any) -> None:
    """Each type that the documentation lists can be enqueued and is decoded to an equal value."""
    back = enqueue_and_decode(annotation, payload)
    assert back == payload
    assert type(back) is type(payload)


BAD = [
    (Secret, Secret(token=SecretStr("abc")), "payload.token"),
    (Hidden, Hidden(shown=1, hidden=2), "payload.hidden"),
    (Base, Sub(), "payload"),
    (Loose, Derived(), "payload"),
    (Loose, Loose(WHEN), "payload.data is datetime.datetime"),
    (Loose, Loose(more={"at": WHEN}), "payload.more['at'] is datetime.datetime"),
    (Loose, Loose(more={"ids": [1, ID]}), "payload.more['ids'][1] is UUID"),
    (Loose, Loose({1, 2}), "payload.data"),
    (Loose, Loose(PlainRow(id=1)), "payload.data is a mapped object"),
    (Loose, Loose(DataRow(id=1)), "payload.data is a mapped object"),
    (Loose, Loose([ModelRow(id=1)]), "payload.data[0] is a mapped object"),
    (Mail, {"to": "a", "at": WHEN, "cc": "b"}, "payload['cc']"),
    (int, True, "payload would not come back"),
    (float, float("nan"), "payload is nan"),
    (Box[float], Box[float](value=float("nan")), "payload"),
    (list[int], ["a"], "payload[0] would not come back"),
]


@pytest.mark.parametrize(("annotation", "payload", "path"), BAD, ids=map(str, range(len(BAD))))
def test_a_value_that_would_change_is_rejected_with_its_path(
    annotation: Any, payload: Any, path: str
) -> None:
    """The call that enqueues the payload raises the error."""
    with pytest.raises(PayloadError) as error:
        enqueue_and_decode(annotation, payload)
    assert str(error.value).startswith(path)


def test_changed_private_attributes_are_rejected() -> None:
    """Pydantic does not serialize private attributes."""
    private = Private(shown=1)
    private._seen = 5
    with pytest.raises(PayloadError, match="payload"):
        enqueue_and_decode(Private, private)


@pytest.mark.parametrize("serializer", [JSONSerializer(), TransitSerializer()])
@pytest.mark.parametrize(
    "row", [PlainRow(id=1), DataRow(id=1), ModelRow(id=1)], ids=["plain", "data", "sqlmodel"]
)
@pytest.mark.parametrize("wrap", [lambda row: row, lambda row: {"rows": [row]}])
def test_mapped_objects_are_rejected(serializer: Any, row: Any, wrap: Callable[[Any], Any]) -> None:
    """A mapped object is rejected at any depth, because an expired one would be stored empty."""
    with pytest.raises(PayloadError):
        serializer.encode(wrap(row))


@pytest.mark.parametrize("kind", [DataRow, ModelRow, list[ModelRow], dict[str, DataRow]])
def test_a_mapped_class_as_payload_annotation_is_rejected(kind: Any) -> None:
    """The message says to use the id instead."""
    with pytest.raises(HandlerError, match="is a mapped class: take its id"):
        enqueue_and_decode(kind, None)


def test_transit_rejects_values_that_would_change() -> None:
    transit = TransitSerializer(keyword_names=False)
    assert enqueue_and_decode(Mail, Mail(to="a", at=WHEN), transit) == Mail(to="a", at=WHEN)
    assert enqueue_and_decode(Loose, Loose([1, "a"]), transit) == Loose([1, "a"])
    with pytest.raises(PayloadError, match="payload"):
        enqueue_and_decode(Loose, Derived(), transit)


@pytest.mark.parametrize("payload", [(1, 2), {"a": (1, [2])}])
def test_untyped_tuples_become_lists(payload: Any) -> None:
    """A tuple without a declared type is decoded to a list, because JSON has no tuples."""
    loose = enqueue_and_decode(Loose, Loose(payload))
    assert loose.data in ([1, 2], {"a": [1, [2]]})
