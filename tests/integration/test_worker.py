"""The worker: interruptions, connection and callback errors, logging, concurrency."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import datetime
from threading import Barrier, Event
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Engine, func, inspect, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, RunningJob, enqueue_many

from .kinds import Kind
from .support import (
    MINUTE,
    SECOND,
    Log,
    ManualClock,
    Note,
    archived,
    at_most,
    eventually,
    fail,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    succeed,
)

# Interruption.


def test_an_interrupted_attempt_is_not_counted(shop: Engine, kind: Kind) -> None:
    """A handler that raises because the worker stops leaves its job unchanged and due."""
    handlers = Handlers()
    started, log, failures = Event(), Log(), []

    @handlers("long")
    def long(payload: Any, session: Session) -> None:
        session.add(Note(text="half done"))
        session.flush()
        started.set()
        while not worker.stopping:
            started.wait()
        raise TimeoutError("gave up")

    worker = kind.worker(shop, handlers, log=log, on_failed=lambda *args: failures.append(args))
    put(shop, "long")
    before = only_queued(shop)
    worker.start()
    assert started.wait(25)
    worker.stop()
    after = only_queued(shop)
    for column in inspect(Job).columns.keys():  # noqa: SIM118 - not a dict
        assert getattr(after, column) == getattr(before, column), column
    assert (notes(shop), archived(shop), failures) == ([], [], [])
    assert "job-interrupted" in log.events()
    assert "handle-job-exception" not in log.events()
    assert rows(shop, RunningJob) == []


def test_a_job_may_complete_while_the_worker_stops(shop: Engine, kind: Kind) -> None:
    """A job that completes while the worker stops succeeds; no other job is started."""
    handlers = Handlers()
    started = Event()

    @handlers("long")
    def long(payload: Any, session: Session) -> None:
        started.set()
        while not worker.stopping:
            started.wait()
        session.add(Note(text="done"))

    worker = kind.worker(shop, handlers, polling_interval=MINUTE)
    put(shop, "long")
    put(shop, "long")
    worker.start()
    assert started.wait(25)
    before = monotonic()
    worker.stop()
    assert monotonic() - before < 5
    assert notes(shop) == ["done"]
    assert only_archived(shop).status == "success"
    assert only_queued(shop).attempts == 0


def connections(engine: Engine, name: str) -> int:
    """Return the number of connections of a worker."""
    statement = text("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE :name")
    with engine.connect() as connection:
        return int(connection.scalar(statement, {"name": f"{name}%"}) or 0)


def test_connections_are_closed(engine: Engine, kind: Kind) -> None:
    """A worker closes its connections after ``drain`` and after a stop."""
    put(engine, "job")
    kind.run_all(engine, succeed, name="drained")
    eventually(lambda: connections(engine, "drained") == 0)
    with kind.worker(engine, succeed, threads=2, name="stopped"):
        put(engine, "job")
        eventually(lambda: len(archived(engine)) == 2)
        assert connections(engine, "stopped") > 0
    eventually(lambda: connections(engine, "stopped") == 0)


# Errors not caused by jobs.


def disconnect(engine: Engine, name: str) -> None:
    """Terminate a worker's connections, as a restart of the database does."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE :name || '%'"
            ),
            {"name": name},
        )


