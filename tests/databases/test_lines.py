"""Connections of vanished workers, ended by other workers where sessions cannot set keepalives.

tests/faults/test_hosts.py tests that workers end the connections of a vanished host. The tests here
check that they end no others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Event
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    MetaData,
    String,
    Table,
    Uuid,
    event,
    insert,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, RunningJob, ShutdownTimeoutError, utcnow
from sqlalchemy_proletarian.database.mysql_wait_timeout import LIMIT
from sqlalchemy_proletarian.liveness.handler_connections import (
    HandlerConnection,
    LeasedConnections,
)
from sqlalchemy_proletarian.liveness.orphans import Orphan, Orphans
from sqlalchemy_proletarian.liveness.presence import Presence
from sqlalchemy_proletarian.runtime.threads import Threads
from sqlalchemy_proletarian.telemetry.events import Events
from tests.integration.support import archived, eventually, fail, only_archived, put, rows, succeed

from .conftest import engine_of
from .places import Note, Place, only

OFTEN = timedelta(seconds=0.2)
BEYOND = LIMIT + 6
"""Seconds after which a silent worker is considered missing."""

CONNECTION = text("SELECT CONNECTION_ID()")

# Only one place for each mode, because these tests wait for long.
with_threads = only(lambda place: place.driver == "mariadb+pymysql" and not place.in_a_loop)
in_transactions = only(lambda place: place.driver == "mariadb+pymysql" and not place.leased)


@contextmanager
def another_worker(
    place: Place, engine: Engine, handlers: Any, polling_interval: timedelta = OFTEN
) -> Iterator[list[str]]:
    """Run another worker; yield the events that it logs."""
    logged: list[str] = []
    log = lambda event, _: logged.append(event)  # noqa: E731
    worker = place.worker(engine, handlers, polling_interval=polling_interval, log=log)
    worker.start()
    try:
        yield logged
    finally:
        worker.stop()


@with_threads
def test_silence_in_the_middle_of_a_claim(place: Place, engine: Engine) -> None:
    """Jobs that a silent worker has locked but not yet marked are released soon."""
    locked, over = Event(), Event()
    blocked_engine = engine_of(place, engine.url)

    @event.listens_for(blocked_engine, "after_cursor_execute")
    def executed(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if "SKIP LOCKED" in statement and not locked.is_set():
            locked.set()
            over.wait(60)

    put(engine, "any")
    vanished = place.worker(blocked_engine, fail, polling_interval=OFTEN)
    vanished.start()
    try:
        eventually(locked.is_set)
        with another_worker(place, engine, succeed):
            eventually(lambda: not rows(engine, Job))
        assert (only_archived(engine).status, only_archived(engine).attempts) == ("success", 1)
    finally:
        over.set()
        vanished.stop()
        blocked_engine.dispose()


@only(lambda place: place.is_mysql and place.leased and not place.in_a_loop)
@pytest.mark.parametrize("ends", ["well", "badly", "in the commit"])
def test_nothing_stays_on_a_pooled_connection(place: Place, engine: Engine, ends: str) -> None:
    """A handler's connection returns to the pool in its original state."""
    engine.dispose()
    pool = engine_of(place, make_url(engine.url))
    handlers = Handlers()

    @handlers("any")
    def handle(payload: None, session: Session) -> None:
        session.add(Note(text="half way"))
        session.flush()
        if ends == "badly":
            raise ValueError
        if ends == "in the commit":
            session.add(Note(id=session.scalars(select(Note.id)).one(), text="the same"))

    with pool.connect() as connection:
        before = state_of(connection)
        connection_id = connection.scalar(CONNECTION)
    put(engine, "any")
    worker = place.worker(pool, handlers)
    assert worker.drain() == 1
    with pool.connect() as connection:
        assert connection.scalar(CONNECTION) == connection_id
        assert state_of(connection) == before
        assert connection.scalar(text("SELECT RELEASE_ALL_LOCKS()")) == 0
    pool.dispose()


