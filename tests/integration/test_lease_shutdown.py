"""Stopping workers in lease mode: finished jobs are archived, unfinished ones are released."""

from __future__ import annotations

import signal
from pathlib import Path
from threading import Event, Thread, main_thread
from time import sleep
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, select, update
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    QueueWorker,
    RunningJob,
    ShutdownTimeoutError,
    utcnow,
)

from .kinds import Kind, inner, leases
from .leased import every_program, program
from .support import (
    MINUTE,
    SECOND,
    Log,
    Note,
    archived,
    at_most,
    eventually,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    run_all,
    succeed,
)


def unchanged_values(job: Any) -> tuple[Any, ...]:
    """Return the values that an interrupted run must not change."""
    return job.job_id, job.attempts, job.process_at, job.error


@every_program
def test_sigterm_waits_for_running_handlers(
    shop: Engine, url: URL, kind: str, tmp_path: Path
) -> None:
    """After SIGTERM, handlers may run to their end, even beyond the lease; no new job starts."""
    for job_type in ("write", "send"):
        put(shop, job_type, job_type)
    with program(url, kind, tmp_path, "--lease", "0.8", "--places", "2") as worker:
        worker.until("half way", 2)
        waiting = put(shop, "write", "later")
        worker.process.send_signal(signal.SIGTERM)
        sleep(1.2)
        assert worker.process.poll() is None
        worker.go()
        assert worker.wait() == 0
    assert worker.told[-1] == "returned"
    assert {(job.job_type, job.status, job.attempts) for job in archived(shop)} == {
        ("write", "success", 1),
        ("send", "success", 1),
    }
    assert notes(shop) == ["write"]
    assert (only_queued(shop).job_id, only_queued(shop).attempts) == (waiting, 0)
    assert rows(shop, RunningJob) == []


@every_program
def test_sigterm_releases_jobs_that_exceed_the_timeout(
    shop: Engine, url: URL, kind: str, tmp_path: Path
) -> None:
    """Unfinished jobs are released unchanged: rolled back, without a counted attempt."""
    for job_type in ("write", "send"):
        put(shop, job_type, job_type)
    before = [unchanged_values(job) for job in queued(shop)]
    with program(url, kind, tmp_path, "--lease", "60", "--timeout", "0.3") as worker:
        worker.until("half way", 2)
        code = worker.end()
    assert code == (1 if kind == "threads" else 0)  # coroutines are cancelled
    assert worker.told.count("job-interrupted") == 2
    assert [unchanged_values(job) for job in queued(shop)] == before
    assert notes(shop) == []
    assert rows(shop, RunningJob) == []
    assert run_all(shop, succeed, lease=MINUTE) == 2
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}


@leases
def test_handlers_cannot_complete_after_the_shutdown_timeout(shop: Engine, kind: Kind) -> None:
    """Handlers that end after the shutdown timeout can neither write nor complete their jobs."""
    seen: list[str] = []

    def handlers(name: str, release: Event) -> Handlers:
        registry = Handlers()

        @registry("write")
        def write(payload: Any, session: Session) -> None:
            session.add(Note(text=name))
            session.flush()
            send(payload)

        @registry("send")
        def send(payload: Any) -> None:
            seen.append(f"{name} begins")
            assert release.wait(20)
            seen.append(f"{name} ends")

        return registry

    put(shop, "write")
    put(shop, "send")
    before = [unchanged_values(job) for job in queued(shop)]
    go_late, go_next, log = Event(), Event(), Log()
    options: Any = {"threads": 2, "shutdown_timeout": SECOND / 10, "log": log}
    late = kind.worker(shop, handlers("late", go_late), **options)
    stopped: list[BaseException] = []

    def stop() -> None:
        try:
            late.stop()
        except ShutdownTimeoutError as error:
            stopped.append(error)

    late.start()
    eventually(lambda: seen == ["late begins"] * 2)
    stopping = Thread(target=stop)  # closing an event loop waits for its threads
    stopping.start()
    try:
        eventually(lambda: [unchanged_values(job) for job in queued(shop)] == before)
        assert rows(shop, RunningJob) == []
        with kind.worker(shop, handlers("next", go_next), threads=2):
            eventually(lambda: seen.count("next begins") == 2)
            go_late.set()
            stopping.join(20)
            eventually(lambda: seen.count("late ends") == 2)
            sleep(0.1)
            assert archived(shop) == notes(shop) == []
            go_next.set()
    finally:
        go_late.set()
        go_next.set()
        stopping.join(20)
    assert len(stopped) == 1
    assert notes(shop) == ["next"]
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert len(archived(shop)) == 2
    assert queued(shop) == rows(shop, RunningJob) == []
    assert log.events().count("job-interrupted") == 2


