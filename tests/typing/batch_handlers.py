"""Batch handlers: their functions take lists, and their jobs are enqueued one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from models import SendInvoice, ShopJob
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import BatchFailed, BatchHandler, Discard, Handlers, Job, testing

handlers = Handlers()


@dataclass
class Doc:
    text: str


@handlers.recurring("often", every=timedelta(minutes=1), payload=Doc("a"))
@handlers.batch("index", size=500, queue="docs", retry={"retries": 3})
def index(payloads: list[Doc], session: Session, jobs: list[Job]) -> None: ...


@handlers.batch("count")
def count(payloads: Sequence[int]) -> list[Exception | None]:
    return [Discard() if n < 0 else None for n in payloads]


@handlers.batch("fetch", timeout=1000)
async def fetch(payloads: list[str], session: AsyncSession) -> list[ValueError | None] | None:
    return None


@handlers.batch(SendInvoice, size=10, timeout=1000)
def invoice(jobs: list[SendInvoice], session: Session) -> None: ...


def enqueues(session: Session) -> None:
    assert_type(index.enqueue(session, Doc("a")), Job)
    assert_type(index.enqueue(session, Doc("a"), job_model=ShopJob, order_id=None), ShopJob)
    assert_type(count.enqueue(session, 1, priority=2), Job)
    assert_type(fetch.enqueue(session, "https://example.com"), Job)
    assert_type(invoice.enqueue(session, SendInvoice()), SendInvoice)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    index.enqueue(session, [Doc("a")])
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    count.enqueue(session, "1")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    invoice.enqueue(session, [SendInvoice()])


async def calls(session: Session, in_asyncio: AsyncSession) -> None:
    index([Doc("a")], session, [Job()])
    invoice([SendInvoice()], session)
    assert_type(count([1, 2]), list[Exception | None])
    assert_type(await fetch(["a"], in_asyncio), list[ValueError | None] | None)
    testing.perform(index, Doc("a"), session=session)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    index(Doc("a"), session, [Job()])
    # error: mypy=misc pyright=reportArgumentType,reportCallIssue
    testing.perform(index, [Doc("a")], session=session)


def registrations() -> None:
    # error: mypy=call-overload pyright=reportCallIssue
    handlers.batch("a", sizes=3)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers.batch("a", size="3")
    # error: mypy=call-overload pyright=reportCallIssue,reportArgumentType
    handlers.batch(SendInvoice, queue="mails")

    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    @handlers.batch("b")
    def of_one(payload: Doc) -> None: ...

    # error: mypy=type-var pyright=reportArgumentType,reportCallIssue
    @handlers.batch("c")
    def counts(payloads: list[Doc]) -> int:
        return 1

    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    @handlers.batch(SendInvoice)
    def of_payloads(payloads: list[Doc]) -> None: ...


def errors() -> None:
    assert_type(BatchFailed({0: ValueError()}).errors, dict[int, Exception])
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    BatchFailed([ValueError()])
    # error: mypy=dict-item pyright=reportArgumentType,reportCallIssue
    BatchFailed({0: "no"})


def as_parameter(handler: BatchHandler[Doc, ..., None], session: Session) -> None:
    handler.enqueue(session, Doc("a"))


as_parameter(index, Session())
