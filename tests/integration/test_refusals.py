"""Jobs that the archive rejects, in transaction mode and in lease mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text, update
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchiveRefusedError,
    Discard,
    Handlers,
    Job,
    JobCancelledError,
    RunningJob,
    enqueue,
    enqueue_many,
    process_next_job,
    utcnow,
)

from .kinds import Kind
from .support import (
    MINUTE,
    Log,
    Note,
    archived,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    succeed,
)


@contextmanager
def rejecting_archive(engine: Engine, condition: str) -> Iterator[Callable[[], None]]:
    """Make the archive reject rows that violate a condition; yield a function to repair it."""
    repair_statement = "ALTER TABLE proletarian.archived_job DROP CONSTRAINT IF EXISTS strict"

    def repair() -> None:
        with engine.begin() as connection:
            connection.execute(text(repair_statement))

    with engine.begin() as connection:
        connection.execute(
            text(f"ALTER TABLE proletarian.archived_job ADD CONSTRAINT strict CHECK ({condition})")
        )
    try:
        yield repair
    finally:
        repair()


def make_due(engine: Engine) -> None:
    """Make queued jobs due, as if time had passed."""
    with engine.begin() as connection:
        job, now = Job.__table__, utcnow()
        ended_at = job.c.ended_at - (job.c.process_at - now)
        connection.execute(update(job).values(process_at=now, ended_at=ended_at))


def writing_handlers(ran: list[Any], retries: int = 1) -> Handlers:
    """Return a handler with a session, one without, and one that fails."""
    handlers = Handlers()

    @handlers("write", retry={"retries": retries})
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text=str(payload)))
        ran.append(payload)

    handlers("send", retry={"retries": retries})(ran.append)

    @handlers("fail", retry={"retries": retries})
    def fail(payload: Any) -> None:
        ran.append(payload)
        raise ValueError(f"no luck with {payload}")

    return handlers


@pytest.mark.parametrize("job_type", ["write", "send"])
def test_a_rejected_success_is_a_failed_attempt(shop: Engine, kind: Kind, job_type: str) -> None:
    """A rejected success is a failed attempt: it is rolled back and retried."""
    ran: list[Any] = []
    put(shop, job_type, "a")
    log = Log()
    with rejecting_archive(shop, "status <> 'success'"):
        kind.run_all(shop, writing_handlers(ran, retries=2), log=log)
    job = only_archived(shop)
    assert (job.status, job.attempts, ran) == ("failure", 3, ["a"] * 3)
    assert "strict" in job.error
    assert log.events().count("handle-job-exception") == 3
    assert {"archive-refused", "polling-error"}.isdisjoint(log.events())
    assert not notes(shop) and not queued(shop) and not rows(shop, RunningJob)


@pytest.mark.parametrize("job_type", ["write", "fail"])
def test_a_rejected_failure_never_runs_again(shop: Engine, kind: Kind, job_type: str) -> None:
    """A failed job that cannot be archived never runs again; each time the delay doubles."""
    ran: list[Any] = []
    failed: list[tuple[Any, Exception]] = []
    options: dict[str, Any] = {"on_failed": lambda *failure: failed.append(failure)}
    put(shop, job_type, "a")
    log = Log()
    with rejecting_archive(shop, "false") as repair:
        kind.run_all(shop, writing_handlers(ran), log=log, **options)
        before = list(ran)
        assert log.events().count("handle-job-exception") == 2
        for minutes in (1, 2):
            job = only_queued(shop)
            pause = job.process_at - utcnow()
            assert abs(pause - timedelta(minutes=minutes)) < MINUTE / 2
            assert (job.attempts, job.ended_as) == (2, "failure")
            assert "strict" in job.refusal
            assert "no luck with a" in job.error or job_type == "write"
            make_due(shop)
            kind.run_all(shop, writing_handlers(ran), log=log, **options)
        assert log.events().count("archive-refused") == 3
        assert isinstance(log.data("archive-refused")[-1]["error"], ArchiveRefusedError)
        assert "polling-error" not in log.events()
        assert not failed and not archived(shop)
        pause = only_queued(shop).process_at - utcnow()
        assert abs(pause - timedelta(minutes=4)) < MINUTE / 2
        repair()
        make_due(shop)
        assert kind.run_all(shop, writing_handlers(ran), log=log, **options) == 1
    job = only_archived(shop)
    assert (job.status, job.attempts) == ("failure", 2)
    assert job.error.startswith("Traceback")
    assert ("no luck with a" if job_type == "fail" else "strict") in job.error
    assert ran == before, "its handler has run again"
    ((row, error),) = failed
    assert row.job_id == job.job_id
    assert isinstance(error, ArchiveRefusedError)
    assert not queued(shop) and not rows(shop, RunningJob)


def test_a_rejected_job_does_not_affect_others(shop: Engine, kind: Kind) -> None:
    """After its first rejection, a job no longer makes other jobs of its batch run twice."""
    ran: list[Any] = []
    with Session(shop) as session, session.begin():
        enqueue_many(session, [("write", n) for n in range(5)])
        enqueue(session, "fail", "bad")
    with rejecting_archive(shop, "job_type <> 'fail'"):
        kind.run_batch(shop, writing_handlers(ran, retries=0))
        assert only_queued(shop).job_type == "fail"
        ran.clear()
        log = Log()
        with Session(shop) as session, session.begin():
            enqueue_many(session, [("write", n) for n in range(5, 10)])
        make_due(shop)
        kind.run_batch(shop, writing_handlers(ran, retries=0), log=log)
        assert sorted(ran) == list(range(5, 10))
        assert {"batch-undone", "polling-error"}.isdisjoint(log.events())
        assert only_queued(shop).job_type == "fail"
    assert sorted(notes(shop)) == [str(n) for n in range(10)]


def test_rejected_discarded_and_cancelled_jobs(shop: Engine, kind: Kind) -> None:
    """A discarded or cancelled job never runs again, and is archived with its status."""
    ran: list[Any] = []
    handlers = Handlers(retry={"retries": 5})

    @handlers("discard")
    def discard(payload: Any) -> None:
        ran.append(payload)
        raise Discard("not wanted")

    @handlers("cancel")
    def cancel(payload: Any) -> None:
        ran.append(payload)
        raise JobCancelledError("not needed")

    put(shop, "discard")
    put(shop, "cancel")
    with rejecting_archive(shop, "false") as repair:
        kind.run_all(shop, handlers)
        before = list(ran)
        assert len(queued(shop)) == 2
        repair()
        make_due(shop)
        kind.run_all(shop, handlers)
    assert ran == before
    ended = {job.job_type: (job.status, job.attempts) for job in archived(shop)}
    assert ended == {"discard": ("failure", 1), "cancel": ("cancelled", 1)}


def test_format_error_applies_to_archive_errors(shop: Engine, kind: Kind) -> None:
    """``format_error`` also applies to the error of the archive."""
    put(shop, "fail", "a secret")
    options: dict[str, Any] = {"format_error": lambda error: None}
    with rejecting_archive(shop, "false") as repair:
        kind.run_all(shop, writing_handlers([], retries=0), **options)
        job = only_queued(shop)
        assert (job.error, job.refusal, job.ended_as) == ("", "", "failure")
        repair()
        make_due(shop)
        kind.run_all(shop, writing_handlers([]), **options)
    assert only_archived(shop).error is None


def test_process_next_job_archives_a_rejected_job(shop: Engine) -> None:
    """``process_next_job`` archives a job that was rejected before, and returns True."""
    put(shop, "fail", "a")
    ran: list[Any] = []
    with rejecting_archive(shop, "false"):
        Kind().run_all(shop, writing_handlers(ran, retries=0))
    before = list(ran)
    make_due(shop)
    with Session(shop) as session:
        assert process_next_job(session, writing_handlers(ran)) is True
        assert process_next_job(session, writing_handlers(ran)) is None
    assert only_archived(shop).attempts == 1
    assert ran == before


def test_a_value_too_long_for_the_archive(shop: Engine, kind: Kind) -> None:
    """A value too long for an archive column is handled like a violated constraint."""
    put(shop, "long")
    put(shop, "short")
    narrow = "ALTER TABLE proletarian.archived_job ALTER COLUMN job_type TYPE {}"
    with shop.begin() as connection:
        connection.execute(text(narrow.format("varchar(5) USING job_type::varchar(5)")))
    put(shop, "too long")
    kind.run_all(shop, succeed)
    assert {job.job_type for job in rows(shop, ArchivedJob)} == {"long", "short"}
    assert only_queued(shop).job_type == "too long"
    with shop.begin() as connection:
        connection.execute(text(narrow.format("text")))
    make_due(shop)
    kind.run_all(shop, succeed)
    assert len(archived(shop)) == 3 and not queued(shop)