@only(lambda place: place.is_mysql and place.leased)
def test_a_pooled_connection_closed_by_the_server(place: Place, engine: Engine) -> None:
    """A job does not fail when the pool returns a connection that the server has closed."""
    handlers = Handlers()
    connection_ids: list[int] = []

    if place.in_a_loop:

        @handlers("any")
        async def handle_in_a_loop(payload: None, session: AsyncSession) -> None:
            connection_ids.append(await session.scalar(CONNECTION))

    else:

        @handlers("any")
        def handle(payload: None, session: Session) -> None:
            connection_ids.append(session.scalar(CONNECTION) or 0)

    pool = engine_of(place, engine.url)
    with another_worker(place, pool, handlers):
        for n in range(2):
            put(engine, "any")
            eventually(lambda: not rows(engine, Job))
            with engine.connect() as connection:
                connection.execute(text("KILL :line"), {"line": connection_ids[n]})
    assert [(job.status, job.attempts) for job in archived(engine)] == [("success", 1)] * 2
    pool.dispose()


def state_of(connection: Connection) -> Any:
    return connection.execute(text("SELECT @@wait_timeout, @@autocommit")).one()


@in_transactions
def test_a_worker_with_a_busy_handler_is_not_missing(place: Place, engine: Engine) -> None:
    """A busy handler does not make its worker missing, even if it blocks the event loop."""
    handlers = Handlers()

    if place.in_a_loop:

        @handlers("compute")
        async def compute_in_a_loop(payload: None) -> None:
            time.sleep(BEYOND)  # noqa: ASYNC251 - blocks the loop on purpose

    else:
        handlers("compute")(lambda payload: time.sleep(BEYOND))

    put(engine, "compute")
    with another_worker(place, engine, handlers):
        eventually(lambda: len(rows(engine, RunningJob)) == 1)
        with another_worker(place, engine, fail) as logged:
            eventually(lambda: not rows(engine, Job))
            assert "worker-vanished" not in logged
    assert (only_archived(engine).status, only_archived(engine).attempts) == ("success", 1)


@in_transactions
def test_a_worker_that_reconnects_is_not_missing(place: Place, engine: Engine) -> None:
    """A worker that loses its presence connection reconnects and is not considered missing."""
    over = Event()
    put(engine, "compute")
    with another_worker(place, engine, lambda *_: over.wait(60)) as logged:
        eventually(lambda: len(rows(engine, RunningJob)) == 1)
        (marker,) = rows(engine, RunningJob)
        with (
            another_worker(place, engine, fail) as logged_by_the_other,
            engine.connect() as connection,
        ):
            lock = {"lock": f"proletarian:{marker.worker}"}
            connection_id = connection.scalar(text("SELECT IS_USED_LOCK(:lock)"), lock)
            connection.execute(text("KILL :line"), {"line": connection_id})
            eventually(lambda: "presence-lost" in logged)
            time.sleep(BEYOND - LIMIT)
            assert "worker-vanished" not in logged_by_the_other
            over.set()
            eventually(lambda: not rows(engine, Job))
    assert (only_archived(engine).status, only_archived(engine).attempts) == ("success", 1)


def mark(engine: Engine, **options: Any) -> Any:
    """Enqueue a job with the marker of a vanished worker; return its id."""
    job_id = put(engine, "any", **options)
    marker = {"worker": "gone", "batch_size": 1, "job_id": job_id, "started_at": utcnow()}
    with engine.begin() as connection:
        connection.execute(insert(RunningJob).values(marker))
    return job_id


def orphans() -> Orphans:
    return Orphans(inspect(RunningJob).local_table, Job)


one_per_server = only(lambda place: place.is_mysql and not (place.in_a_loop or place.leased))


