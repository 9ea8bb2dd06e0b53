"""Handlers with a unique key, and the results of enqueueing a unique job."""

from __future__ import annotations

from typing import Any, assert_type
from uuid import UUID

from models import SendInvoice, ShopJob
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Enqueued, Handlers, Job, JobExistsError

handlers = Handlers()


@handlers("index", unique_key=lambda page: f"page {page}", unique_while="queued")
def index(page: int) -> None: ...


@handlers("mail")
def mail(to: str, session: Session) -> None: ...


def enqueues(session: Session, connection: Connection, in_asyncio: AsyncSession) -> None:
    assert_type(index.enqueue(session, 7), Job)
    assert_type(index.enqueue(connection, 7), UUID)
    assert_type(index.enqueue_unique(session, 7), Enqueued[Job])
    assert_type(index.enqueue_unique(session, 7, on_conflict="raise").created, bool)
    assert_type(index.enqueue_unique(connection, 7).job, UUID)
    assert_type(mail.enqueue_unique(session, "Ada", unique_key="k", priority=1).job, Job)
    assert_type(mail.enqueue_unique(session, "Ada", unique_key="k", job_model=ShopJob).job, ShopJob)
    assert_type(mail.enqueue_unique(connection, "Ada", unique_key="k", job_model=ShopJob).job, Any)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    index.enqueue_unique(session, "seven")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    index.enqueue_unique(in_asyncio, 7)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    index.enqueue_unique(session, 7, on_conflict="overwrite")


def registrations() -> None:
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers("a", unique_while="waiting")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers("a", unique_key="key")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers(SendInvoice, unique_key=str)


def errors(error: JobExistsError) -> None:
    assert_type(error.job_id, Any)
    assert_type(error.unique_key, str)
