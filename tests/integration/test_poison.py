"""Poison jobs and the markers of running jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import timedelta

import pytest
from sqlalchemy import URL, Engine, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Job,
    QueueWorker,
    RunningJob,
    enqueue,
    utcnow,
    uuid7,
)

from .support import eventually, rows, visible_markers

WORKER = textwrap.dedent(
    """
    import os, signal, sys
    from datetime import timedelta
    from sqlalchemy import create_engine
    from sqlalchemy_proletarian import Handlers, QueueWorker

    handlers = Handlers()

    @handlers("innocent", retry={"retries": 0})
    def innocent(payload):
        pass

    @handlers("poison", retry={"retries": int(sys.argv[1])})
    def poison(payload):
        if payload != "harmless":
            os.kill(os.getpid(), signal.SIGKILL)

    worker = QueueWorker(
        create_engine(os.environ["URL"]), handlers, batch_window=timedelta(seconds=5)
    )
    sizes = worker._core._assembly._batch_size
    sizes._seconds = {"innocent": 0.0, "poison": 0.0}
    sizes._recent = 0.0  # as after many fast jobs, so that the first batch is large
    print(worker.drain())
    """
)


def run_worker(url: URL, retries: int = 1) -> int:
    """Run a worker until the queue is empty or the worker crashes; return its exit code."""
    environment = os.environ | {"URL": url.render_as_string(hide_password=False)}
    worker = subprocess.run(
        [sys.executable, "-c", WORKER, str(retries)],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return worker.returncode


@pytest.mark.parametrize("retries", [0, 5])
def test_a_poison_job_fails(url: URL, engine: Engine, retries: int) -> None:
    """A job that crashes three workers while it runs alone fails; other jobs succeed."""
    with Session(engine) as session:
        for n in range(20):
            enqueue(session, "poison" if n == 10 else "innocent", n)
        session.commit()
    deaths = 0
    while run_worker(url, retries) == -signal.SIGKILL:
        deaths += 1
        assert deaths < 10, "the poison job never fails"
    assert deaths == 4  # once in a batch, then three times alone
    with Session(engine) as session:
        archived = session.scalars(select(ArchivedJob)).all()
        assert len(archived) == 20
        (poison,) = (job for job in archived if job.job_type == "poison")
        assert (poison.status, poison.attempts, poison.deaths) == ("failure", 1, 3)
        assert poison.error is not None
        assert "WorkerDiedError" in poison.error
        innocents = [job for job in archived if job.job_type == "innocent"]
        assert {(job.status, job.attempts, job.deaths) for job in innocents} == {("success", 1, 0)}
        assert session.scalars(select(RunningJob)).all() == []


def test_a_database_restart_is_not_a_crash(url: URL, engine: Engine) -> None:
    """A database restart while a job runs does not count as a crash of its worker."""
    with Session(engine) as session:
        job = enqueue(session, "poison", "harmless")
        session.flush()
        session.execute(
            text(
                "INSERT INTO proletarian.running VALUES"
                " (:id, 'gone', 1, pg_postmaster_start_time() - interval '1 second')"
            ),
            {"id": job.job_id},
        )
        session.commit()
    assert run_worker(url) == 0
    with Session(engine) as session:
        (done,) = session.scalars(select(ArchivedJob))
        assert (done.status, done.attempts) == ("success", 1)


def test_running_jobs_are_listed_in_the_running_table(engine: Engine) -> None:
    """The running table contains the job and its worker while the job runs."""
    seen: list[tuple[str, int]] = []

    def handler(_job_type: str, _payload: object) -> None:
        visible_markers(engine)
        with Session(engine) as session:
            running = session.scalars(select(RunningJob)).one()
            assert session.get(Job, running.job_id) is not None
            seen.append((running.worker, running.batch_size))

    with Session(engine) as session:
        enqueue(session, "job")
        session.commit()
    QueueWorker(engine, handler, name="the worker").drain()
    assert [(name.rpartition(" ")[0], size) for name, size in seen] == [("the worker", 1)]
    with Session(engine) as session:
        assert session.scalars(select(RunningJob)).all() == []


def test_old_markers_without_a_job_are_removed(engine: Engine) -> None:
    """Old markers of crashed workers are removed if their jobs no longer exist."""
    with engine.connect() as live:
        live.execute(text("SET application_name = 'living'"))
        with Session(engine) as session, session.begin():
            jobs = [enqueue(session, "job", queue="others") for _ in range(2)]
            old, new = utcnow() - timedelta(hours=2), utcnow()
            for worker, at, job_id in (
                ("dead", old, uuid7()),
                ("dead", new, uuid7()),
                ("living", old, uuid7()),
                ("dead", old, jobs[0].job_id),
            ):
                marker = RunningJob(job_id=job_id, worker=worker, batch_size=1, started_at=at)
                session.add(marker)
        with QueueWorker(engine, lambda *_: None):
            eventually(lambda: len(rows(engine, RunningJob)) == 3)
    left = {(marker.worker, marker.started_at) for marker in rows(engine, RunningJob)}
    assert left == {("dead", new), ("living", old), ("dead", old)}


def test_a_failed_transaction_leaves_no_marker(engine: Engine) -> None:
    """A worker that survives a failed transaction removes its markers."""
    deadline = time.monotonic() + 10

    def end(_job_type: str, _payload: object) -> None:
        raise SystemExit

    with Session(engine) as session:
        enqueue(session, "end")
        session.commit()
    with QueueWorker(engine, end):
        while time.monotonic() < deadline:
            with Session(engine) as session:
                if session.scalars(select(ArchivedJob)).all():
                    break
            time.sleep(0.02)
    with Session(engine) as session:
        assert session.scalars(select(ArchivedJob)).one().attempts == 1
        assert session.scalars(select(RunningJob)).all() == []