@leases
def test_a_job_claimed_while_stopping_is_released(shop: Engine, kind: Kind) -> None:
    """A job that is claimed while the worker is stopping is released and not run."""
    put(shop, "job")
    before = unchanged_values(only_queued(shop))
    runs: list[int] = []
    engine = create_engine(shop.url)
    worker = kind.worker(engine, lambda *_: runs.append(1), lease=MINUTE)

    @event.listens_for(inner(worker, engine), "before_cursor_execute")
    def stop(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE proletarian.job SET") and "deaths" in statement:
            worker.request_stop()

    worker.start()
    eventually(lambda: worker.stopping)
    worker.stop()
    engine.dispose()
    assert runs == []
    assert unchanged_values(only_queued(shop)) == before
    assert rows(shop, RunningJob) == []


@leases
def test_a_poison_job_found_while_stopping_fails(shop: Engine, kind: Kind) -> None:
    """A job that reached ``max_deaths`` fails even if the worker that finds it is stopping."""
    job_id = put(shop, "job")
    with shop.begin() as connection:
        marker = RunningJob(job_id=job_id, worker="gone", batch_size=1, started_at=utcnow())
        with Session(connection) as session:
            session.add(marker)
            session.commit()
        leased = {"lease_id": job_id, "deaths": 2, "process_at": utcnow()}
        connection.execute(update(Job).values(leased))
    engine = create_engine(shop.url)
    worker = kind.worker(engine, succeed, lease=MINUTE)

    @event.listens_for(inner(worker, engine), "before_cursor_execute")
    def stop(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "LATERAL" in statement:
            worker.request_stop()

    worker.start()
    eventually(lambda: worker.stopping)
    worker.stop()
    engine.dispose()
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("failure", 1)
    assert rows(shop, RunningJob) == []


@leases
def test_a_locked_row_does_not_prevent_a_stop(shop: Engine, kind: Kind) -> None:
    """A locked row does not keep a worker from stopping, and is not counted as a crash."""
    running, release = Event(), Event()

    def handler(job_type: str, payload: Any) -> None:
        running.set()
        assert release.wait(25)

    job_id = put(shop, "job")
    worker = kind.worker(shop, handler, shutdown_timeout=SECOND / 5, lease=3 * SECOND)
    worker.start()
    assert running.wait(25)
    with shop.connect() as connection, connection.begin():
        connection.execute(select(Job.job_id).where(Job.job_id == job_id).with_for_update())
        release.set()
        with at_most(5, connection.invalidate):
            worker.stop()
    assert rows(shop, RunningJob) == []
    eventually(lambda: run_all(shop, succeed, lease=MINUTE) == 1)
    job = only_archived(shop)
    assert (job.status, job.attempts, job.deaths) == ("success", 1, 0)


def test_an_interrupted_drain_releases_its_leases(shop: Engine) -> None:
    """Ctrl-C releases the leases; handlers that still run cannot complete their jobs."""
    handlers = Handlers()
    release, running = Event(), Event()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="late"))
        session.flush()
        running.set()
        assert release.wait(20)

    def interrupt() -> None:
        assert running.wait(25)
        signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)

    put(shop, "write")
    before = unchanged_values(only_queued(shop))
    Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        QueueWorker(shop, handlers, lease=MINUTE).drain()
    assert unchanged_values(only_queued(shop)) == before
    assert rows(shop, RunningJob) == []
    release.set()
    sleep(0.2)
    assert notes(shop) == []
    assert run_all(shop, succeed) == 1
    assert only_archived(shop).attempts == 1
