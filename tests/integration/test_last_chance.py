"""A job that one more crash would fail runs while its worker runs no other job."""

from __future__ import annotations

from threading import Event
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Job, RunningJob, enqueue, utcnow
from sqlalchemy_proletarian.worker import health

from .kinds import Kind, transactions
from .support import archived, eventually, only_queued, put, queued, rows

HALF_A_SECOND = 0.5


class Scene:
    """A handler that notes what runs beside what, and "slow" jobs that run until ``end`` is set."""

    def __init__(self) -> None:
        self.end = Event()
        self.running: list[str] = []
        self.beside: dict[str, list[str]] = {}

    def handler(self, job_type: str, _payload: Any) -> None:
        self.running.append(job_type)
        self.beside[job_type] = [other for other in self.running if other != job_type]
        if job_type == "slow":
            assert self.end.wait(30)
        else:
            sleep(0.1)
        self.running.remove(job_type)


def put_suspect(engine: Engine) -> Any:
    """Enqueue a job that has crashed two workers."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        job = enqueue(session, "suspect")
        job.deaths = 2
    return job.job_id


@transactions
def test_it_waits_for_the_jobs_beside_it(
    engine: Engine, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile nothing is locked, no other job starts, and the worker counts as live."""
    for name in ("STANDSTILL", "NO_ANSWER", "HOPELESS"):
        monkeypatch.setattr(health, name, 0.2)
    scene = Scene()
    put(engine, "slow")
    with kind.worker(engine, scene.handler, threads=3) as worker:
        eventually(lambda: "slow" in scene.running)
        suspect = put_suspect(engine)
        requested = worker._core.pool.runners[0]._exclusive  # type: ignore[union-attr]
        eventually(lambda: requested.waiting)
        put(engine, "next")
        until = monotonic() + HALF_A_SECOND
        while monotonic() < until:
            found = worker.health()
            assert (found.live, found.ready) == (True, True), found.problems
            with Session(engine) as other, other.begin():
                locking = (
                    select(Job.job_id).where(Job.job_id == suspect).with_for_update(nowait=True)
                )
                assert other.scalar(locking) == suspect
            sleep(0.02)
        assert scene.running == ["slow"]
        scene.end.set()
        eventually(lambda: not queued(engine))
    assert scene.beside["suspect"] == []
    assert {job.status for job in archived(engine)} == {"success"}
    assert rows(engine, RunningJob) == []


@transactions
def test_several_of_them_run_one_after_the_other(engine: Engine, kind: Kind) -> None:
    """Jobs without deaths run next to each other again afterwards."""
    scene = Scene()
    scene.end.set()
    for _ in range(3):
        put_suspect(engine)
        put(engine, "other")
    assert kind.run_all(engine, scene.handler, threads=3) == 6
    assert scene.beside["suspect"] == []
    assert {job.status for job in archived(engine)} == {"success"}


@transactions
def test_a_worker_that_stops_does_not_wait_for_it(engine: Engine, kind: Kind) -> None:
    """The job stays in its queue."""
    scene = Scene()
    put(engine, "slow")
    with kind.worker(engine, scene.handler, threads=3) as worker:
        eventually(lambda: "slow" in scene.running)
        put_suspect(engine)
        requested = worker._core.pool.runners[0]._exclusive  # type: ignore[union-attr]
        eventually(lambda: requested.waiting)
        worker.request_stop()
        eventually(lambda: not requested.waiting)
        scene.end.set()
    assert "suspect" not in scene.beside
    assert (only_queued(engine).attempts, only_queued(engine).deaths) == (0, 2)
    assert rows(engine, RunningJob) == []


@transactions
@pytest.mark.parametrize(("threads", "status"), [(1, "failure"), (2, "success")])
def test_the_first_crash_of_a_worker_with_several_threads_fails_no_job(
    engine: Engine, kind: Kind, threads: int, status: str
) -> None:
    """Even if ``max_deaths`` is 1: another job may be the cause."""
    with Session(engine) as session, session.begin():
        job = enqueue(session, "job")
        marker = RunningJob(job_id=job.job_id, worker="gone", batch_size=1, started_at=utcnow())
        session.add(marker)
    kind.run_all(engine, Scene().handler, threads=threads, max_deaths=1)
    (ended,) = archived(engine)
    assert ended.status == status
    if status == "failure":
        assert "a worker died or lost the lease while running attempt 1" in ended.error
        assert "and no other (it was gone)" in ended.error