def test_a_worker_reconnects_after_lost_connections(
    engine: Engine, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that loses its connections logs the error and reconnects."""
    errors: list[BaseException] = []
    log = Log()
    worker = kind.worker(
        engine,
        succeed,
        name="survivor",
        polling_interval=SECOND / 10,
        on_polling_error=errors.append,  # returns None: continue
        log=log,
    )
    with worker:
        put(engine, "before")
        eventually(lambda: len(archived(engine)) == 1)
        disconnect(engine, "survivor")
        eventually(lambda: errors)
        put(engine, "after")
        eventually(lambda: len(archived(engine)) == 2)
    assert "polling-error" in log.events()
    assert "polling-error" in caplog.text


def test_a_job_that_loses_its_connection_runs_again(shop: Engine, kind: Kind) -> None:
    """A job whose connection is lost is rolled back and runs again."""
    handlers = Handlers()
    runs: list[int] = []

    @handlers("mail")
    def mail(payload: Any, session: Session) -> None:
        runs.append(1)
        session.add(Note(text=f"run {len(runs)}"))
        session.flush()
        if len(runs) == 1:
            with shop.begin() as other:
                pid = session.scalar(select(func.pg_backend_pid()))
                other.execute(select(func.pg_terminate_backend(pid)))

    put(shop, "mail")
    with kind.worker(shop, handlers, polling_interval=SECOND / 10):
        eventually(lambda: archived(shop))
    assert notes(shop) == ["run 2"]
    assert only_archived(shop).status == "success"
    assert queued(shop) == []


def test_on_polling_error_stops_the_worker(engine: Engine, kind: Kind) -> None:
    """The worker stops if ``on_polling_error`` returns a true value."""
    errors: list[BaseException] = []

    def on_polling_error(error: BaseException) -> bool:
        errors.append(error)
        return True

    def broken_clock() -> datetime:
        raise OSError("no clock")

    worker = kind.worker(engine, succeed, clock=broken_clock, on_polling_error=on_polling_error)
    with at_most(10, worker.request_stop):
        worker.run()
    assert [str(error) for error in errors] == ["no clock"]


def test_an_error_in_on_polling_error_is_logged(
    engine: Engine, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in ``on_polling_error`` is logged, and the worker continues."""
    clock = ManualClock()
    calls: list[int] = []

    def flaky_clock() -> datetime:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no clock")
        return clock.now

    def on_polling_error(error: BaseException) -> bool:
        raise RuntimeError("pager is down")

    put(engine, "job", clock=clock)
    with kind.worker(engine, succeed, clock=flaky_clock, on_polling_error=on_polling_error):
        eventually(lambda: archived(engine))
    assert "pager is down" in caplog.text
    assert "callback-error" in caplog.text


# Logging.


def test_events_are_logged(engine: Engine, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """Events are passed to ``log`` with the worker's name, and to ``logging`` with their data."""
    caplog.set_level(logging.DEBUG, "sqlalchemy_proletarian")
    log = Log()
    fine, broken = put(engine, "fine"), put(engine, "broken", priority=9)

    def handler(job_type: str, payload: Any) -> None:
        if job_type == "broken":
            fail(job_type, payload)

    kind.run_all(engine, handler, log=log, name="w1", retry_strategy={"retries": 1})

    def events_of(job_id: Any, attempt: int) -> list[str]:
        run = {"worker": "w1", "job_id": job_id, "attempt": attempt}
        return [event for event, data in log.entries if run.items() <= data.items()]

    def about(job_id: Any, job_type: str, **data: Any) -> dict[str, Any]:
        return {"worker": "w1", "job_id": job_id, "job_type": job_type, **data}

    assert events_of(fine, 1) == ["handling-job", "job-finished"]
    assert events_of(broken, 1) == ["handling-job", "handle-job-exception", "retrying"]
    assert events_of(broken, 2) == [
        "handling-job",
        "handle-job-exception",
        "not-retrying",
        "job-finished",
    ]
    assert len(log.entries) == 9
    times = {"wait", "duration", "queue"}
    assert [
        {name: value for name, value in data.items() if name not in times}
        for data in log.data("job-finished")
    ] == [
        {"worker": "w1", "job_id": fine, "job_type": "fine", "attempt": 1, "outcome": "success"},
        {
            "worker": "w1",
            "job_id": broken,
            "job_type": "broken",
            "attempt": 2,
            "outcome": "failure",
        },
    ]
    assert all(times <= data.keys() for data in log.data("job-finished"))
    assert isinstance(log.data("handle-job-exception")[0]["error"], ValueError)
    finished = [r for r in caplog.records if getattr(r, "event", "") == "job-finished"]
    assert [(r.worker, r.job_id) for r in finished] == [("w1", fine), ("w1", broken)]  # type: ignore[attr-defined]


def test_an_error_in_log_is_ignored(
    engine: Engine, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in a ``log`` callable is logged and has no other effect."""

    def log(event: str, data: Any) -> None:
        raise RuntimeError("disk full")

    put(engine, "mail")
    assert kind.run_all(engine, succeed, log=log) == 1
    assert only_archived(engine).status == "success"
    assert "disk full" in caplog.text


# Concurrency.


def test_concurrent_jobs_run_once(shop: Engine, kind: Kind) -> None:
    """With four concurrent jobs, each job runs once and its writes take effect once."""
    number = 300 if kind.leased else 1000  # slower without batches
    handlers = Handlers()
    runs: Counter[int] = Counter()

    @handlers("count")
    def count(payload: int, session: Session) -> None:
        runs[payload] += 1
        session.add(Note(text=str(payload)))

    with Session(shop) as session, session.begin():
        enqueue_many(session, [("count", n) for n in range(number)])
    assert kind.run_all(shop, handlers, threads=4) == number
    assert runs == Counter(range(number))
    assert Counter(notes(shop)) == Counter(str(n) for n in range(number))
    assert queued(shop) == []
    done = archived(shop)
    assert len(done) == number
    assert {(job.status, job.attempts) for job in done} == {("success", 1)}
    assert rows(shop, RunningJob) == []


def test_two_workers_share_a_queue(shop: Engine, kind: Kind) -> None:
    """Two workers on one queue share its jobs, and each job runs once."""
    runs: Counter[int] = Counter()
    jobs_by_worker: Counter[str] = Counter()

    def log(event: str, data: Any) -> None:
        if event == "job-finished":
            jobs_by_worker[data["worker"]] += 1

    def handler(_: str, payload: int) -> None:
        runs[payload] += 1
        Event().wait(0.002)

    with (
        kind.worker(shop, handler, threads=2, name="left", log=log, batch_size=1),
        kind.worker(shop, handler, threads=2, name="right", log=log, batch_size=1),
    ):
        with Session(shop) as session, session.begin():
            enqueue_many(session, [("count", n) for n in range(300)])
        eventually(lambda: sum(jobs_by_worker.values()) == 300)
    assert runs == Counter(range(300))
    assert min(jobs_by_worker["left"], jobs_by_worker["right"]) > 0
    assert len(archived(shop)) == 300
    assert queued(shop) == []


def test_jobs_run_concurrently(engine: Engine, kind: Kind) -> None:
    """With n threads, or a concurrency of n, n jobs run concurrently."""
    barrier = Barrier(3, timeout=10)
    for _ in range(3):
        put(engine, "meet")
    with kind.worker(engine, lambda *_: barrier.wait(), threads=3):
        eventually(lambda: len(archived(engine)) == 3)
    assert {job.status for job in archived(engine)} == {"success"}


def test_a_slow_job_does_not_block_others(engine: Engine, kind: Kind) -> None:
    """A slow job occupies one thread or task; the other one runs the remaining jobs."""
    release, seen = Event(), []

    def handler(job_type: str, payload: Any) -> None:
        if job_type == "slow":
            assert release.wait(25)
        else:
            seen.append(payload)

    with kind.worker(engine, handler, threads=2):
        put(engine, "slow", priority=0)
        for n in range(20):
            put(engine, "fast", n)
        eventually(lambda: [job.job_type for job in queued(engine)] == ["slow"])
        assert sorted(seen) == list(range(20))
        release.set()
    assert len(archived(engine)) == 21
