"""The worker in an event loop, and the async counterparts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal, assert_type
from uuid import UUID

from models import ArchivedShopJob, NotAJob, ShopJob
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Enqueued, Handlers, Job, manage
from sqlalchemy_proletarian.asyncio import (
    AsyncQueueWorker,
    cancel,
    discard,
    enqueue,
    enqueue_many,
    enqueue_unique,
    failures,
    get_job,
    history,
    list_jobs,
    make_partitions,
    pause,
    process_next_job,
    prune,
    reschedule,
    resume,
    retry,
    retry_where,
    running,
    stats,
)

MINUTE = timedelta(minutes=1)


async def control(
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
    plain: Session,
    engine: AsyncEngine,
) -> None:
    assert_type(await pause(session, "mail", reason="down"), bool)
    assert_type(await resume(scoped, "mail"), bool)
    assert_type(
        await reschedule(session, 1, process_in=MINUTE),
        Literal["rescheduled", "running"] | None,
    )
    assert_type(await discard(scoped, 1), Literal["discarded", "running"] | None)
    assert_type(await retry_where(session, ArchivedJob.status == "failure", limit=5), int)
    await retry(session, 1, job_model=ShopJob, archived_job_model=ArchivedShopJob)
    assert_type(await stats(session), manage.Stats)
    assert_type(await running(session), list[manage.Running])
    assert_type(await list_jobs(session, status="due", limit=5), manage.JobPage)
    assert_type(await get_job(session, 1), manage.JobDetails | None)
    assert_type(await history(session, window=MINUTE, intervals=6), list[manage.EndedJobs])
    assert_type(await failures(scoped), manage.Failures)
    assert_type(await prune(engine, older_than=MINUTE, status=["failure"]), int)
    await prune(session, older_than=MINUTE)
    assert_type(await make_partitions(engine, months=6), list[str])
    # error: mypy=arg-type pyright=reportArgumentType
    await make_partitions(session)
    # error: mypy=arg-type pyright=reportArgumentType
    await pause(plain, "mail")
    # error: mypy=arg-type pyright=reportArgumentType
    await pause(session, 7)
    # error: mypy=call-arg pyright=reportCallIssue
    await stats(session, windows=MINUTE)
    # error: mypy=call-arg pyright=reportCallIssue
    await prune(session)


async def run_all(job_type: str, payload: Any) -> None: ...


async def functions(
    session: AsyncSession, scoped: async_scoped_session[AsyncSession], plain: Session
) -> None:
    assert_type(await enqueue_many(session, [("mail", 1)], queue="mails"), int)
    await enqueue_many(scoped, [{"job_type": "mail"}], job_model=ShopJob, process_in=MINUTE)
    assert_type(await enqueue_unique(session, "mail", unique_key="k", priority=1), Enqueued[Job])
    job = await enqueue_unique(scoped, "mail", 1, unique_key="k", job_model=ShopJob, order_id=None)
    assert_type(job, Enqueued[ShopJob])
    await cancel(session, 1, reason="enough")
    await cancel(scoped, 1, job_model=ShopJob, archived_job_model=ArchivedShopJob)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    await enqueue_many(plain, [])
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    await enqueue_many(session, [], priority="high")
    # error: mypy=call-arg pyright=reportCallIssue
    await enqueue_many(session, [], prioritie=1)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    await enqueue_unique(plain, "mail", unique_key="k")
    # error: mypy=call-overload pyright=reportCallIssue
    await enqueue_unique(session, "mail")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    await enqueue_unique(session, "mail", unique_key="k", priority="high")
    # error: mypy=call-overload pyright=reportCallIssue
    await enqueue_unique(session, "mail", unique_key="k", prioritie=1)
    # error: mypy=type-var pyright=reportArgumentType,reportCallIssue
    await enqueue_unique(session, "mail", unique_key="k", job_model=NotAJob)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    await cancel(plain, 1)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    await cancel(session, 1, reason=None)
    # error: mypy=call-arg pyright=reportCallIssue
    await cancel(session, 1, because="enough")
    # error: mypy=operator pyright=reportOperatorIssue
    enqueue_many(session, []) + 1


async def connections(connection: AsyncConnection, session: AsyncSession) -> None:
    assert_type(await enqueue(connection, "mail", {"to": "Ada"}, priority=1), UUID)
    assert_type(await enqueue(connection, "mail", job_model=ShopJob, order_id=None), Any)
    assert_type(await enqueue(connection, ShopJob(job_type="mail")), Any)
    assert_type(await enqueue_many(connection, [("mail", 1)]), int)
    assert_type(await enqueue_unique(connection, "mail", unique_key="k"), Enqueued[UUID])
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    await enqueue(session, "mail")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    await enqueue(connection, "mail", priority="high")


async def next_job(session: AsyncSession, plain: Session, handlers: Handlers) -> None:
    assert_type(await process_next_job(session, handlers, queues=["a"]), bool | None)
    await process_next_job(session, run_all, job_model=ShopJob)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    await process_next_job(plain, handlers)
    # error: mypy=call-arg pyright=reportCallIssue
    await process_next_job(session, handlers, concurrency=4)


async def workers(engine: AsyncEngine, plain: Engine, handlers: Handlers) -> None:
    AsyncQueueWorker(async_sessionmaker(engine), run_all, concurrency=4, lease=MINUTE)
    async with AsyncQueueWorker(engine, handlers, queues="a", job_model=ShopJob) as worker:
        assert_type(worker, AsyncQueueWorker)
        assert_type(await worker.drain(), int)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    AsyncQueueWorker(plain, handlers)
    # error: mypy=call-arg pyright=reportCallIssue
    AsyncQueueWorker(engine, handlers, threads=4)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    AsyncQueueWorker(engine, handlers, concurrency="4")
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    AsyncQueueWorker(engine, handlers, lease=60)
    # error: mypy=attr-defined pyright=reportGeneralTypeIssues
    with AsyncQueueWorker(engine, handlers):
        pass
