"""Retrying archived jobs."""

from __future__ import annotations

from datetime import timedelta
from threading import Thread
from time import sleep
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Mapped, Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Job,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
)
from sqlalchemy_proletarian.asyncio import retry as async_retry
from sqlalchemy_proletarian.asyncio import retry_where as async_retry_where

from .kinds import Kind
from .loops import in_a_loop
from .orders import Order, PackParcel, SendInvoice, ShopJob
from .support import (
    MINUTE,
    ArchivedEmailJob,
    Customer,
    EmailJob,
    ManualClock,
    Shop,
    archived,
    eventually,
    fail,
    listening,
    only_archived,
    only_queued,
    put,
    queued,
    run_all,
    succeed,
)


def retry(engine: Engine, job: Any, **options: Any) -> Any:
    with Session(engine) as session, session.begin():
        return manage.retry(session, job, **options)


def retry_where(engine: Engine, *criteria: Any, **options: Any) -> int:
    with Session(engine) as session, session.begin():
        return manage.retry_where(session, *criteria, **options)


def test_a_failed_job_is_enqueued_again(engine: Engine, clock: ManualClock) -> None:
    """It has a new id, no attempts and the same payload; the archive keeps its row."""
    payload = {"text": 'Grüße "😀"', "list": [1, None]}
    job_id = put(engine, "job", payload, queue="mail", priority=2, unique_key="key", clock=clock)
    run_all(engine, fail, queues="mail", clock=clock)
    old = only_archived(engine)
    clock.advance(MINUTE)
    new_id = retry(engine, job_id, clock=clock)
    job = only_queued(engine)
    assert new_id == job.job_id != job_id
    assert (job.queue, job.job_type, job.payload) == ("mail", "job", old.payload)
    assert (job.priority, job.unique_key) == (2, "key")
    assert (job.attempts, job.deaths, job.error, job.lease_id) == (0, 0, None, None)
    assert job.enqueued_at == job.process_at == clock.now
    now = only_archived(engine)
    assert (now.status, now.error, now.attempts) == ("failure", old.error, 1)
    assert now.retried_at == clock.now
    got: list[Any] = []
    run_all(engine, lambda job_type, given: got.append(given), queues="mail", clock=clock)
    assert got == [payload]
    assert sorted(job.status for job in archived(engine)) == ["failure", "success"]


def test_a_job_is_retried_once(engine: Engine) -> None:
    """A second call for the same row returns None; the new job can be retried in turn."""
    job_id = put(engine, "job")
    run_all(engine, fail)
    new_id = retry(engine, job_id)
    assert retry(engine, job_id) is None
    assert retry(engine, uuid4()) is None
    run_all(engine, fail)
    assert retry(engine, new_id) is not None
    assert len(queued(engine)) == 1


def test_an_object_can_be_given(engine: Engine) -> None:
    """Its ``retried_at`` is up to date afterwards, and it can be of a later time."""
    put(engine, "job")
    run_all(engine, succeed)
    with Session(engine) as session, session.begin():
        old = session.scalars(select(ArchivedJob)).one()
        assert manage.retry(session, old, process_in=timedelta(hours=1)) is not None
        assert old.retried_at is not None
        job = session.scalars(select(Job)).one()
        assert job.process_at - job.enqueued_at == timedelta(hours=1)
    with Session(engine) as session, pytest.raises(TypeError, match="archived_job_model="):
        manage.retry(session, old, archived_job_model=ArchivedEmailJob)


@pytest.mark.parametrize("rolled_back", [False, True])
def test_two_calls_at_once_enqueue_one_job(engine: Engine, rolled_back: bool) -> None:
    """The second one does not wait; after a rollback of the first one, a third succeeds."""
    job_id = put(engine, "job")
    run_all(engine, fail)
    with Session(engine) as session:
        assert manage.retry(session, job_id) is not None
        assert retry(engine, job_id) is None
        assert retry_where(engine, ArchivedJob.status == "failure") == 0
        if rolled_back:
            session.rollback()
        else:
            session.commit()
    assert (retry(engine, job_id) is not None) == rolled_back
    assert len(queued(engine)) == 1


