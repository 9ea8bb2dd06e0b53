"""Connections that workers end for one another, where sessions cannot ask for keepalives.

That they do when a host vanishes is tested in tests/faults/test_hosts.py; here, that they do not
else.
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
from sqlalchemy_proletarian.liveness.orphans import LeasedJobs, Line, Orphan, Orphans
from sqlalchemy_proletarian.liveness.presence import Presence
from sqlalchemy_proletarian.runtime.threads import Threads
from sqlalchemy_proletarian.telemetry.events import Events
from tests.integration.support import archived, eventually, fail, only_archived, put, rows, succeed

from .conftest import engine_of
from .places import Note, Place, only

OFTEN = timedelta(seconds=0.2)
BEYOND = LIMIT + 6
"""Seconds after which a worker is missed that says nothing."""

CONNECTION = text("SELECT CONNECTION_ID()")

# One of each: these wait for long.
with_threads = only(lambda place: place.driver == "mariadb+pymysql" and not place.in_a_loop)
in_transactions = only(lambda place: place.driver == "mariadb+pymysql" and not place.leased)


@contextmanager
def one_more(
    place: Place, engine: Engine, handlers: Any, polling_interval: timedelta = OFTEN
) -> Iterator[list[str]]:
    """Run one more worker; yield the events that it tells of."""
    told: list[str] = []
    log = lambda event, _: told.append(event)  # noqa: E731
    worker = place.worker(engine, handlers, polling_interval=polling_interval, log=log)
    worker.start()
    try:
        yield told
    finally:
        worker.stop()


@with_threads
def test_silence_in_the_middle_of_a_claim(place: Place, engine: Engine) -> None:
    """Jobs that were locked and not marked yet are free soon, as if their worker had vanished."""
    locked, over = Event(), Event()
    deaf = engine_of(place, engine.url)

    @event.listens_for(deaf, "after_cursor_execute")
    def executed(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if "SKIP LOCKED" in statement and not locked.is_set():
            locked.set()
            over.wait(60)

    put(engine, "any")
    vanished = place.worker(deaf, fail, polling_interval=OFTEN)
    vanished.start()
    try:
        eventually(locked.is_set)
        with one_more(place, engine, succeed):
            eventually(lambda: not rows(engine, Job))
        assert (only_archived(engine).status, only_archived(engine).attempts) == ("success", 1)
    finally:
        over.set()
        vanished.stop()
        deaf.dispose()


@only(lambda place: place.is_mysql and place.leased and not place.in_a_loop)
@pytest.mark.parametrize("ends", ["well", "badly", "in the commit"])
def test_nothing_stays_on_a_pooled_connection(place: Place, engine: Engine, ends: str) -> None:
    """A handler's connection goes back to its pool as it was."""
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
        line = connection.scalar(CONNECTION)
    put(engine, "any")
    worker = place.worker(pool, handlers)
    assert worker.drain() == 1
    with pool.connect() as connection:
        assert connection.scalar(CONNECTION) == line
        assert state_of(connection) == before
        assert connection.scalar(text("SELECT RELEASE_ALL_LOCKS()")) == 0
    pool.dispose()


@only(lambda place: place.is_mysql and place.leased)
def test_a_pooled_connection_that_is_gone(place: Place, engine: Engine) -> None:
    """A handler that is given a connection which the server has ended has not failed."""
    handlers = Handlers()
    lines: list[int] = []

    if place.in_a_loop:

        @handlers("any")
        async def handle_in_a_loop(payload: None, session: AsyncSession) -> None:
            lines.append(await session.scalar(CONNECTION))

    else:

        @handlers("any")
        def handle(payload: None, session: Session) -> None:
            lines.append(session.scalar(CONNECTION) or 0)

    pool = engine_of(place, engine.url)
    with one_more(place, pool, handlers):
        for n in range(2):
            put(engine, "any")
            eventually(lambda: not rows(engine, Job))
            with engine.connect() as connection:
                connection.execute(text("KILL :line"), {"line": lines[n]})
    assert [(job.status, job.attempts) for job in archived(engine)] == [("success", 1)] * 2
    pool.dispose()


def state_of(connection: Connection) -> Any:
    return connection.execute(text("SELECT @@wait_timeout, @@autocommit")).one()


@in_transactions
def test_a_handler_that_holds_up_its_loop(place: Place, engine: Engine) -> None:
    """A worker is not missed for what its handler does, be it a coroutine that computes."""
    handlers = Handlers()

    if place.in_a_loop:

        @handlers("compute")
        async def compute_in_a_loop(payload: None) -> None:
            time.sleep(BEYOND)  # noqa: ASYNC251 - it is what must not be done

    else:
        handlers("compute")(lambda payload: time.sleep(BEYOND))

    put(engine, "compute")
    with one_more(place, engine, handlers):
        eventually(lambda: len(rows(engine, RunningJob)) == 1)
        with one_more(place, engine, fail) as told:
            eventually(lambda: not rows(engine, Job))
            assert "worker-vanished" not in told
    assert (only_archived(engine).status, only_archived(engine).attempts) == ("success", 1)


