"""Calls of the functions that enqueue jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Unpack, assert_type
from uuid import UUID, uuid4

from models import ArchivedShopJob, NotAJob, SendInvoice, ShopJob
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from sqlalchemy_proletarian import (
    Enqueued,
    Job,
    JobOptions,
    JSONSerializer,
    TransitSerializer,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
    utcnow,
)

NOW = datetime.now(UTC)
MINUTE = timedelta(minutes=1)


def any_session(
    session: Session,
    scoped: scoped_session[Session],
    in_asyncio: AsyncSession,
    scoped_in_asyncio: async_scoped_session[AsyncSession],
) -> None:
    assert_type(enqueue(session, "mail"), Job)
    enqueue(scoped, "mail")
    enqueue(in_asyncio, "mail")
    enqueue(scoped_in_asyncio, "mail")


def a_connection(connection: Connection, order_id: UUID) -> None:
    assert_type(enqueue(connection, "mail"), UUID)
    assert_type(enqueue(connection, "mail", {"to": "Ada"}, priority=1, process_in=MINUTE), UUID)
    assert_type(enqueue(connection, "mail", job_model=ShopJob, order_id=order_id), Any)
    assert_type(enqueue(connection, SendInvoice(order_id=order_id), priority=1), Any)
    assert_type(enqueue_many(connection, [("mail", 1)]), int)
    assert_type(enqueue_unique(connection, "mail", unique_key="k"), Enqueued[UUID])
    enqueue_unique(connection, "mail", unique_key="k", job_model=ShopJob, order_id=order_id)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(connection, 7)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(connection, "mail", priority="high")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(connection, "mail", prioritie=1)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    enqueue(connection, "mail", job_model=NotAJob)
    # error: mypy=attr-defined pyright=reportAttributeAccessIssue
    str(enqueue(connection, "mail").job_id)


def no_session(
    engine: Engine, in_asyncio_connection: AsyncConnection, in_asyncio: AsyncSession
) -> None:
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(engine, "mail")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(in_asyncio_connection, "mail")
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    enqueue_many(in_asyncio, [])
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue_unique(in_asyncio, "mail", unique_key="k")
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    manage.cancel(in_asyncio, 1)


def options_of_enqueue(session: Session) -> None:
    enqueue(session, "mail", {"to": "Ada"}, queue="mails", priority=0, notify=False)
    enqueue(session, "mail", process_at=NOW, process_in=MINUTE, clock=utcnow, uuid_fn=uuid4)
    enqueue(session, "mail", queue=None, process_at=None, process_in=None, priority=None)
    enqueue(session, "mail", serializer=TransitSerializer())
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, 7)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", queue=7)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", priority="high")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", process_in=60)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", process_at="tomorrow")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", serializer="json")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", serializer=JSONSerializer)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", clock=NOW)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", notify="yes")
    # error: mypy=call-overload pyright=reportCallIssue
    enqueue(session, "mail", prioritie=1)
    # error: mypy=call-overload pyright=reportCallIssue
    enqueue(session, "mail", order_id=uuid4())


def job_classes(session: Session, order_id: UUID) -> None:
    job = enqueue(session, "mail", job_model=ShopJob, order_id=order_id, priority=1)
    assert_type(job, ShopJob)
    assert_type(job.job_id, UUID)
    assert_type(enqueue(session, SendInvoice(order_id=order_id), priority=1), SendInvoice)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", job_model=ShopJob, priority="high")
    # error: mypy=type-var pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", job_model=NotAJob)
    # error: mypy=type-var pyright=reportArgumentType,reportCallIssue
    enqueue(session, "mail", job_model=ArchivedShopJob)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, SendInvoice(), {"to": "Ada"})
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, SendInvoice(), serializer=JSONSerializer())
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, NotAJob())
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue(session, SendInvoice)


def many(session: Session) -> None:
    assert_type(enqueue_many(session, [("mail", {"to": "Ada"}), ("report", 1)]), int)
    enqueue_many(session, [{"job_type": "mail", "priority": 1}], queue="mails", process_in=MINUTE)
    enqueue_many(session, (("mail", n) for n in range(3)), job_model=ShopJob)
    # error: mypy=list-item pyright=reportArgumentType,reportCallIssue
    enqueue_many(session, ["mail"])
    # error: mypy=list-item pyright=reportArgumentType,reportCallIssue
    enqueue_many(session, [("mail", 1, 2)])
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    enqueue_many(session, [], priority="high")
    # error: mypy=call-arg pyright=reportCallIssue
    enqueue_many(session, [], prioritie=1)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    enqueue_many(session, [], job_model=NotAJob)


def unique(session: Session, order_id: UUID) -> None:
    assert_type(enqueue_unique(session, "mail", unique_key="k", priority=1), Enqueued[Job])
    assert_type(
        enqueue_unique(
            session, "mail", unique_key="k", on_conflict="replace", unique_while="queued"
        ).job,
        Job,
    )
    job = enqueue_unique(session, "mail", unique_key="k", job_model=ShopJob, order_id=order_id)
    assert_type(job, Enqueued[ShopJob])
    # error: mypy=call-overload pyright=reportCallIssue
    enqueue_unique(session, "mail")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue_unique(session, "mail", unique_key=7)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue_unique(session, "mail", unique_key="k", priority="high")
    # error: mypy=call-overload pyright=reportCallIssue
    enqueue_unique(session, "mail", unique_key="k", order_id=order_id)
    # error: mypy=type-var pyright=reportArgumentType,reportCallIssue
    enqueue_unique(session, "mail", unique_key="k", job_model=NotAJob)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue_unique(session, "mail", unique_key="k", on_conflict="overwrite")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    enqueue_unique(session, "mail", unique_key="k", unique_while="waiting")
    # error: mypy=attr-defined pyright=reportAttributeAccessIssue
    str(enqueue_unique(session, "mail", unique_key="k").job_id)


def cancel(session: Session) -> None:
    result = manage.cancel(session, uuid4(), reason="enough", clock=utcnow)
    if result is not None:
        assert result in ("cancelled", "requested")
    manage.cancel(session, 1, job_model=ShopJob, archived_job_model=ArchivedShopJob)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    manage.cancel(session, 1, job_model=ArchivedShopJob)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    manage.cancel(session, 1, reason=None)


def own_function(session: Session, payload: Any, **options: Unpack[JobOptions]) -> Job:
    """Pass options on, as the documentation describes."""
    return enqueue(session, "mail", payload, **options)


def own_calls(session: Session) -> None:
    own_function(session, 1, priority=1)
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    own_function(session, 1, priority="high")
    # error: mypy=call-arg pyright=reportCallIssue
    own_function(session, 1, prioritie=1)