def test_many_calls_at_once(engine: Engine) -> None:
    """Each archived job is enqueued once, whichever of the calls finds it first."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("job", n) for n in range(1200)])
    run_all(engine, fail)
    counts: list[int] = []

    def one() -> None:
        counts.append(retry_where(engine, ArchivedJob.job_type == "job"))

    threads = [Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 1200
    payloads = sorted(int(job.payload) for job in queued(engine))
    assert payloads == list(range(1200))
    assert len(archived(engine)) == 1200


def test_a_unique_key_that_is_taken(engine: Engine) -> None:
    """Nothing is enqueued, and the archived job can be retried when the key is free again."""
    job_id = put(engine, "job", 1, unique_key="key")
    other = put(engine, "job", 2, unique_key="other")
    run_all(engine, fail)
    with Session(engine) as session, session.begin():
        assert enqueue_unique(session, "job", 3, unique_key="key").created
    assert retry(engine, job_id) is None
    assert retry_where(engine, ArchivedJob.status == "failure") == 1
    assert sorted(job.payload for job in queued(engine)) == ["2", "3"]
    rows = {job.job_id: job.retried_at for job in archived(engine)}
    assert rows[job_id] is None and rows[other] is not None
    run_all(engine, succeed)
    assert retry(engine, job_id) is not None


def test_keys_that_are_equal_in_the_archive(engine: Engine) -> None:
    """Of several archived jobs with a key, one is enqueued."""
    for _ in range(3):
        put(engine, "job", unique_key="key")
        run_all(engine, fail)
    assert retry_where(engine, ArchivedJob.unique_key == "key") == 1
    assert len(queued(engine)) == 1


def test_criteria_and_limit(engine: Engine) -> None:
    """Only the jobs that meet all criteria are retried, at most ``limit``, the first ones first."""
    for n in range(4):
        put(engine, "mail", n)
        run_all(engine, fail)
    put(engine, "mail", 9)
    run_all(engine, succeed)
    criteria = ArchivedJob.status == "failure", ArchivedJob.job_type == "mail"
    assert retry_where(engine, *criteria, limit=3, process_in=MINUTE) == 3
    assert [job.payload for job in queued(engine)] == ["0", "1", "2"]
    assert retry_where(engine, *criteria, limit=3) == 1
    assert retry_where(engine, *criteria) == 0
    with Session(engine) as session, pytest.raises(TypeError, match="needs a criterion"):
        manage.retry_where(session)


def test_a_rollback_undoes_it(engine: Engine) -> None:
    job_id = put(engine, "job")
    run_all(engine, fail)
    with Session(engine) as session:
        assert manage.retry(session, job_id) is not None
        session.rollback()
    with Session(engine) as session, session.begin():
        nested = session.begin_nested()
        assert manage.retry(session, job_id) is not None
        nested.rollback()
    assert queued(engine) == []
    assert only_archived(engine).retried_at is None


def test_the_commit_wakes_workers(engine: Engine, kind: Kind) -> None:
    """An idle worker runs the new job at once; with ``notify=False`` nothing is announced."""
    job_id = put(engine, "job")
    kind.run_all(engine, fail)
    with listening(engine.url) as announced:
        retry(engine, job_id, notify=False)
        assert announced() == []
    run_all(engine, fail)
    (new_id,) = (job.job_id for job in archived(engine) if job.job_id != job_id)
    with kind.worker(engine, succeed, polling_interval=MINUTE), listening(engine.url) as announced:
        sleep(1.5)  # until it has done its last checks
        retry(engine, new_id)
        eventually(lambda: len(archived(engine)) == 3)
        assert announced() == ["default"]


def test_columns_of_the_application(shop: Engine) -> None:
    """Columns that both models have are carried; others get their defaults."""
    with Session(shop) as session, session.begin():
        ada = Customer(name="Ada")
        session.add(ada)
        session.flush()
        ada_id = ada.id
        enqueue(
            session,
            "mail",
            job_model=EmailJob,
            customer_id=ada_id,
            campaign="spring",
            internal="secret",
        )
    models: Any = {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob}
    run_all(shop, fail, **models)
    assert retry_where(shop, ArchivedEmailJob.campaign == "spring", **models) == 1
    job = only_queued(shop, EmailJob)
    assert (job.customer_id, job.campaign, job.internal) == (ada_id, "spring", None)
    with Session(shop) as session, session.begin():
        session.execute(update(ArchivedEmailJob).values(customer_id=-1, retried_at=None))
    with Session(shop) as session, pytest.raises(IntegrityError):
        manage.retry_where(session, ArchivedEmailJob.campaign == "spring", **models)
    assert only_archived(shop, ArchivedEmailJob).retried_at is None


class FullArchive(ArchivedJobMixin, Shop):
    """An archive with the columns of all job classes."""

    __tablename__ = "full_archive"

    order_id: Mapped[int | None]
    note: Mapped[str | None]
    parcel_order_id: Mapped[int | None]
    weight: Mapped[int | None]


def test_job_classes_with_and_without_tables(shop: Engine) -> None:
    """A retried job is of the class of its type, with the row of its joined table."""
    with Session(shop) as session, session.begin():
        order = Order(invoiced=7)
        session.add(order)
        session.flush()
        session.add(SendInvoice(order=order, note="express"))
        session.add(PackParcel(parcel_order_id=order.id, weight=3, unique_key="parcel"))
    models: Any = {"job_model": ShopJob, "archived_job_model": FullArchive}
    run_all(shop, fail, queues=["default", "parcels"], **models)
    assert queued(shop, ShopJob) == []
    assert retry_where(shop, FullArchive.status == "failure", **models) == 2
    with Session(shop) as session:
        found = {type(job): job for job in session.scalars(select(ShopJob))}
        assert (found[SendInvoice].order.invoiced, found[SendInvoice].note) == (7, "express")
        assert (found[PackParcel].weight, found[PackParcel].unique_key) == (3, "parcel")
        assert found[PackParcel].parcel_order.invoiced == 7
    with Session(shop) as session:
        session.execute(update(FullArchive).values(retried_at=None))
        parcel = FullArchive.job_type == found[PackParcel].job_type
        assert manage.retry_where(session, parcel, **models) == 0  # its key is taken
        assert manage.retry_where(session, FullArchive.status == "failure", **models) == 1


@in_a_loop
async def test_in_asyncio(engine: Engine, loop_engine: AsyncEngine) -> None:
    """The awaitable variants do the same."""
    first, second = put(engine, "job", 1), put(engine, "job", 2)
    run_all(engine, fail)
    async with AsyncSession(loop_engine) as session, session.begin():
        assert await async_retry(session, first) is not None
        assert await async_retry_where(session, ArchivedJob.job_id == second) == 1
        assert await async_retry_where(session, ArchivedJob.status == "failure") == 0
    assert len(queued(engine)) == 2