@in_transactions
def test_a_worker_that_is_back_at_once(place: Place, engine: Engine) -> None:
    """A worker that loses the connection which shows that it lives is not missed for that."""
    over = Event()
    put(engine, "compute")
    with one_more(place, engine, lambda *_: over.wait(60)) as told:
        eventually(lambda: len(rows(engine, RunningJob)) == 1)
        (marker,) = rows(engine, RunningJob)
        with one_more(place, engine, fail) as told_by_the_other, engine.connect() as connection:
            lock = {"lock": f"proletarian:{marker.worker}"}
            line = connection.scalar(text("SELECT IS_USED_LOCK(:lock)"), lock)
            connection.execute(text("KILL :line"), {"line": line})
            eventually(lambda: "presence-lost" in told)
            time.sleep(BEYOND - LIMIT)
            assert "worker-vanished" not in told_by_the_other
            over.set()
            eventually(lambda: not rows(engine, Job))
    assert (only_archived(engine).status, only_archived(engine).attempts) == ("success", 1)


def mark(engine: Engine, **options: Any) -> Any:
    """Enqueue a job with the marker of a worker that is gone, and return its id."""
    job_id = put(engine, "any", **options)
    marker = {"worker": "gone", "batch_size": 1, "job_id": job_id, "started_at": utcnow()}
    with engine.begin() as connection:
        connection.execute(insert(RunningJob).values(marker))
    return job_id


def orphans() -> Orphans:
    return Orphans(inspect(RunningJob).local_table, Job)


one_each = only(lambda place: place.is_mysql and not (place.in_a_loop or place.leased))


@one_each
@pytest.mark.parametrize("ours", [True, False])
def test_orphans(place: Place, engine: Engine, ours: bool) -> None:
    """What a worker has left that is gone is ended when it is missed again, if it may be."""
    job_id = mark(engine)
    with engine.begin() as connection:
        if not ours:
            connection.execute(text("CREATE USER IF NOT EXISTS other@localhost"))
            connection.execute(text("GRANT SELECT ON proletarian.* TO other@localhost"))
    url = engine.url if ours else engine.url.set(username="other", database="proletarian")
    other, left_behind = engine_of(place, url), orphans()
    with engine.connect() as left, other.connect() as connection:
        Line("gone").show(left, job_id)
        assert not list(left_behind.end(connection))
        left_behind.forget()
        assert not list(left_behind.end(connection)), "it was missed once"
        (orphan,) = left_behind.end(connection)
        assert orphan == Orphan("gone", job_id, orphan.refused)
        assert (orphan.refused is None) is ours
        assert not list(left_behind.end(connection)), "once is enough"
        if ours:
            with pytest.raises(Exception, match=r"(?i)lost connection|gone away|killed"):
                left.execute(text("SELECT 1"))
            left.invalidate()
    other.dispose()


@one_each
@pytest.mark.parametrize("leased", [True, False])
def test_no_orphan_while_its_lease_lasts(place: Place, engine: Engine, leased: bool) -> None:
    """A handler may go on as long as its job is leased, whatever becomes of its worker."""
    job_id = mark(engine, process_in=timedelta(hours=1 if leased else 0))
    left_behind = orphans()
    with engine.connect() as left, engine.connect() as connection:
        LeasedJobs(Job).show(left, job_id)
        found = [*left_behind.end(connection), *left_behind.end(connection)]
        assert found == ([] if leased else [Orphan("gone", job_id, None)])
        left.invalidate()


@one_each
def test_tables_that_are_missing(place: Place, engine: Engine) -> None:
    """A worker shows that it lives, whatever has become of its tables."""
    told: list[str] = []
    events = Events(lambda event, _: told.append(event))
    nowhere = Table("nowhere", MetaData(), Column("worker", String), Column("job_id", Uuid))
    presence = Presence(engine, "somebody", events, Threads(events), Orphans(nowhere, Job))
    presence.show()
    eventually(lambda: presence.active)
    time.sleep(BEYOND - LIMIT)
    assert presence.active
    assert not told
    presence.stop()


@with_threads
def test_connections_that_are_idle_for_long(place: Place, engine: Engine) -> None:
    """A worker keeps its connections, be they idle for longer than the server likes."""
    with engine.connect() as connection:
        usual = connection.scalar(text("SELECT @@GLOBAL.wait_timeout"))
        try:
            connection.execute(text("SET GLOBAL wait_timeout = 2"))
            with one_more(place, engine, succeed, timedelta(hours=1)) as told:
                for _ in range(2):
                    engine.dispose()  # what the test itself had
                    put(engine, "any")
                    eventually(lambda: not rows(engine, Job))
                    time.sleep(LIMIT + 2)
            engine.dispose()
        finally:
            connection.execute(text("SET GLOBAL wait_timeout = :usual"), {"usual": usual})
    assert not {"polling-error", "presence-lost"} & set(told)


@only(lambda place: place.is_mysql and not place.leased)
def test_a_query_that_outlasts_its_worker(place: Place, engine: Engine) -> None:
    """A worker that stops ends the query which its handler waits for, and the job is due again."""
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
    with Session(engine) as somebody:
        somebody.add(Note(text="taken"))
        somebody.flush()
        worker.start()
        eventually(begun.is_set)
        with suppress(ShutdownTimeoutError):
            worker.stop()
        with one_more(place, engine, succeed):
            eventually(lambda: not rows(engine, Job))
        somebody.rollback()
    assert (only_archived(engine).status, only_archived(engine).attempts) == ("success", 1)
