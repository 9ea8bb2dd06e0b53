"""The functions of ``manage`` on every database."""

from __future__ import annotations

from datetime import timedelta
from time import sleep
from typing import Any

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, PausedQueue, manage, utcnow
from tests.integration.support import (
    archived,
    eventually,
    fail,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    succeed,
)

from .places import Place


def committed(engine: Engine, function: Any, *args: Any, **options: Any) -> Any:
    """Call a function of ``manage`` in a transaction of its own."""
    with Session(engine) as session, session.begin():
        return function(session, *args, **options)


def test_pause_and_resume(place: Place, engine: Engine) -> None:
    """A worker sees within a second that a queue is paused and resumed, however rarely it polls."""
    assert committed(engine, manage.pause, "default", reason="Grüße 😀", paused_by="Ada")
    assert not committed(engine, manage.pause, "default")
    assert committed(engine, manage.pause, "DEFAULT")
    (first, second) = sorted(rows(engine, PausedQueue), key=lambda row: row.queue)
    assert (first.queue, second.queue, second.reason) == ("DEFAULT", "default", "Grüße 😀")
    put(engine, "job")
    with place.worker(engine, succeed, polling_interval=timedelta(minutes=1)):
        sleep(0.3)
        assert len(queued(engine)) == 1
        assert committed(engine, manage.resume, "default")
        eventually(lambda: len(archived(engine)) == 1)
        assert committed(engine, manage.pause, "default")
        sleep(1)
        put(engine, "job")
        sleep(0.5)
        assert len(queued(engine)) == 1
    assert not committed(engine, manage.resume, "other")


def test_retry(producer: Place, engine: Engine) -> None:
    """Archived jobs are enqueued again once, with their payload; a taken key prevents it."""
    keyed = put(engine, "job", "Grüße 😀", unique_key="key", priority=3)
    for n in range(3):
        put(engine, "job", n)
    producer.run_all(engine, fail)
    new_id = committed(engine, manage.retry, keyed)
    job = only_queued(engine)
    assert (job.job_id, job.payload, job.priority) == (new_id, '"Grüße 😀"', 3)
    assert (job.unique_key, job.attempts, job.error) == ("key", 0, None)
    assert committed(engine, manage.retry, keyed) is None
    put(engine, "job", "other", unique_key="other")
    producer.run_all(engine, fail)
    put(engine, "job", unique_key="other")
    failed = ArchivedJob.status == "failure"
    # The three without a key, and the second run of the first one.
    assert committed(engine, manage.retry_where, failed) == 4
    assert committed(engine, manage.retry_where, failed) == 0
    assert producer.run_all(engine, succeed) == 5


def test_reschedule_and_discard(place: Place, engine: Engine) -> None:
    """Jobs that wait change; a job that a worker has does not, and the call does not wait."""
    hour = timedelta(hours=1)
    job_id = put(engine, "job")
    assert committed(engine, manage.reschedule, job_id, process_in=hour) == "rescheduled"
    assert only_queued(engine).process_at > utcnow() + hour - timedelta(minutes=1)
    assert place.run_all(engine, succeed) == 0
    assert committed(engine, manage.discard, job_id, reason="not needed") == "discarded"
    assert committed(engine, manage.discard, job_id) is None
    job = only_archived(engine)
    assert (job.status, job.error, job.attempts) == ("failure", "not needed", 0)
    answers: list[Any] = []

    def handler(job_type: str, payload: Any) -> None:
        (job,) = queued(engine)
        answers.append(committed(engine, manage.reschedule, job.job_id, process_in=hour))
        answers.append(committed(engine, manage.discard, job.job_id))

    put(engine, "job")
    place.run_all(engine, handler)
    assert answers == ["running", "running"]
    assert sorted(job.status for job in archived(engine)) == ["failure", "success"]


def test_prune(producer: Place, engine: Engine) -> None:
    """Old jobs are deleted in batches, by an engine or in a session; rows that are locked stay."""
    for n in range(10):
        put(engine, "job", n)
    producer.run_all(engine, fail)
    for n in range(5):
        put(engine, "job", n)
    producer.run_all(engine, succeed)
    now = timedelta(0)
    with Session(engine) as session:
        assert manage.prune(session, older_than=now, batch_size=4) == 15
        session.rollback()
    assert manage.prune(engine, older_than=timedelta(hours=1)) == 0
    assert manage.prune(engine, older_than=now, status="success", batch_size=2) == 5
    if producer.server != "sqlite":  # which has no row locks
        locked = select(ArchivedJob.job_id).limit(3).with_for_update()
        with Session(engine) as session:
            session.execute(locked)
            assert manage.prune(engine, older_than=now, batch_size=2) == 7
    assert manage.prune(engine, older_than=now, status={"failure", "cancelled"}) in {3, 10}
    assert archived(engine) == []


