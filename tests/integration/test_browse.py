"""Lists of jobs with filters and pages, all about a job, and changes of recurring jobs."""

from __future__ import annotations

import json
from datetime import timedelta
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Job, QueueWorker, enqueue_many, manage, utcnow
from sqlalchemy_proletarian import asyncio as in_asyncio

from .kinds import LEASE
from .loops import in_a_loop
from .support import (
    MINUTE,
    ArchivedEmailJob,
    EmailJob,
    ManualClock,
    archived,
    fail,
    put,
    queued,
    run_all,
    succeed,
)

HOUR = timedelta(hours=1)


def page(engine: Engine, **options: Any) -> manage.JobPage:
    with Session(engine) as session:
        return manage.list_jobs(session, **options)


def whole(engine: Engine, **options: Any) -> list[manage.ListedJob]:
    """Return the jobs of all pages."""
    jobs: list[manage.ListedJob] = []
    after = None
    while True:
        found = page(engine, after=after, **options)
        jobs += found.jobs
        after = found.after
        if after is None:
            return jobs


def test_queued_jobs_in_the_order_of_claims(engine: Engine) -> None:
    """By queue, priority and time."""
    late = put(engine, "a", process_in=HOUR)
    urgent = put(engine, "b", priority=0)
    other = put(engine, "c", queue="a-queue")
    first = put(engine, "d")
    jobs = whole(engine)
    assert [job.job_id for job in jobs] == [other, urgent, first, late]
    assert [job.status for job in jobs] == ["due", "due", "due", "scheduled"]
    assert not any(job.is_archived for job in jobs)


@pytest.mark.parametrize("queue", [None, "q1"])
def test_pages_have_every_job_once(engine: Engine, queue: str | None) -> None:
    """Also if many rows have the same queue, priority and time."""
    with Session(engine) as session, session.begin():
        for name in ("q0", "q1"):
            enqueue_many(session, [("x", n) for n in range(25)], queue=name)
            enqueue_many(session, [("y", n) for n in range(5)], queue=name, priority=1)
    jobs = whole(engine, limit=4, queue=queue)
    assert len(jobs) == len({job.job_id for job in jobs}) == (60 if queue is None else 30)
    assert jobs == whole(engine, limit=100, queue=queue)


def test_archived_jobs_the_last_one_first(engine: Engine, clock: ManualClock) -> None:
    """Jobs that ended at the same time are in one order, too."""
    for _ in range(3):
        for n in range(5):
            put(engine, "job", n)
        run_all(engine, succeed)
    jobs = whole(engine, status="archived", limit=2)
    assert len({job.job_id for job in jobs}) == 15
    times = [job.finished_at for job in jobs]
    assert times == sorted(times, reverse=True)
    assert all(job.is_archived for job in jobs)


def test_filters(engine: Engine) -> None:
    """Queue, type, status and age select the jobs; the last line of an error is shown."""
    put(engine, "a", queue="mail")
    put(engine, "b", queue="mail")
    run_all(engine, fail, queues=["mail"])
    put(engine, "a")
    run_all(engine, succeed)
    put(engine, "a", process_in=HOUR)
    assert len(whole(engine, status=["success", "failure"])) == 3
    (failed,) = whole(engine, status="failure", job_type="a")
    assert (failed.queue, failed.attempts) == ("mail", 1)
    assert failed.error is not None
    assert "\n" not in failed.error
    assert [job.queue for job in whole(engine, status="archived", queue="default")] == ["default"]
    assert whole(engine, status="archived", older_than=MINUTE) == []
    assert len(whole(engine, status="archived", newer_than=MINUTE)) == 3
    later = lambda: utcnow() + HOUR  # noqa: E731
    assert len(whole(engine, status="archived", older_than=MINUTE, clock=later)) == 3
    assert len(whole(engine, older_than=MINUTE, clock=later)) == 1
    assert whole(engine, newer_than=MINUTE, clock=later) == []
    assert whole(engine, status="due") == []


