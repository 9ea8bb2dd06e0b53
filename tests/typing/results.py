"""Results: their type is that of the handler, or the given one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type

from models import ArchivedShopJob, SendInvoice, ShopJob
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Enqueued,
    Handlers,
    Job,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
)
from sqlalchemy_proletarian.asyncio import result, wait_for
from sqlalchemy_proletarian.manage import JobResult

MINUTE = timedelta(minutes=1)
handlers = Handlers()


@dataclass
class Total:
    amount: int


@handlers("total", keep_result=True)
def total(payload: list[int], session: Session) -> Total:
    return Total(sum(payload))


@handlers("fetch", keep_result=True)
async def fetch(payload: str) -> str:
    return payload


@handlers(SendInvoice, keep_result=True)
def send(job: SendInvoice) -> int:
    return 1


def results(session: Session, engine: Engine) -> None:
    assert_type(manage.result(session, 1, handler=total), JobResult[Total])
    assert_type(manage.result(session, 1, handler=fetch).value, str)
    assert_type(manage.result(session, 1, annotation=Total).value, Total)
    assert_type(manage.result(session, 1, annotation=list[int] | None).value, Any)
    assert_type(manage.result(session, 1).value, Any)
    assert_type(
        manage.result(
            session, 1, handler=send, job_model=ShopJob, archived_job_model=ArchivedShopJob
        ).value,
        int,
    )
    assert_type(manage.wait_for(engine, 1, timeout=MINUTE, handler=total).value, Total)
    assert_type(manage.wait_for(session, 1, timeout=None, annotation=Total).value, Total)
    assert_type(manage.wait_for(session, 1, timeout=MINUTE).value, Any)
    # error: mypy=call-overload pyright=reportCallIssue
    manage.wait_for(session, 1)


async def in_asyncio(session: AsyncSession, engine: AsyncEngine) -> None:
    assert_type(await result(session, 1, handler=fetch), JobResult[str])
    assert_type((await result(session, 1, annotation=Total)).value, Total)
    assert_type((await result(session, 1)).value, Any)
    assert_type((await wait_for(engine, 1, timeout=MINUTE, handler=fetch)).value, str)
    assert_type((await wait_for(session, 1, timeout=MINUTE, handler=total)).value, Total)
    assert_type((await wait_for(session, 1, timeout=None)).value, Any)


def headers(session: Session) -> None:
    given = {"tenant": "a", "trace": {"id": 1}}
    job = enqueue(session, "total", headers=given)
    assert_type(job.headers, dict[str, Any] | None)
    enqueue(session, "total", job_model=ShopJob, headers=given, order_id=None)
    enqueue_many(session, [("total", 1)], headers=given)
    assert_type(enqueue_unique(session, "total", unique_key="k", headers=given), Enqueued[Job])
    total.enqueue(session, [1], headers=given)
    enqueue(session, SendInvoice(), headers=None)
