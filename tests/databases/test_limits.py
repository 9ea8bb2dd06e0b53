"""Limits of job types, on each database and with each driver."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from threading import Lock
from time import monotonic, sleep
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, LimitPlace, enqueue, manage
from tests.integration.support import archived, eventually, rows

from .places import Place

SHORT = timedelta(seconds=0.2)


class Running:
    """Counts the jobs that run at a time."""

    def __init__(self) -> None:
        self.most: Counter[Any] = Counter()
        self.starts: list[float] = []
        self._now: Counter[Any] = Counter()
        self._lock = Lock()

    def run(self, key: Any, seconds: float = 0.005) -> None:
        with self._lock:
            self.starts.append(monotonic())
            self._now[key] += 1
            self.most[key] = max(self.most[key], self._now[key])
        sleep(seconds)
        with self._lock:
            self._now[key] -= 1


def limited(running: Running) -> Handlers:
    handlers = Handlers()

    @handlers("sync", concurrency=2)
    def sync(payload: Any) -> None:
        running.run("sync")

    @handlers("customer", concurrency_key=lambda payload: payload)
    def customer(payload: int) -> None:
        running.run(payload)

    @handlers("free")
    def free(payload: Any) -> None:
        running.run("free", 0)

    return handlers


def test_no_more_jobs_run_at_a_time_than_the_limit(place: Place, engine: Engine) -> None:
    """Two workers with several threads or tasks share the places, and all jobs run once."""
    running = Running()
    with Session(engine) as session:
        for n in range(40):
            enqueue(session, "sync", n)
            enqueue(session, "customer", n % 3)
            enqueue(session, "free", n)
        session.commit()
    workers = [
        place.worker(engine, limited(running), threads=3, polling_interval=SHORT) for _ in range(2)
    ]
    with workers[0], workers[1]:
        eventually(lambda: len(archived(engine)) == 120)
    assert {job.status for job in archived(engine)} == {"success"}
    assert {job.attempts for job in archived(engine)} == {1}
    assert running.most["sync"] <= 2
    assert [running.most[key] for key in range(3)] == [1, 1, 1]


def test_no_more_jobs_start_in_a_period_than_the_rate(place: Place, engine: Engine) -> None:
    running, handlers = Running(), Handlers()

    @handlers("rated", rate="4/second")
    def rated(payload: Any) -> None:
        running.run("rated", 0)

    with Session(engine) as session:
        for n in range(10):
            enqueue(session, "rated", n)
        session.commit()
    with place.worker(engine, handlers, threads=3, polling_interval=SHORT):
        eventually(lambda: len(archived(engine)) == 10)
    starts = sorted(running.starts)
    assert max(sum(first <= at < first + 1 for at in starts) for first in starts) <= 4
    assert {job.attempts for job in archived(engine)} == {1}


def test_jobs_that_wait_can_be_seen_and_changed(place: Place, engine: Engine) -> None:
    """They are counted as waiting; they can be rescheduled, cancelled and discarded."""
    running, handlers = Running(), Handlers()

    @handlers("sync", concurrency=1)
    def sync(payload: Any) -> None:
        running.run("sync")

    with Session(engine) as session:
        jobs = [enqueue(session, "sync", n) for n in range(4)]
        session.commit()
        ids = [job.job_id for job in jobs]
        due = [job.process_at for job in jobs]
        for job in jobs:  # as a worker does that finds no free place
            job.waits_for, job.due_at = "sync", job.process_at
            job.process_at = job.process_at.replace(year=9000, month=1, day=1, hour=0, minute=0)
            job.process_at = job.process_at.replace(second=0, microsecond=0)
        session.commit()
        counts = manage.stats(session).queues["default"]
        assert (counts.waiting, counts.due, counts.scheduled) == (4, 0, 0)
        assert manage.cancel(session, ids[0]) == "cancelled"
        assert manage.discard(session, ids[1]) == "discarded"
        assert manage.reschedule(session, ids[2], process_in=timedelta(0)) == "rescheduled"
        session.commit()
        moved = session.get_one(Job, ids[2])
        assert (moved.waits_for, moved.due_at) == (None, None)
    assert sorted(job.process_at for job in archived(engine)) == due[:2]
    with place.worker(engine, handlers, polling_interval=SHORT):
        eventually(lambda: len(archived(engine)) == 4)
    by_id = {job.job_id: job for job in archived(engine)}
    assert by_id[ids[3]].process_at >= due[3]
    assert rows(engine, LimitPlace)
