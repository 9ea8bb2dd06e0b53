"""Clocks that are wrong by minutes, and clocks that change while a worker runs."""

from __future__ import annotations

import signal
from datetime import datetime, timedelta
from time import sleep
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Job, QueueWorker, clock, enqueue_many, utcnow, uuid7
from sqlalchemy_proletarian.database.server_clock import SharedClock
from sqlalchemy_proletarian.telemetry.events import Events

from .fleet import LEASE, Fleet, audit, await_empty, until
from .program import set_clock
from .sites import on_servers

LONG = 2.5 * LEASE


@pytest.fixture
def this_host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Restore this host's clock after the test."""
    monkeypatch.setattr(clock, "datetime", datetime)
    return monkeypatch


@on_servers
def test_wrong_clocks(engine: Engine, workers: Fleet) -> None:
    """Workers with different clocks neither take over each other's jobs nor lose any."""
    for kind in workers.kinds:
        for wrong in (["--ahead=600"], ["--ahead=-600", "--later"]):
            workers.start(kind, f"--queue={kind.queue}", "--batch-size=1", *wrong)
    until(lambda: workers.said().count("worker-starting") == len(workers.workers), 60)
    an_hour_ago = utcnow() - timedelta(hours=1)  # so that the jobs are due on every clock
    jobs = [("effect", LONG)] * 4 + [("effect", 0.0)] * 4
    with Session(engine) as session, session.begin():
        for kind in workers.kinds:
            enqueue_many(session, jobs, queue=kind.queue, clock=lambda: an_hour_ago)
        ids = set(session.scalars(select(Job.job_id)))
    until(lambda: len(workers.begun()) >= 4 * len(workers.kinds), 60)
    for worker in workers.workers[1::2]:
        worker.send_signal(signal.SIGUSR1)
    await_empty(engine, 60)
    assert workers.stop() == [0] * len(workers.workers)
    audit(engine, ids, workers.effects_by_job())
    assert set(workers.effects_by_job().values()) == {1}
    assert "lease-lost" not in workers.said()
    for number in range(0, len(workers.workers), 2):
        assert workers.said(number).count("clock-skew") == 1


def test_leases_expire_by_the_clock_of_the_database(
    engine: Engine, this_host: pytest.MonkeyPatch
) -> None:
    """The database's clock decides when a lease expires, unless the worker is given a clock."""
    with Session(engine) as session, session.begin():
        session.add(
            Job(
                queue="default",
                job_type="any",
                payload="null",
                attempts=0,
                lease_id=uuid7(),
                enqueued_at=utcnow(),
                process_at=utcnow() + timedelta(hours=1),
            )
        )
    in_two_hours = utcnow() + timedelta(hours=2)
    options: Any = {"lease": timedelta(minutes=1)}
    set_clock(7200)
    assert QueueWorker(engine, lambda *_: None, **options).drain() == 0
    this_host.undo()
    assert QueueWorker(engine, lambda *_: None, clock=lambda: in_two_hours, **options).drain() == 1


def test_a_wrong_clock_is_logged_once(engine: Engine, this_host: pytest.MonkeyPatch) -> None:
    """A worker logs the error of its host's clock once, and again when the error changes."""
    logged: list[tuple[str, int]] = []
    shared = SharedClock(utcnow, Events(lambda name, data: logged.append((name, data["seconds"]))))
    with engine.connect() as connection:
        for ahead in (0, 4, 60, 61, -60, -60, 0, 60):
            set_clock(ahead)
            shared.check(connection, at_once=True)
            assert abs(shared() - datetime.now(shared().tzinfo)) < timedelta(seconds=1)
    assert [(name, round(seconds)) for name, seconds in logged] == [
        ("clock-skew", 60),
        ("clock-skew", -60),
        ("clock-skew", 60),
    ]


def test_a_slow_answer_of_the_database_clock_is_measured_again(engine: Engine) -> None:
    """The clock is read again when the answer was slow, and cached between checks."""
    shared = SharedClock(utcnow, Events(None))
    statements: list[str] = []
    with engine.connect() as connection:

        @event.listens_for(connection, "before_cursor_execute")
        def slow(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            statements.append(statement)
            if len(statements) <= 4:
                sleep(0.2)

        shared.check(connection)
        assert len(statements) == 6
        shared.check(connection)
        assert len(statements) == 6
