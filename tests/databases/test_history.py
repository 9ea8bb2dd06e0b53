"""What has ended, on every database: counts over time, groups of failures, texts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, JobCancelledError, enqueue_many, manage, utcnow
from tests.integration.support import put

from .places import Place

MINUTE = timedelta(minutes=1)


def handler(job_type: str, payload: Any) -> None:
    if job_type == "cancel":
        raise JobCancelledError
    if job_type == "mail":
        start = f"server {payload} did not answer {'x' * 2000}"
        msg = f"{start}\nGrüße 😀 at 0x{payload:x} after {payload} s"
        raise TimeoutError(msg)
    if job_type == "silent":
        raise ValueError


def finish(engine: Engine, ago: timedelta, *job_types: str) -> None:
    """Let the archived jobs of these types have ended at another time."""
    with Session(engine) as session, session.begin():
        change = update(ArchivedJob).where(ArchivedJob.job_type.in_(job_types))
        session.execute(change.values(finished_at=utcnow() - ago))


def test_jobs_are_counted_by_the_time_when_they_ended(producer: Place, engine: Engine) -> None:
    for job_type, count in (("ok", 3), ("mail", 2), ("cancel", 1)):
        for n in range(count):
            put(engine, job_type, n)
    put(engine, "ok", queue="other")
    producer.run_all(engine, handler, queues=["default", "other"])
    finish(engine, 5 * MINUTE, "mail")
    finish(engine, 2 * timedelta(hours=1), "cancel")
    with Session(engine) as session:
        intervals = manage.history(session, window=10 * MINUTE, intervals=10)
        assert [one.end - one.begin for one in intervals] == [MINUTE] * 10
        assert all(one.complete for one in intervals)
        assert [(one.succeeded, one.failed, one.cancelled) for one in intervals] == [
            *[(0, 0, 0)] * 4,
            (0, 2, 0),
            *[(0, 0, 0)] * 4,
            (4, 0, 0),
        ]
        (one,) = manage.history(session, window=10 * MINUTE, intervals=1, queue="other")
        assert (one.succeeded, one.failed) == (1, 0)


def test_failures_that_are_alike_are_a_group(producer: Place, engine: Engine) -> None:
    """Their last lines differ in numbers only. Retried and earlier failures are left out."""
    ids = [put(engine, "mail", n) for n in (1, 22, 333)]
    silent = put(engine, "silent")
    put(engine, "ok")
    producer.run_all(engine, handler)
    with Session(engine) as session, session.begin():
        assert manage.retry(session, ids[0]) is not None
        found = manage.failures(session)
    assert [(group.job_type, len(group.job_ids)) for group in found.groups] == [
        ("mail", 2),
        ("silent", 1),
    ]
    mails = found.groups[0]
    assert set(mails.job_ids) == set(ids[1:])
    assert mails.error in ("Grüße 😀 at 0x16 after 22 s", "Grüße 😀 at 0x14d after 333 s")
    assert mails.queues == {"default"}
    assert mails.first <= mails.last
    assert list(found.groups[1].job_ids) == [silent]
    finish(engine, timedelta(days=2), "mail")
    with Session(engine) as session:
        assert [group.job_type for group in manage.failures(session).groups] == ["silent"]
        assert len(manage.failures(session, window=timedelta(days=7)).groups) == 2
        assert len(manage.failures(session, max_rows=1).groups) == 1


def test_texts_are_searched(producer: Place, engine: Engine) -> None:
    """In payloads and errors, in upper or lower case; % and _ are no wildcards."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("ok", {"to": "Ada_1@example.com"}), ("ok", {"to": "Adab1@x"})])
        enqueue_many(session, [("mail", 1), ("mail", 2)])
    found: Any
    with Session(engine) as session:
        found = manage.list_jobs(session, text="ada_1@EXAMPLE")
        assert [job.job_type for job in found.jobs] == ["ok"]
        assert manage.list_jobs(session, text="100%").jobs == []
    producer.run_all(engine, handler)
    with Session(engine) as session:
        found = manage.list_jobs(session, status="archived", text="SERVER 2 did")
        assert [job.job_type for job in found.jobs] == ["mail"]