def test_a_worker_prunes(place: Place, engine: Engine) -> None:
    """In the background, beside the jobs that it runs."""
    for n in range(3):
        put(engine, "job", n)
    place.run_all(engine, succeed)
    with engine.begin() as connection:
        old = utcnow() - timedelta(days=8)
        connection.execute(update(ArchivedJob.__table__).values(finished_at=old))
    with place.worker(engine, succeed, archive_retention={"success": timedelta(days=7)}):
        put(engine, "job", "new")
        eventually(lambda: [job.payload for job in archived(engine)] == ['"new"'])


def test_list_jobs(producer: Place, engine: Engine) -> None:
    """Pages of queued and archived jobs have every job once, with filters and small windows."""
    for n in range(7):
        put(engine, "job", n, queue=f"Grüße{n % 2}", priority=n % 3)
    for n in range(3):
        put(engine, "other", n)

    def whole(**options: Any) -> list[manage.ListedJob]:
        jobs: list[manage.ListedJob] = []
        after = None
        while True:
            page = committed(engine, manage.list_jobs, after=after, **options)
            jobs += page.jobs
            after = page.after
            if after is None:
                return jobs

    in_order = [(job.queue, job.priority, job.process_at) for job in whole(limit=2)]
    assert in_order == sorted(in_order)
    assert len({job.job_id for job in whole(limit=3)}) == 10
    assert len(whole(limit=1, queue="Grüße0")) == 4
    assert len(whole(job_type="other", max_rows=2)) == 3
    assert whole(status="running") == []
    assert len(whole(status="due", newer_than=timedelta(hours=1))) == 10
    producer.run_all(engine, fail, queues=["Grüße0", "Grüße1", "default"])
    jobs = whole(status="failure", limit=3)
    assert len({job.job_id for job in jobs}) == 10
    assert len(whole(status="archived", job_type="other", max_rows=2, limit=1)) == 3
    found = committed(engine, manage.get_job, jobs[0].job_id)
    assert (found.job, found.columns) == (jobs[0], {})
    assert committed(engine, manage.retry, jobs[0].job_id) is not None
    with Session(engine) as session, session.begin():
        manage.schedule(session, "daily", "job", "Grüße 😀", every=timedelta(days=1))
        assert manage.pause_schedule(session, "daily") is True
        assert manage.run_schedule(session, "daily") is not None
        assert manage.resume_schedule(session, "daily") is True
        assert manage.unschedule(session, "daily")


def test_stats_and_running(place: Place, engine: Engine) -> None:
    """The numbers of each queue and type, and the jobs that workers have, with their workers."""
    put(engine, "job", queue="mail", process_in=timedelta(hours=1))
    put(engine, "job")
    put(engine, "Job")
    found: list[tuple[manage.Stats, list[manage.Running]]] = []

    def handler(job_type: str, payload: Any) -> None:
        with Session(engine) as session:
            found.append((manage.stats(session), manage.running(session)))
        raise ValueError

    options: dict[str, Any] = {"batch_size": 1, "name": "alpha"}
    with place.worker(engine, handler, **options):
        eventually(lambda: len(archived(engine)) == 2)
    stats, running = found[1]
    queue = stats.queues["default"]
    assert (queue.due, queue.running, queue.failed) == (0, 1, 1)
    assert stats.queues["mail"].scheduled == 1
    (job,) = running
    assert (job.queue, job.attempt) == ("default", 1)
    assert (job.lease_until is not None) == place.leased
    if place.server in {"sqlite", "portable"}:  # without running markers
        assert (job.worker, job.alive) == (None, None)
    else:
        assert job.worker is not None and job.worker.startswith("alpha")
        assert (job.alive, job.batch_size) == (True, 1)
    with Session(engine) as session:
        after = manage.stats(session)
        assert manage.running(session) == []
    assert after.queues["default"].failed == 2
    assert {counts.job_type for counts in after.job_types} == {"job", "Job"}
