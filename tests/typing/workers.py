"""Workers, and the function that runs one job."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

from models import ArchivedShopJob, NotAJob, ShopJob
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import (
    Handlers,
    QueueWorker,
    RetryStrategy,
    TransitSerializer,
    process_next_job,
)

MINUTE = timedelta(minutes=1)


def run_all(job_type: str, payload: Any) -> None: ...


async def run_all_in_a_loop(job_type: str, payload: Any) -> None: ...


def no_payload(job_type: str) -> None: ...


def workers(engine: Engine, handlers: Handlers) -> None:
    QueueWorker(engine, handlers)
    QueueWorker(sessionmaker(engine), run_all, threads=4, queues=["a", "b"], lease=MINUTE)
    QueueWorker(engine, handlers, queues={"critical": 5, "bulk": 1})
    QueueWorker(engine, handlers, job_model=ShopJob, archived_job_model=ArchivedShopJob)
    QueueWorker(engine, handlers, running_job_model=None, serializer=TransitSerializer())
    QueueWorker(engine, handlers, retry_strategy=RetryStrategy(retries=3), polling_interval=MINUTE)
    QueueWorker(engine, handlers, retry_strategy={"retries": 3}, on_failed=lambda job, error: None)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker("postgresql://", handlers)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, no_payload)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers, threads="4")
    # error: mypy=call-arg pyright=reportCallIssue
    QueueWorker(engine, handlers, thread=4)
    # error: mypy=call-arg pyright=reportCallIssue
    QueueWorker(engine, handlers, concurrency=4)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers, queues=7)
    # error: mypy=dict-item pyright=reportArgumentType,reportCallIssue
    QueueWorker(engine, handlers, queues={"a": "much"})
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers, polling_interval=1.5)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers, lease=60)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers, job_model=NotAJob)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers, archived_job_model=ShopJob)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers, running_job_model="none")
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers, serializer=TransitSerializer)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers, retry_strategy=3)
    # error: mypy=arg-type,misc pyright=reportArgumentType
    QueueWorker(engine, handlers, on_failed=lambda: None)


def lives(worker: QueueWorker) -> None:
    with worker as entered:
        assert_type(entered, QueueWorker)
        assert_type(worker.drain(), int)
        assert_type(worker.stopping, bool)
        assert_type(worker.threads, int)
        assert_type(worker.name, str)


def next_job(
    session: Session, in_asyncio: AsyncSession, handlers: Handlers, engine: AsyncEngine
) -> None:
    assert_type(process_next_job(session, handlers, queues="a"), bool | None)
    process_next_job(session, handlers, queues={"a": 1, "b": 2})
    process_next_job(session, run_all, job_model=ShopJob)
    # error: mypy=arg-type pyright=reportArgumentType
    process_next_job(in_asyncio, handlers)
    # error: mypy=call-arg pyright=reportCallIssue
    process_next_job(session, handlers, threads=4)
    # error: mypy=arg-type pyright=reportArgumentType
    process_next_job(session, handlers, queues=7)
    # error: mypy=arg-type pyright=reportArgumentType
    QueueWorker(engine, handlers)
