"""Clocks that are wrong by minutes, and clocks that are set while a worker works."""

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
    """What sets this host's clock right again."""
    monkeypatch.setattr(clock, "datetime", datetime)
    return monkeypatch


@on_servers
def test_wrong_clocks(engine: Engine, workers: Fleet) -> None:
    """Workers whose clocks differ take no job from one another and lose none."""
    for kind in workers.kinds:
        for wrong in (["--ahead=600"], ["--ahead=-600", "--later"]):
            workers.start(kind, f"--queue={kind.queue}", "--batch-size=1", *wrong)
    until(lambda: workers.said().count("worker-starting") == len(workers.workers), 60)
    an_hour_ago = utcnow() - timedelta(hours=1)  # so that they are due by any clock
    jobs = [("effect", LONG)] * 4 + [("effect", 0.0)] * 4
    with Session(engine) as session, session.begin():
        for kind in workers.kinds:
            enqueue_many(session, jobs, queue=kind.queue, clock=lambda: an_hour_ago)
        ids = set(session.scalars(select(Job.job_id)))
    until(lambda: len(workers.begun()) == 4 * len(workers.kinds), 60)
    for worker in workers.workers[1::2]:
        worker.send_signal(signal.SIGUSR1)
    await_empty(engine, 60)
    assert workers.stop() == [0] * len(workers.workers)
    audit(engine, ids, workers.effects_by_job())
    assert set(workers.effects_by_job().values()) == {1}
    assert "lease-lost" not in workers.said()
    for number in range(0, len(workers.workers), 2):
        assert workers.said(number).count("clock-skew") == 1


def test_leases_end_by_the_clock_of_the_database(
    engine: Engine, this_host: pytest.MonkeyPatch
) -> None:
    """A worker whose host is ahead waits for the end of a lease; a clock that is given decides."""
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


def test_a_wrong_clock_is_told_once(engine: Engine, this_host: pytest.MonkeyPatch) -> None:
    """A worker tells by how much its host's clock is wrong, and again when that has changed."""
    told: list[tuple[str, int]] = []
    shared = SharedClock(utcnow, Events(lambda name, data: told.append((name, data["seconds"]))))
    with engine.connect() as connection:
        for ahead in (0, 4, 60, 61, -60, -60, 0, 60):
            set_clock(ahead)
            shared.look(connection, at_once=True)
            assert abs(shared() - datetime.now(shared().tzinfo)) < timedelta(seconds=1)
    assert [(name, round(seconds)) for name, seconds in told] == [
        ("clock-skew", 60),
        ("clock-skew", -60),
        ("clock-skew", 60),
    ]


def test_looks_at_the_clock(engine: Engine) -> None:
    """The database is asked now and then, and again where it was slow to answer."""
    shared = SharedClock(utcnow, Events(None))
    statements: list[str] = []
    with engine.connect() as connection:

        @event.listens_for(connection, "before_cursor_execute")
        def slow(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            statements.append(statement)
            if len(statements) <= 4:
                sleep(0.2)

        shared.look(connection)
        assert len(statements) == 6
        shared.look(connection)
        assert len(statements) == 6
