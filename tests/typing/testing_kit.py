"""The test kit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_type

from models import ArchivedShopJob, NotAJob, SendInvoice, ShopJob
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers
from sqlalchemy_proletarian.testing import (
    EnqueuedJob,
    FrozenClock,
    JobRun,
    Outcome,
    assert_enqueued,
    assert_not_enqueued,
    drain,
    enqueued,
    perform,
)
from sqlalchemy_proletarian.testing import asyncio as in_asyncio

MINUTE = timedelta(minutes=1)


@dataclass
class Mail:
    to: str


handlers = Handlers()


@handlers("mail")
def send_mail(mail: Mail, session: Session) -> None: ...


@handlers("note")
async def send_note(note: int, session: AsyncSession) -> None: ...


def reading(session: Session, awaited: AsyncSession) -> None:
    assert_type(enqueued(session), list[EnqueuedJob[Any]])
    assert_type(enqueued(session, "mail", queue="a"), list[EnqueuedJob[Any]])
    assert_type(enqueued(session, SendInvoice), list[EnqueuedJob[Any]])
    assert_type(enqueued(session, send_mail), list[EnqueuedJob[Mail]])
    assert_type(enqueued(session, send_mail)[0].payload, Mail)
    found = assert_enqueued(session, send_mail, payload=Mail("a"), process_in=MINUTE, count=1)
    assert_type(found, list[EnqueuedJob[Mail]])
    assert_enqueued(session, "mail", payload=1, job_model=ShopJob, order_id=None)
    assert_not_enqueued(session)
    assert_not_enqueued(session, send_mail, payload=Mail("a"), priority=3)
    # error: mypy=call-overload pyright=reportArgumentType
    enqueued(awaited)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueued(session, 7)
    # error: mypy=call-overload,arg-type pyright=reportArgumentType,reportCallIssue
    enqueued(session, NotAJob)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    assert_enqueued(session, "mail", process_in=60)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    assert_enqueued(session, "mail", count="1")


def running(session: Session, awaited: AsyncSession) -> None:
    runs = drain(session, handlers, raise_errors=True, max_runs=5, queues=["a"])
    assert_type(runs, list[JobRun])
    assert_type(runs[0].outcome, Outcome)
    assert_type(runs[0].error, Exception | None)
    assert_type(runs[0].process_at, datetime | None)
    drain(session, handlers, job_model=ShopJob, archived_job_model=ArchivedShopJob)
    with FrozenClock() as clock:
        assert_type(clock, FrozenClock)
        assert_type(clock.advance(MINUTE), datetime)
        drain(session, handlers, clock=clock)
    perform(send_mail, Mail("a"), session=session, attempt=2)
    perform(send_mail, Mail("a"), session=session, job_model=ShopJob, order_id=None)
    # error: mypy=arg-type pyright=reportArgumentType
    drain(awaited, handlers)
    # error: mypy=call-arg pyright=reportCallIssue
    drain(session, handlers, raise_error=True)
    # error: mypy=arg-type pyright=reportArgumentType
    drain(session, handlers, max_runs="5")
    # error: mypy=misc,arg-type pyright=reportArgumentType
    perform(send_mail, 7, session=session)
    # error: mypy=arg-type pyright=reportArgumentType
    perform(send_mail, Mail("a"), session=awaited)
    # error: mypy=arg-type pyright=reportArgumentType
    FrozenClock("noon")


async def in_a_loop(session: AsyncSession, plain: Session) -> None:
    assert_type(await in_asyncio.enqueued(session, send_note), list[EnqueuedJob[int]])
    assert_type(await in_asyncio.enqueued(session, "note"), list[EnqueuedJob[Any]])
    found = await in_asyncio.assert_enqueued(session, send_note, payload=1)
    assert_type(found, list[EnqueuedJob[int]])
    await in_asyncio.assert_not_enqueued(session, "note", queue="a")
    assert_type(await in_asyncio.drain(session, handlers, raise_errors=True), list[JobRun])
    await in_asyncio.perform(send_note, 1, session=session)
    # error: mypy=arg-type pyright=reportArgumentType
    await in_asyncio.drain(plain, handlers)
    # error: mypy=call-overload pyright=reportArgumentType
    await in_asyncio.enqueued(plain)
    # error: mypy=arg-type pyright=reportArgumentType
    await in_asyncio.perform(send_note, 1, session=plain)