@one_per_server
@pytest.mark.parametrize("ours", [True, False])
def test_orphans(place: Place, engine: Engine, ours: bool) -> None:
    """A vanished worker's connection is killed at the second check, if privileges permit."""
    job_id = mark(engine)
    with engine.begin() as connection:
        if not ours:
            connection.execute(text("CREATE USER IF NOT EXISTS other@localhost"))
            connection.execute(text("GRANT SELECT ON proletarian.* TO other@localhost"))
    url = engine.url if ours else engine.url.set(username="other", database="proletarian")
    other, checker = engine_of(place, url), orphans()
    with engine.connect() as left, other.connect() as connection:
        HandlerConnection("gone").announce(left, job_id)
        assert not list(checker.end(connection))
        checker.forget()
        assert not list(checker.end(connection)), "it was found missing only once"
        (orphan,) = checker.end(connection)
        assert orphan == Orphan("gone", job_id, orphan.refused)
        assert (orphan.refused is None) is ours
        assert not list(checker.end(connection)), "it is reported only once"
        if ours:
            with pytest.raises(Exception, match=r"(?i)lost connection|gone away|killed"):
                left.execute(text("SELECT 1"))
            left.invalidate()
    other.dispose()


@one_per_server
@pytest.mark.parametrize("leased", [True, False])
def test_no_orphan_while_the_lease_lasts(place: Place, engine: Engine, leased: bool) -> None:
    """A handler's connection is not killed while its job's lease lasts, even without its worker."""
    job_id = mark(engine, process_in=timedelta(hours=1 if leased else 0))
    checker = orphans()
    with engine.connect() as left, engine.connect() as connection:
        LeasedConnections(Job).announce(left, job_id)
        found = [*checker.end(connection), *checker.end(connection)]
        assert found == ([] if leased else [Orphan("gone", job_id, None)])
        left.invalidate()


@one_per_server
def test_presence_without_tables(place: Place, engine: Engine) -> None:
    """A worker keeps its presence lock even if its tables are missing."""
    logged: list[str] = []
    events = Events(lambda event, _: logged.append(event))
    nowhere = Table("nowhere", MetaData(), Column("worker", String), Column("job_id", Uuid))
    presence = Presence(engine, "worker", events, Threads(), Orphans(nowhere, Job))
    presence.show()
    eventually(lambda: presence.active)
    time.sleep(BEYOND - LIMIT)
    assert presence.active
    assert not logged
    presence.stop()


@with_threads
def test_connections_idle_for_longer_than_the_timeout(place: Place, engine: Engine) -> None:
    """A worker keeps its connections when it is idle for longer than the server's timeout."""
    with engine.connect() as connection:
        original = connection.scalar(text("SELECT @@GLOBAL.wait_timeout"))
        try:
            connection.execute(text("SET GLOBAL wait_timeout = 2"))
            with another_worker(place, engine, succeed, timedelta(hours=1)) as logged:
                for _ in range(2):
                    engine.dispose()  # closes the connections of the test itself
                    put(engine, "any")
                    eventually(lambda: not rows(engine, Job))
                    time.sleep(LIMIT + 2)
            engine.dispose()
        finally:
            connection.execute(text("SET GLOBAL wait_timeout = :usual"), {"usual": original})
    assert not {"polling-error", "presence-lost"} & set(logged)


@only(lambda place: place.is_mysql and not place.leased)
def test_a_query_that_outlasts_its_worker(place: Place, engine: Engine) -> None:
    """A worker that stops kills its handler's running query, and the job is due again."""
    begun = Event()
    handlers = Handlers()
    taken = select(Note).with_for_update()

    if place.in_a_loop:

        @handlers("wait")
        async def wait_in_a_loop(payload: None, session: AsyncSession) -> None:
            begun.set()
            await session.execute(taken)

    else:

        @handlers("wait")
        def wait(payload: None, session: Session) -> None:
            begun.set()
            session.execute(taken)

    put(engine, "wait")
    worker = place.worker(
        engine, handlers, polling_interval=OFTEN, shutdown_timeout=timedelta(seconds=1)
    )
    with Session(engine) as other:
        other.add(Note(text="taken"))
        other.flush()
        worker.start()
        eventually(begun.is_set)
        with suppress(ShutdownTimeoutError):
            worker.stop()
        with another_worker(place, engine, succeed):
            eventually(lambda: not rows(engine, Job))
        other.rollback()
    assert (only_archived(engine).status, only_archived(engine).attempts) == ("success", 1)