@pytest.mark.parametrize("options", [{}, {"lease": LEASE}], ids=["transaction", "lease"])
def test_running_jobs(engine: Engine, options: dict[str, Any]) -> None:
    """A job that a worker has is running, and its page has the worker."""
    begun, end = Event(), Event()

    def handler(job_type: str, payload: Any) -> None:
        begun.set()
        end.wait(20)

    job_id = put(engine, "job")
    put(engine, "other", process_in=HOUR)
    with QueueWorker(engine, handler, name="me", **options):
        assert begun.wait(20)
        try:
            assert [job.job_id for job in whole(engine, status="running")] == [job_id]
            assert [job.status for job in whole(engine, status=["running", "scheduled"])] == [
                *("running", "scheduled")
            ]
            with Session(engine) as session:
                found = manage.get_job(session, job_id)
            assert found is not None
            assert found.running is not None
            assert (found.running.worker or "").startswith("me")
        finally:
            end.set()


def test_a_search_reads_a_bounded_number_of_rows(engine: Engine) -> None:
    """A page that is not full has an ``after``; the next one goes on behind what was read."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("common", n) for n in range(50)])
        enqueue_many(session, [("rare", None)], priority=6)
    first = page(engine, job_type="rare", max_rows=20)
    assert (list(first.jobs), first.after is None) == ([], False)
    assert len(whole(engine, job_type="rare", max_rows=20)) == 1
    assert len(whole(engine, job_type="common", max_rows=7, limit=3)) == 50


def test_a_page_of_a_large_archive_is_found_by_the_index(engine: Engine) -> None:
    """PostgreSQL neither sorts nor reads the whole archive."""
    rows = [
        {
            "job_id": uuid4(),
            "queue": f"q{n % 3}",
            "job_type": "x",
            "status": "success",
            "finished_at": utcnow() - timedelta(seconds=n),
        }
        for n in range(3000)
    ]
    with engine.begin() as connection:
        connection.execute(insert(ArchivedJob), rows)
        connection.execute(text("ANALYZE proletarian.archived_job"))
    first = page(engine, status="archived")
    assert len(first.jobs) == 50
    sent: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def keep(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "browsed" in statement:
            sent.append((statement, parameters))

    page(engine, status="archived", after=first.after)
    event.remove(engine, "before_cursor_execute", keep)
    ((statement, parameters),) = sent
    with engine.connect() as connection:
        lines = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars()
        plan = "\n".join(lines)
    assert "ix_archived_job_finished_at" in plan
    assert "Seq Scan" not in plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"status": "done"}, "no status 'done'"),
        ({"status": ["due", "success"]}, "make two calls"),
        ({"status": []}, "make two calls"),
        ({"limit": 0}, "limit"),
        ({"after": "?"}, "not a position"),
        ({"after": "W10"}, "not a position"),
        ({"older_than": timedelta(-1)}, "older_than"),
    ],
)
def test_wrong_arguments(engine: Engine, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        page(engine, **options)


def test_a_position_in_another_list(engine: Engine) -> None:
    """The ``after`` of an archive is rejected by a list of queued jobs."""
    for _ in range(2):
        put(engine, "job")
    run_all(engine, succeed)
    after = page(engine, status="archived", limit=1).after
    with pytest.raises(ValueError, match="not a position in this list"):
        page(engine, after=after)


def test_all_about_a_job(engine: Engine, clock: ManualClock) -> None:
    """Its payload, its error, and when it was retried; None for an unknown id."""
    job_id = put(engine, "job", {"a": 1}, unique_key="k")
    run_all(engine, fail)
    with Session(engine) as session, session.begin():
        new_id = manage.retry(session, job_id)
        found = manage.get_job(session, job_id)
        new = manage.get_job(session, new_id)
        assert manage.get_job(session, uuid4()) is None
    assert found is not None
    assert new is not None
    assert (found.job.status, found.job.unique_key, found.payload) == ("failure", "k", '{"a":1}')
    assert found.error is not None
    assert "Traceback" in found.error
    assert found.job.retried_at == new.job.enqueued_at
    assert (new.job.status, new.error, new.running, new.columns) == ("due", None, None, {})


def test_tables_of_your_own(shop: Engine) -> None:
    """The columns that the models add are in ``columns``."""
    models = {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob}
    job_id = put(shop, "mail", job_model=EmailJob, campaign="May")
    (job,) = whole(shop, **models)
    assert job.job_id == job_id
    with Session(shop) as session:
        found = manage.get_job(session, job_id, **models)
    assert found is not None
    assert found.columns == {"customer_id": None, "campaign": "May", "internal": None}
    run_all(shop, succeed, **models)
    with Session(shop) as session:
        found = manage.get_job(session, job_id, **models)
    assert found is not None
    assert found.columns["reviewed"] is False
    assert len(whole(shop, status="success", **models)) == 1


@in_a_loop
async def test_the_awaitable_variants(engine: Engine, loop_engine: AsyncEngine) -> None:
    job_id = put(engine, "job")
    async with AsyncSession(loop_engine) as session, session.begin():
        found = await in_asyncio.list_jobs(session, queue="default")
        assert [job.job_id for job in found.jobs] == [job_id]
        details = await in_asyncio.get_job(session, job_id)
        assert details is not None
        assert len(await in_asyncio.history(session, intervals=3)) == 3
        assert (await in_asyncio.failures(session)).groups == []
        await in_asyncio.schedule(session, "hourly", "x", every=HOUR)
        assert await in_asyncio.pause_schedule(session, "hourly")
        assert await in_asyncio.resume_schedule(session, "hourly")
        assert await in_asyncio.run_schedule(session, "hourly") is not None
    assert len(queued(engine)) == 2


def test_pause_resume_and_run_a_schedule(engine: Engine) -> None:
    """``run`` enqueues the stored payload, also while it is paused, and leaves the ticks."""
    with Session(engine) as session, session.begin():
        row = manage.schedule(session, "hourly", "x", {"a": "ü"}, every=HOUR, queue="q", priority=1)
        following = row.next_at
        assert manage.pause_schedule(session, "hourly") is True
        assert manage.pause_schedule(session, "hourly") is False
        assert row.paused is True
        job_id = manage.run_schedule(session, "hourly")
        assert manage.run_schedule(session, "hourly") not in (None, job_id)
        assert manage.resume_schedule(session, "hourly") is True
        assert manage.resume_schedule(session, "hourly") is False
        assert row.next_at == following
        for function in (manage.pause_schedule, manage.resume_schedule, manage.run_schedule):
            assert function(session, "other") is None
        job = session.scalars(select(Job).where(Job.job_id == job_id)).one()
        assert (job.job_type, job.queue, job.priority) == ("x", "q", 1)
        assert json.loads(job.payload) == {"a": "ü"}


def test_prune_reports_its_progress(engine: Engine) -> None:
    """After each batch, with the number of rows deleted so far."""
    for n in range(5):
        put(engine, "job", n)
    run_all(engine, succeed, batch_size=1)
    reached: list[int] = []
    left: list[int] = []

    def progress(deleted: int) -> None:
        reached.append(deleted)
        left.append(len(archived(engine)))

    now = timedelta(0)
    assert manage.prune(engine, older_than=now, batch_size=2, progress=progress) == 5
    assert reached[-1] == 5
    assert reached == sorted(reached)
    assert [5 - n for n in reached] == left


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intervals": 0}, "intervals"),
        ({"intervals": 201}, "intervals must be at most 200, not 201"),
        ({"window": timedelta(0)}, "window"),
    ],
)
def test_wrong_arguments_of_history(engine: Engine, options: Any, message: str) -> None:
    with Session(engine) as session, pytest.raises(ValueError, match=message):
        manage.history(session, **options)
