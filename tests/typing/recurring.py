"""Recurring jobs: in code, and created at run time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

from models import RecurringShopJob, ShopJob
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, RecurringJob, manage
from sqlalchemy_proletarian import asyncio as awaitable

MINUTE = timedelta(minutes=1)
handlers = Handlers(owner="shop")


@handlers.recurring("nightly", cron="0 3 * * *", timezone="Europe/Oslo", payload="sales")
@handlers.recurring("often", every=MINUTE, queue="fast", priority=1, catch_up="none")
@handlers("report")
def report(subject: str, job: Job) -> int:
    return len(subject)


@handlers.recurring("clean-up", every=MINUTE)
async def clean_up(payload: None, session: AsyncSession) -> None: ...


def declarations(session: Session) -> None:
    assert_type(report.enqueue(session, "stock"), Job)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    report.enqueue(session, 7)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    clean_up.enqueue(session, 7)
    # error: mypy=arg-type pyright=reportArgumentType
    handlers.recurring("x", every=60)
    # error: mypy=arg-type pyright=reportArgumentType
    handlers.recurring("x", every=MINUTE, catch_up="some")
    # error: mypy=call-arg pyright=reportCallIssue
    handlers.recurring("x", every=MINUTE, zone="UTC")
    # error: mypy=call-arg pyright=reportCallIssue
    handlers.recurring(every=MINUTE)


def schedules(session: Session, in_asyncio: AsyncSession) -> None:
    row = manage.schedule(session, "mine", "report", "stock", every=MINUTE, queue="slow")
    assert_type(row, RecurringJob)
    own = manage.schedule(
        session, "mine", "report", cron="0 3 * * *", recurring_job_model=RecurringShopJob, shop=1
    )
    assert_type(own, RecurringShopJob)
    assert_type(manage.unschedule(session, "mine"), bool)
    assert_type(manage.pause_schedule(session, "mine"), bool | None)
    assert_type(
        manage.resume_schedule(session, "mine", recurring_job_model=RecurringShopJob), bool | None
    )
    manage.run_schedule(session, "mine", recurring_job_model=RecurringShopJob)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    manage.schedule(in_asyncio, "mine", "report", every=MINUTE)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    manage.schedule(session, "mine", "report", every=60)
    # error: mypy=arg-type pyright=reportArgumentType
    manage.unschedule(in_asyncio, "mine")


async def in_asyncio(session: AsyncSession, plain: Session) -> None:
    row = await awaitable.schedule(session, "mine", "report", every=MINUTE)
    assert_type(row, RecurringJob)
    assert_type(
        await awaitable.schedule(
            session, "mine", "report", every=MINUTE, recurring_job_model=RecurringShopJob
        ),
        RecurringShopJob,
    )
    assert_type(await awaitable.unschedule(session, "mine"), bool)
    # error: mypy=arg-type pyright=reportArgumentType
    await awaitable.unschedule(plain, "mine")


def workers(engine: Engine, options: dict[str, Any]) -> None:
    QueueWorker(engine, handlers, recurring_job_model=RecurringShopJob, job_model=ShopJob)
    QueueWorker(engine, handlers, recurring_job_model=None)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers, recurring_job_model=ShopJob)
