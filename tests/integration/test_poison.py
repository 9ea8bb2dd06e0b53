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

from .support import eventually, rows

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
        if payload != "spare":
            os.kill(os.getpid(), signal.SIGKILL)

    worker = QueueWorker(
        create_engine(os.environ["URL"]), handlers, batch_window=timedelta(seconds=5)
    )
    pace = worker._core._pace
    pace._seconds = {"innocent": 0.0, "poison": 0.0}
    pace._recent = 0.0  # as after a while of fast jobs: batches of many from the start
    print(worker.drain())
    """
)


def run_worker(url: URL, retries: int = 1) -> int:
    """Run a worker until it has nothing to do or dies; return its exit code."""
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
def test_a_job_that_kills_its_workers_fails(url: URL, engine: Engine, retries: int) -> None:
    """A job on which three workers died alone fails, whatever its retries; others lose nothing."""
    with Session(engine) as session:
        for n in range(20):
            enqueue(session, "poison" if n == 10 else "innocent", n)
        session.commit()
    deaths = 0
    while run_worker(url, retries) == -signal.SIGKILL:
        deaths += 1
        assert deaths < 10, "the poison job crashes workers for ever"
    assert deaths == 4  # once among others, then three times alone
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


def test_a_marker_older_than_the_server_blames_nobody(url: URL, engine: Engine) -> None:
    """A restart of the database in the middle of a job costs the job no attempt."""
    with Session(engine) as session:
        job = enqueue(session, "poison", "spare")
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


def test_running_jobs_can_be_seen_while_they_run(engine: Engine) -> None:
    """The running table names the job, its worker and the time, and is empty afterwards."""
    seen: list[tuple[str, int]] = []

    def look(_job_type: str, _payload: object) -> None:
        with Session(engine) as session:
            running = session.scalars(select(RunningJob)).one()
            assert session.get(Job, running.job_id) is not None
            seen.append((running.worker, running.batch_size))

    with Session(engine) as session:
        enqueue(session, "look")
        session.commit()
    QueueWorker(engine, look, name="the worker").drain()
    assert [(name.rpartition(" ")[0], size) for name, size in seen] == [("the worker", 1)]
    with Session(engine) as session:
        assert session.scalars(select(RunningJob)).all() == []


def test_markers_without_a_job(engine: Engine) -> None:
    """Markers of dead workers whose jobs somebody else has finished are removed in time."""
    with engine.connect() as living:
        living.execute(text("SET application_name = 'living'"))
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


def test_an_error_that_undoes_the_transaction_leaves_no_marker(engine: Engine) -> None:
    """A worker that lives on after its transaction failed takes its markers back."""
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
