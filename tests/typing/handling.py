"""Handlers: their registration, their calls and the jobs that they enqueue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict, assert_type
from uuid import UUID

from models import NotAJob, SendInvoice, ShopJob
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Discard,
    Handlers,
    Job,
    JSONSerializer,
    RetryAfter,
    RetryStrategy,
    Snooze,
)

MINUTE = timedelta(minutes=1)
handlers = Handlers(retry=RetryStrategy(retries=3, delays=[MINUTE, 500]))


@dataclass
class Mail:
    to: str


class Reminder(TypedDict):
    text: str


@handlers("mail", queue="mails", priority=0, retry={"retries": 3}, timeout=MINUTE, max_deaths=2)
def send(payload: Mail, session: Session, job: Job) -> int:
    return len(payload.to)


@handlers("reminder")
async def remind(payload: Reminder, session: AsyncSession) -> None: ...


@handlers("plain", serializer=JSONSerializer())
def plain(payload: Any) -> None: ...


@handlers(SendInvoice, timeout=1000)
def send_invoice(job: SendInvoice, session: Session) -> None: ...


def enqueues(session: Session, in_asyncio: AsyncSession, connection: Connection) -> None:
    assert_type(send.enqueue(connection, Mail("Ada")), UUID)
    assert_type(send.enqueue(connection, Mail("Ada"), job_model=ShopJob, order_id=None), Any)
    assert_type(send.enqueue(session, Mail("Ada")), Job)
    assert_type(send.enqueue(in_asyncio, Mail("Ada"), priority=1, process_in=MINUTE), Job)
    assert_type(send.enqueue(session, Mail("Ada"), job_model=ShopJob, order_id=None), ShopJob)
    assert_type(remind.enqueue(session, {"text": "now"}), Job)
    plain.enqueue(session, {"a": [1]}, priority=1)
    assert_type(send_invoice.enqueue(session, SendInvoice(), priority=1), SendInvoice)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    send.enqueue(session, "Ada")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    send.enqueue(session, {"to": "Ada"})
    # error: mypy=call-overload pyright=reportCallIssue
    send.enqueue(session)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    remind.enqueue(session, {"txt": "now"})
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    send_invoice.enqueue(session, ShopJob())
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    send_invoice.enqueue(session, {"order_id": None})
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    send.enqueue(session, Mail("Ada"), priority="high")
    # error: mypy=call-overload pyright=reportCallIssue
    send.enqueue(session, Mail("Ada"), prioritie=1)
    # error: mypy=type-var pyright=reportArgumentType,reportCallIssue
    send.enqueue(session, Mail("Ada"), job_model=NotAJob)


def calls(session: Session, in_asyncio: AsyncSession) -> None:
    assert_type(send(Mail("Ada"), session, Job()), int)
    send_invoice(SendInvoice(), session)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    send("Ada", session, Job())
    # error: mypy=call-arg pyright=reportCallIssue
    send(Mail("Ada"))
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    send(Mail("Ada"), in_asyncio, Job())


def registrations() -> None:
    # error: mypy=call-overload pyright=reportCallIssue
    handlers("a", prioritie=1)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers("a", priority="high")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers("a", timeout=1.5)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers("a", retry=3)
    # error: mypy=type-var pyright=reportArgumentType,reportCallIssue
    handlers(NotAJob)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers(SendInvoice, queue="mails")
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    Handlers(retry=3)

    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    @handlers(SendInvoice)
    def another(payload: Mail) -> None: ...


@handlers.retry_strategy("mail")
def patient(job: Job, error: Exception) -> RetryStrategy | None:
    return None


@handlers.retry_strategy("reminder")
def as_mapping(job: Job, error: Exception) -> Mapping[str, Any]:
    return {"retries": 3, "delays": [1000]}


# error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
@handlers.retry_strategy("plain")
def wrong(job: Job, error: Exception) -> int:
    return 3


@handlers.middleware
def scope(job: Job, session: Session) -> Iterator[None]:
    yield


assert_type(scope(Job(), Session()), Iterator[None])


@handlers.middleware
async def async_scope(session: AsyncSession) -> AsyncIterator[None]:
    yield


@handlers.middleware
@contextmanager
def manager(job: Job) -> Generator[None]:
    yield


# error: mypy=type-var pyright=reportArgumentType
@handlers.middleware
def no_scope(job: Job) -> None: ...


def retries() -> None:
    RetryStrategy(retries=3)
    RetryStrategy(3, [MINUTE], jitter=True, on=ConnectionError, never_on={ValueError, KeyError})
    assert_type(RetryStrategy.exponential(), RetryStrategy)
    RetryStrategy.exponential(
        4, first=MINUTE, maximum=60_000, factor=1.5, jitter=False, on=[OSError]
    )
    # error: mypy=arg-type pyright=reportArgumentType
    RetryStrategy.exponential(on=("ConnectionError",))
    # error: mypy=arg-type pyright=reportArgumentType
    RetryStrategy.exponential(never_on=ValueError("no"))
    # error: mypy=call-arg pyright=reportCallIssue
    RetryStrategy.exponential(4, MINUTE)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    RetryStrategy(retries="3")
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    RetryStrategy(retries=3, delays=MINUTE)
    # error: mypy=call-arg pyright=reportCallIssue
    RetryStrategy(retries=3, delay=[MINUTE])


def exceptions() -> tuple[Exception, ...]:
    return Snooze(MINUTE), RetryAfter(500), Discard("no")


def durations() -> None:
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    Snooze("1 minute")
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    RetryAfter(None)
