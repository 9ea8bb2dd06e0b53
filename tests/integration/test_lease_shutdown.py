"""Workers that hold leases and are stopped: what is done is settled, what is not is given back."""

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


def as_it_was(job: Any) -> tuple[Any, ...]:
    """Return what a run that does not count must leave as it was."""
    return job.job_id, job.attempts, job.process_at, job.error


@every_program
def test_sigterm_and_handlers_that_end_in_time(
    shop: Engine, url: URL, kind: str, tmp_path: Path
) -> None:
    """After SIGTERM running handlers may end, beyond their lease too; no other job is begun."""
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
def test_sigterm_and_handlers_that_are_late(
    shop: Engine, url: URL, kind: str, tmp_path: Path
) -> None:
    """What has not ended in time is given back at once: as it was, uncounted, undone."""
    for job_type in ("write", "send"):
        put(shop, job_type, job_type)
    before = [as_it_was(job) for job in queued(shop)]
    with program(url, kind, tmp_path, "--lease", "60", "--timeout", "0.3") as worker:
        worker.until("half way", 2)
        code = worker.end()
    assert code == (1 if kind == "threads" else 0)  # coroutines are cancelled
    assert worker.told.count("job-interrupted") == 2
    assert [as_it_was(job) for job in queued(shop)] == before
    assert notes(shop) == []
    assert rows(shop, RunningJob) == []
    assert run_all(shop, succeed, lease=MINUTE) == 2
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}


@leases
def test_late_handlers_cannot_complete(shop: Engine, kind: Kind) -> None:
    """Handlers that end after ``stop`` has given up on them neither write nor complete anything."""
    seen: list[str] = []

    def handlers(who: str, release: Event) -> Handlers:
        registry = Handlers()

        @registry("write")
        def write(payload: Any, session: Session) -> None:
            session.add(Note(text=who))
            session.flush()
            send(payload)

        @registry("send")
        def send(payload: Any) -> None:
            seen.append(f"{who} begins")
            assert release.wait(20)
            seen.append(f"{who} ends")

        return registry

    put(shop, "write")
    put(shop, "send")
    before = [as_it_was(job) for job in queued(shop)]
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
    stopping = Thread(target=stop)  # the end of a loop waits for its threads
    stopping.start()
    try:
        eventually(lambda: [as_it_was(job) for job in queued(shop)] == before)
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
def test_stop_in_the_middle_of_a_claim(shop: Engine, kind: Kind) -> None:
    """A job that is claimed while the worker is asked to stop is given back, not begun."""
    put(shop, "job")
    before = as_it_was(only_queued(shop))
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
    assert as_it_was(only_queued(shop)) == before
    assert rows(shop, RunningJob) == []


@leases
def test_death_that_is_found_while_stopping(shop: Engine, kind: Kind) -> None:
    """A job that has used up its deaths fails though the worker that finds it is to stop."""
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
def test_stop_while_a_row_is_locked(shop: Engine, kind: Kind) -> None:
    """A row that somebody has locked keeps no worker from stopping, and costs the job no blame."""
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


def test_interrupted_drain(shop: Engine) -> None:
    """Ctrl-C in a ``drain`` gives the leases back, and the handlers it leaves cannot complete."""
    handlers = Handlers()
    release, begun = Event(), Event()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="late"))
        session.flush()
        begun.set()
        assert release.wait(20)

    def interrupt() -> None:
        assert begun.wait(25)
        signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)

    put(shop, "write")
    before = as_it_was(only_queued(shop))
    Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        QueueWorker(shop, handlers, lease=MINUTE).drain()
    assert as_it_was(only_queued(shop)) == before
    assert rows(shop, RunningJob) == []
    release.set()
    sleep(0.2)
    assert notes(shop) == []
    assert run_all(shop, succeed) == 1
    assert only_archived(shop).attempts == 1
