"""Workers with different registered job types on one queue, as in a rolling deployment."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import Engine, text, update
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    enqueue,
    enqueue_many,
    process_next_job,
    utcnow,
)
from sqlalchemy_proletarian.store import claim_filter

from .kinds import Kind, only
from .support import MINUTE, SECOND, Log, archived, eventually, put, queued

SOON = 1.0
"""Maximum delay in seconds of a job whose type a worker has registered."""


def handlers_for(
    job_type: str, handler: Callable[[Any], object] = lambda payload: None
) -> Handlers:
    handlers = Handlers()
    handlers(job_type)(handler)
    return handlers


def test_a_job_of_a_new_type_runs_at_once(engine: Engine, kind: Kind) -> None:
    """A job runs immediately even if its notification also wakes workers without its handler."""
    started_at: dict[int, float] = {}
    enqueued_at: dict[int, float] = {}
    log = Log()
    old = handlers_for("old")
    new = handlers_for("new", lambda payload: started_at.setdefault(payload, monotonic()))
    with (
        kind.worker(engine, old, log=log),
        kind.worker(engine, new),
        kind.worker(engine, old, log=log),
    ):
        sleep(0.3)
        for n in range(20):
            enqueued_at[n] = monotonic()
            put(engine, "new", n)
            sleep(0.05)
        eventually(lambda: len(started_at) == 20)
    delays = sorted(started_at[n] - enqueued_at[n] for n in started_at)
    assert delays[-1] < SOON, delays
    assert {(job.status, job.attempts) for job in archived(engine)} == {("success", 1)}
    assert log.events().count("job-type-unknown") <= 2  # once for each old worker


@only(Kind(), Kind(leased=True), Kind("asyncpg"))
def test_many_jobs_of_unknown_types_delay_no_other_job(engine: Engine, kind: Kind) -> None:
    """Thousands of jobs of unknown types delay no other job; each type is logged once."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [(f"other-{n % 2}", n) for n in range(20_000)])
        enqueue(session, "mine", 0)
    ran = Event()
    log = Log()
    with kind.worker(engine, handlers_for("mine", lambda payload: ran.set()), log=log):
        assert ran.wait(10)
        for _ in range(5):
            ran.clear()
            before = monotonic()
            put(engine, "mine")
            assert ran.wait(10)
            assert monotonic() - before < 2 * SOON
        eventually(lambda: log.events().count("job-type-unknown") == 2)
    logged = {(data["job_type"], data["jobs"]) for data in log.data("job-type-unknown")}
    assert {job_type for job_type, _ in logged} == {"other-0", "other-1"}
    assert sum(jobs for _, jobs in logged) == claim_filter.MAX_COUNTED
    assert {job.job_type for job in archived(engine)} == {"mine"}
    with engine.connect() as connection:
        unchanged = "SELECT count(*) FROM proletarian.job WHERE attempts = 0 AND process_at < now()"
        assert connection.scalar(text(unchanged)) == 20_000


@only(Kind(), Kind(leased=True))
def test_a_worker_finds_jobs_due_before_those_of_unknown_types(
    engine: Engine, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that skips jobs of unknown types still finds due jobs that sort before them."""
    monkeypatch.setattr(claim_filter, "SLOW", 0.0)
    monkeypatch.setattr(claim_filter, "saves_time", lambda *_: True)
    monkeypatch.setattr(claim_filter, "START_LASTS", 1.0)
    put(engine, "other")
    ran: list[Any] = []
    with kind.worker(engine, handlers_for("mine", ran.append), polling_interval=SECOND / 5):
        put(engine, "mine", 1)
        eventually(lambda: ran == [1])
        put(engine, "mine", 2)
        eventually(lambda: ran == [1, 2])
        with Session(engine) as session, session.begin():
            job = enqueue(session, "mine", 3, process_in=MINUTE)
            session.flush()
            long_ago = utcnow() - MINUTE
            session.execute(update(Job).where(Job.job_id == job.job_id).values(process_at=long_ago))
        eventually(lambda: ran == [1, 2, 3])
    assert [job.job_type for job in queued(engine)] == ["other"]


@only(Kind(), Kind(leased=True))
def test_a_slow_claim_does_not_hide_a_job_that_is_due_since_ever(
    engine: Engine, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job at ``-infinity`` runs at once, even if the worker skips jobs of unknown types."""
    monkeypatch.setattr(claim_filter, "SLOW", 0.0)
    monkeypatch.setattr(claim_filter, "saves_time", lambda *_: True)
    put(engine, "other")
    for n in range(3):
        put(engine, "mine", n)
    with engine.begin() as connection:
        set_time = "UPDATE proletarian.job SET process_at = '-infinity' WHERE job_type = 'mine'"
        connection.execute(text(set_time))
    handlers = handlers_for("mine", lambda payload: None)
    options: dict[str, Any] = {} if kind.leased else {"batch_size": 1}
    assert kind.run_all(engine, handlers, **options) == 3
    assert [job.job_type for job in queued(engine)] == ["other"]


def test_an_ended_job_needs_no_handler(engine: Engine, kind: Kind) -> None:
    """Any worker archives an ended job that the archive rejected before."""
    put(engine, "gone")
    with engine.begin() as connection:
        connection.execute(update(Job).values(ended_as="failure", ended_at=utcnow(), attempts=1))
    kind.run_all(engine, handlers_for("other"))
    assert [(job.status, job.attempts) for job in archived(engine)] == [("failure", 1)]


def test_process_next_job_skips_unknown_types(engine: Engine) -> None:
    """It runs the next job with a registered handler, and returns None if there is none."""
    put(engine, "other")
    put(engine, "mine")
    with Session(engine) as session:
        assert process_next_job(session, handlers_for("mine")) is True
        assert process_next_job(session, handlers_for("mine")) is None
        assert process_next_job(session, handlers_for("other")) is True
