"""Handlers receive the payload that was enqueued, with every function that enqueues jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    PayloadError,
    enqueue,
    enqueue_many,
    enqueue_unique,
)
from sqlalchemy_proletarian import asyncio as async_api

from .kinds import Kind
from .support import Note, queued

ID = UUID("0190d1a4-0000-7000-8000-000000000001")
WHEN = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)


@dataclass
class Order:
    id: UUID
    at: datetime
    prices: dict[int, Decimal] = field(default_factory=dict)
    data: Any = None


class Signup(BaseModel):
    model_config = ConfigDict(strict=True)
    user_id: UUID = Field(alias="userId")
    at: datetime


class Login(BaseModel):
    token: SecretStr


def by_handler(session: Session, handler: Any, payload: Any) -> None:
    handler.enqueue(session, payload)


def by_enqueue(session: Session, handler: Any, payload: Any) -> None:
    enqueue(session, handler.job_type, payload)


def by_enqueue_many(session: Session, handler: Any, payload: Any) -> None:
    enqueue_many(session, [(handler.job_type, payload)])


def by_enqueue_unique(session: Session, handler: Any, payload: Any) -> None:
    enqueue_unique(session, handler.job_type, payload, unique_key=handler.job_type)


every_enqueue_function = pytest.mark.parametrize(
    "enqueue_payload", [by_handler, by_enqueue, by_enqueue_many, by_enqueue_unique]
)
GOOD = [
    (Order, Order(ID, WHEN, {1: Decimal("1.10")}, [{"a": None}, "€"])),
    (Signup, Signup(userId=ID, at=WHEN)),
    (dict, {"a": [1, 1.5, True, None, "😀"]}),
]
BAD = [
    (Order, Order(ID, WHEN, data={"at": WHEN}), "payload.data['at'] is datetime.datetime"),
    (Login, Login(token=SecretStr("abc")), "payload.token is a SecretStr"),
    (dict, {"note": Note(text="a")}, "payload['note'] is a mapped object of"),
]


@every_enqueue_function
def test_a_handler_receives_the_enqueued_payload(
    engine: Engine, kind: Kind, enqueue_payload: Callable[..., None]
) -> None:
    """A handler receives a payload equal to the one that was enqueued."""
    handlers = Handlers()
    seen: dict[str, Any] = {}

    def recording_handler(job_type: str, annotation: Any) -> Any:
        def function(payload: Any) -> None:
            seen[job_type] = payload

        function.__annotations__["payload"] = annotation
        return handlers(job_type)(function)

    with Session(engine) as session, session.begin():
        for number, (annotation, payload) in enumerate(GOOD):
            enqueue_payload(session, recording_handler(str(number), annotation), payload)
    assert kind.run_all(engine, handlers) == len(GOOD)
    for number, (annotation, payload) in enumerate(GOOD):
        assert seen[str(number)] == payload
        assert isinstance(seen[str(number)], annotation)


@every_enqueue_function
@pytest.mark.parametrize(("annotation", "payload", "message"), BAD, ids=["any", "secret", "mapped"])
def test_an_invalid_payload_is_rejected_when_enqueued(
    engine: Engine,
    enqueue_payload: Callable[..., None],
    annotation: Any,
    payload: Any,
    message: str,
) -> None:
    """A payload that cannot be restored is rejected when enqueued; the transaction continues."""

    def function(payload: Any) -> None: ...

    function.__annotations__["payload"] = annotation
    handler = Handlers()("bad")(function)
    with Session(engine) as session, session.begin():
        with pytest.raises(PayloadError) as error_info:
            enqueue_payload(session, handler, payload)
        enqueue(session, "good")
    assert str(error_info.value).startswith(message)
    assert [job.job_type for job in queued(engine)] == ["good"]


def test_payloads_with_an_async_session(engine: Engine) -> None:
    """The async variants accept and reject the same payloads."""
    _, bad, _ = BAD[0]
    handlers = Handlers()

    @handlers("order")
    async def handler(payload: Order) -> None: ...

    async def work() -> list[str]:
        bind = create_async_engine(engine.url.set(drivername="postgresql+asyncpg"))
        async with AsyncSession(bind) as session, session.begin():
            with pytest.raises(PayloadError, match=r"payload\.data"):
                handler.enqueue(session, bad)
            with pytest.raises(PayloadError, match=r"payload\.data"):
                await async_api.enqueue_many(session, [("order", bad)])
            with pytest.raises(PayloadError, match=r"payload\.data"):
                await async_api.enqueue_unique(session, "order", bad, unique_key="a")
            handler.enqueue(session, GOOD[0][1])
            await async_api.enqueue_many(session, [("order", GOOD[0][1])])
            await async_api.enqueue_unique(session, "order", GOOD[0][1], unique_key="a")
        async with AsyncSession(bind) as session:
            texts = list(await session.scalars(select(Job.payload)))
        await bind.dispose()
        return texts

    texts = asyncio.run(work())
    assert len(texts) == 3
    assert len(set(texts)) == 1
