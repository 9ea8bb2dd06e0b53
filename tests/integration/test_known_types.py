"""Workers that do not know each other's types on one queue, as in a rolling deploy."""

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
"""Seconds within which a job runs that some worker knows."""


def knows(job_type: str, handler: Callable[[Any], object] = lambda payload: None) -> Handlers:
    handlers = Handlers()
    handlers(job_type)(handler)
    return handlers


def test_a_new_type_runs_at_once(engine: Engine, kind: Kind) -> None:
    """A job runs at once, though a worker that does not know its type is woken for it, too."""
    begun: dict[int, float] = {}
    put_at: dict[int, float] = {}
    log = Log()
    old = knows("old")
    new = knows("new", lambda payload: begun.setdefault(payload, monotonic()))
    with (
        kind.worker(engine, old, log=log),
        kind.worker(engine, new),
        kind.worker(engine, old, log=log),
    ):
        sleep(0.3)
        for n in range(20):
            put_at[n] = monotonic()
            put(engine, "new", n)
            sleep(0.05)
        eventually(lambda: len(begun) == 20)
    waited = sorted(begun[n] - put_at[n] for n in begun)
    assert waited[-1] < SOON, waited
    assert {(job.status, job.attempts) for job in archived(engine)} == {("success", 1)}
    assert log.events().count("job-type-unknown") <= 2  # once for each old worker


@only(Kind(), Kind(leased=True), Kind("asyncpg"))
def test_many_jobs_of_other_types(engine: Engine, kind: Kind) -> None:
    """Jobs behind thousands that nobody knows run promptly, and each unknown type is told once."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [(f"other-{n % 2}", n) for n in range(20_000)])
        enqueue(session, "mine", 0)
    ran = Event()
    log = Log()
    with kind.worker(engine, knows("mine", lambda payload: ran.set()), log=log):
        assert ran.wait(10)
        for _ in range(5):
            ran.clear()
            before = monotonic()
            put(engine, "mine")
            assert ran.wait(10)
            assert monotonic() - before < 2 * SOON
        eventually(lambda: log.events().count("job-type-unknown") == 2)
    told = {(data["job_type"], data["jobs"]) for data in log.data("job-type-unknown")}
    assert {job_type for job_type, _ in told} == {"other-0", "other-1"}
    assert sum(jobs for _, jobs in told) == claim_filter.MAX_COUNTED
    assert {job.job_type for job in archived(engine)} == {"mine"}
    with engine.connect() as connection:
        untouched = "SELECT count(*) FROM proletarian.job WHERE attempts = 0 AND process_at < now()"
        assert connection.scalar(text(untouched)) == 20_000


@only(Kind(), Kind(leased=True))
def test_starting_behind_the_unknown(
    engine: Engine, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that starts behind jobs it does not know finds what comes back before them."""
    monkeypatch.setattr(claim_filter, "SLOW", 0.0)
    monkeypatch.setattr(claim_filter, "START_LASTS", 1.0)
    put(engine, "other")
    ran: list[Any] = []
    with kind.worker(engine, knows("mine", ran.append), polling_interval=SECOND / 5):
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


def test_an_ended_job_needs_no_handler(engine: Engine, kind: Kind) -> None:
    """A job that has ended, and that the archive refused, is archived by any worker."""
    put(engine, "gone")
    with engine.begin() as connection:
        connection.execute(update(Job).values(ended_as="failure", ended_at=utcnow(), attempts=1))
    kind.run_all(engine, knows("other"))
    assert [(job.status, job.attempts) for job in archived(engine)] == [("failure", 1)]


def test_process_next_job_passes_over_unknown_types(engine: Engine) -> None:
    """It runs the next job that it knows, and says None where there is none."""
    put(engine, "other")
    put(engine, "mine")
    with Session(engine) as session:
        assert process_next_job(session, knows("mine")) is True
        assert process_next_job(session, knows("mine")) is None
        assert process_next_job(session, knows("other")) is True
