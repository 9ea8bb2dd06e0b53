"""A worker that serves many queues: the order of its jobs, and how much a claim reads."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    PausedQueue,
    RunningJob,
    enqueue_many,
    manage,
    utcnow,
)
from sqlalchemy_proletarian.store import claim_filter
from sqlalchemy_proletarian.store.claim_filter import MANY_QUEUES, ClaimFilter
from sqlalchemy_proletarian.store.open import open_store

from .places import Place, only

MANY = [f"queue-{n:04}" for n in range(MANY_QUEUES + 5)]
THOUSAND = [f"queue-{n:04}" for n in range(1000)]
one_each = only(lambda place: place.in_a_loop is None and place.driver != "postgresql+psycopg2")
on_postgresql = only(
    lambda place: (
        place.server == "postgres"
        and place.driver == "postgresql+psycopg"
        and place.in_a_loop is None
    )
)
elsewhere = only(
    lambda place: (
        place.server in {"mariadb", "sqlite"}
        and place.driver in {"mariadb+pymysql", "sqlite"}
        and place.in_a_loop is None
        and place.leased
    )
)


def put(engine: Engine, job_type: str, queue: str, payloads: list[Any], **options: Any) -> None:
    with Session(engine) as session, session.begin():
        enqueue_many(session, [(job_type, each) for each in payloads], queue=queue, **options)


def store_of(engine: Engine, queues: list[str], **options: Any) -> Any:
    """Return the store of a worker in lease mode."""
    return open_store(engine.dialect, Job, ArchivedJob, queues, leased=True, **options)


@one_each
def test_queues_and_priorities_are_served_in_their_order(place: Place, engine: Engine) -> None:
    handlers = Handlers()
    ran: list[Any] = []
    handlers("note")(ran.append)
    served = MANY[::-1]
    expected = []
    for queue in served:
        for priority in (0, 4, 9):
            put(engine, "note", queue, [f"{queue} {priority}"], priority=priority)
            expected.append(f"{queue} {priority}")
    put(engine, "note", "not served", ["never"])
    put(engine, "unknown", served[0], ["never"] * 3, priority=0)
    worker = place.worker(engine, handlers, queues=served, batch_size=4)
    assert worker.drain() == len(expected)
    assert ran == expected


@one_each
def test_a_paused_queue_is_skipped_among_many(place: Place, engine: Engine) -> None:
    handlers = Handlers()
    ran: list[Any] = []
    handlers("note")(ran.append)
    for queue in MANY[:3]:
        put(engine, "note", queue, [queue])
    with Session(engine) as session, session.begin():
        manage.pause(session, MANY[1])
    assert place.worker(engine, handlers, queues=MANY).drain() == 2
    assert ran == [MANY[0], MANY[2]]
    with Session(engine) as session, session.begin():
        session.query(PausedQueue).delete()


@on_postgresql
def test_many_queues_share_a_worker_by_weight(place: Place, engine: Engine) -> None:
    handlers = Handlers()
    ran: list[str] = []
    handlers("note")(ran.append)
    weights = {queue: 8 if queue == MANY[-1] else 1 for queue in MANY}
    for queue in weights:
        put(engine, "note", queue, [queue] * 20)
    worker = place.worker(engine, handlers, queues=weights, batch_size=1)
    worker.drain()
    first = ran[: len(MANY)]
    assert first.count(MANY[-1]) > 4
    assert len(ran) == 20 * len(MANY)


@on_postgresql
def test_many_queues_start_at_the_first_job_of_a_known_type(
    place: Place, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    del place
    chosen = ClaimFilter(lambda: ["known"])
    monkeypatch.setattr(claim_filter, "SLOW", 0.0)  # every claim is slow
    monkeypatch.setattr(claim_filter, "saves_time", lambda *_: True)
    store = store_of(engine, MANY, claim_filter=chosen)
    put(engine, "unknown", MANY[3], [0] * 50)
    put(engine, "known", MANY[3], [1])
    put(engine, "known", MANY[7], [2])
    with engine.connect() as connection:
        for _ in range(2):
            now = utcnow()
            with connection.begin():
                claimed = store.claim(connection, 10, now, now)
            assert len(claimed) == 2
        assert chosen.start((MANY[3], 5)) is not None
        assert not store.next_due(connection, now)._replace(overdue=False).at


@on_postgresql
def test_a_claim_does_not_probe_each_lane_of_a_thousand_queues(
    place: Place, engine: Engine
) -> None:
    """Ten thousand lanes would read twenty thousand pages."""
    del place
    with engine.begin() as connection:
        # Earlier tests leave pages behind, which a plan for a small table reads for each queue.
        connection.exec_driver_sql("TRUNCATE proletarian.job CASCADE")
    for queue in THOUSAND[::100]:
        put(engine, "note", queue, [1, 2, 3])
    store = open_store(
        engine.dialect, Job, ArchivedJob, THOUSAND, running=RunningJob.__table__, leased=False
    )
    with engine.connect() as connection:
        claim = {**store._lanes.parameters, "now": utcnow(), "limit": 500}
        assert len(store.claim(connection, 500, utcnow())) == 30
        assert pages_read(connection, store._claim, claim) < 3500
        due = {**store._lanes.parameters, "now": utcnow()}
        assert pages_read(connection, store._next_due, due) < 3500


def pages_read(connection: Connection, statement: Any, parameters: dict[str, Any]) -> int:
    """Return how many pages a statement reads, with repetitions."""
    compiled = statement.compile(dialect=connection.dialect)
    explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {compiled}"
    plan: Any = connection.exec_driver_sql(explain, compiled.construct_params(parameters))
    top = plan.scalar()[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


@elsewhere
def test_a_claim_does_not_read_the_backlog(place: Place, engine: Engine) -> None:
    """Each lane is one index probe, however many jobs wait in it."""
    put(engine, "note", "default", list(range(2000)))
    store = store_of(engine, ["default", "other"])
    statement = store._first_due
    with engine.connect() as connection:
        if place.is_mysql:

            def read() -> int:
                rows = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'")
                return sum(int(row[1]) for row in rows)

            before = read()
            connection.execute(statement, store._queue_parameters).all()
            assert read() - before < 200
        else:
            compiled = statement.compile(dialect=connection.dialect)
            translated = str(compiled).replace("proletarian.", "")
            plan = connection.execute(text(f"EXPLAIN QUERY PLAN {_with_values(translated)}")).all()
            steps = [row.detail for row in plan if " job " in f" {row.detail} "]
            assert steps
            assert all("SEARCH job USING COVERING INDEX" in step for step in steps)


def _with_values(statement: str) -> str:
    return statement.replace("?", "'default'", statement.count("?"))
