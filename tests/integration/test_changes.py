"""Rescheduling and discarding jobs that wait."""

from __future__ import annotations

from datetime import timedelta
from threading import Event
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, enqueue, manage, utcnow, uuid7
from sqlalchemy_proletarian.asyncio import discard as async_discard
from sqlalchemy_proletarian.asyncio import reschedule as async_reschedule

from .kinds import Kind
from .loops import in_a_loop
from .support import (
    MINUTE,
    SECOND,
    ArchivedEmailJob,
    EmailJob,
    ManualClock,
    archived,
    eventually,
    fail,
    only_archived,
    only_queued,
    put,
    queued,
    run_all,
    succeed,
)

HOUR = timedelta(hours=1)


def reschedule(engine: Engine, job: Any, **options: Any) -> Any:
    with Session(engine) as session, session.begin():
        return manage.reschedule(session, job, **options)


def discard(engine: Engine, job: Any, **options: Any) -> Any:
    with Session(engine) as session, session.begin():
        return manage.discard(session, job, **options)


def test_a_waiting_job_is_rescheduled(engine: Engine, clock: ManualClock) -> None:
    """Later, earlier, or now; its attempts stay."""
    job_id = put(engine, "job", clock=clock)
    run_all(engine, fail, retry_strategy={"retries": 1, "delays": [60_000]}, clock=clock)
    assert reschedule(engine, job_id, process_in=HOUR, clock=clock) == "rescheduled"
    assert only_queued(engine).process_at == clock.now + HOUR
    at = clock.now + 2 * HOUR
    assert reschedule(engine, job_id, process_at=at, process_in=HOUR, clock=clock) == "rescheduled"
    assert only_queued(engine).process_at == at
    assert reschedule(engine, job_id, process_at=clock.now - HOUR, clock=clock) == "rescheduled"
    job = only_queued(engine)
    assert (job.process_at, job.attempts) == (clock.now, 1)
    assert reschedule(engine, uuid4(), process_in=HOUR) is None
    run_all(engine, succeed, clock=clock)
    assert reschedule(engine, job_id, process_in=HOUR) is None


def test_an_object_is_up_to_date(engine: Engine) -> None:
    """Pending objects are flushed first, and the object has the new time."""
    with Session(engine) as session, session.begin():
        job = enqueue(session, "job")
        assert manage.reschedule(session, job, process_in=HOUR) == "rescheduled"
        assert job.process_at > utcnow() + 59 * MINUTE
    assert only_queued(engine).process_at > utcnow() + 59 * MINUTE


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({}, "process_at or process_in"),
        ({"process_in": 60}, "must be a timedelta"),
        ({"process_at": utcnow().replace(tzinfo=None)}, "naive"),
    ],
)
def test_times_are_checked(session: Session, times: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        manage.reschedule(session, uuid4(), **times)


def test_a_rollback_undoes_both(engine: Engine) -> None:
    job_id = put(engine, "job")
    before = only_queued(engine)
    with Session(engine) as session:
        manage.reschedule(session, job_id, process_in=HOUR)
        assert manage.discard(session, job_id) == "discarded"
        session.rollback()
    assert only_queued(engine).process_at == before.process_at
    assert archived(engine) == []


def test_an_idle_worker_runs_a_job_that_is_rescheduled_to_now(engine: Engine, kind: Kind) -> None:
    job_id = put(engine, "job", process_in=HOUR)
    with kind.worker(engine, succeed, polling_interval=MINUTE):
        assert reschedule(engine, job_id, process_in=timedelta(0)) == "rescheduled"
        eventually(lambda: len(archived(engine)) == 1)


def test_a_discarded_job_is_a_failure(engine: Engine, clock: ManualClock) -> None:
    """It never runs again, keeps its attempts and can be retried."""
    job_id = put(engine, "job", unique_key="key", clock=clock)
    assert discard(engine, job_id, reason="the account is closed", clock=clock) == "discarded"
    job = only_archived(engine)
    assert (job.status, job.error, job.attempts) == ("failure", "the account is closed", 0)
    assert (job.job_id, job.finished_at) == (job_id, clock.now)
    assert discard(engine, job_id) is None
    assert run_all(engine, succeed) == 0
    with Session(engine) as session, session.begin():
        assert manage.retry(session, job_id) is not None


def test_a_custom_model(shop: Engine) -> None:
    """The model of an object is that of its table; an id needs ``job_model``."""
    with Session(shop) as session, session.begin():
        job = enqueue(session, "mail", job_model=EmailJob, campaign="spring")
        assert manage.reschedule(session, job, process_in=HOUR) == "rescheduled"
        assert manage.reschedule(session, job.job_id, process_in=HOUR) is None
        assert manage.discard(session, job, archived_job_model=ArchivedEmailJob) == "discarded"
    assert only_archived(shop, ArchivedEmailJob).campaign == "spring"


def test_a_running_job_does_not_change(engine: Engine, kind: Kind) -> None:
    """The calls say so, and do not wait for the handler."""
    begun, release = Event(), Event()
    handlers = Handlers()

    @handlers("job")
    def job(payload: Any) -> None:
        begun.set()
        assert release.wait(20)

    job_id = put(engine, "job")
    with kind.worker(engine, handlers):
        assert begun.wait(20)
        started = monotonic()
        assert reschedule(engine, job_id, process_in=HOUR) == "running"
        assert discard(engine, job_id) == "running"
        assert monotonic() - started < 10
        assert archived(engine) == []
        release.set()
        eventually(lambda: archived(engine))
    job_row = only_archived(engine)
    assert (job_row.status, job_row.attempts) == ("success", 1)


@pytest.mark.parametrize("function", [reschedule, discard])
def test_a_job_whose_lease_has_expired(engine: Engine, function: Any) -> None:
    """Its worker has crashed, or has lost the lease and cannot complete it any more."""
    job_id = put(engine, "job")
    with engine.begin() as connection:
        values = {"lease_id": uuid7(), "process_at": utcnow() - SECOND}
        connection.execute(update(Job.__table__).values(values))
    options = {"process_in": HOUR} if function is reschedule else {}
    assert function(engine, job_id, **options) in {"rescheduled", "discarded"}
    assert [job.lease_id for job in queued(engine)] == ([None] if options else [])


@in_a_loop
async def test_in_asyncio(engine: Engine, loop_engine: AsyncEngine) -> None:
    """The awaitable variants do the same."""
    first, second = put(engine, "job"), put(engine, "job")
    async with AsyncSession(loop_engine) as session, session.begin():
        assert await async_reschedule(session, first, process_in=HOUR) == "rescheduled"
        assert await async_discard(session, second, reason="in a loop") == "discarded"
    assert only_queued(engine).process_at > utcnow() + 59 * MINUTE
    assert only_archived(engine).error == "in a loop"
