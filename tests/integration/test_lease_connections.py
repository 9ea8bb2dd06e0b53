"""Lost connections in lease mode: no job is lost or takes effect twice, no attempt is counted."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Barrier, Event
from time import sleep
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, func, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker, RunningJob, enqueue_many
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

from .kinds import Kind, WorkerInALoop, inner, leases
from .support import (
    MINUTE,
    SECOND,
    Log,
    Note,
    archived,
    eventually,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
)

SHORT = 0.9 * SECOND


def cut(engine: Engine, name: str) -> int:
    """Terminate the connections that hold a worker's leases; return their number."""
    named = text(
        "SELECT pid FROM pg_stat_activity"
        " WHERE application_name LIKE :name AND application_name NOT LIKE '%listening'"
    )
    with engine.connect() as connection:
        pids = connection.scalars(named, {"name": f"{name} %"}).all()
    return sum(end_backend(engine, pid) for pid in pids)


def end_backend(engine: Engine, pid: int) -> bool:
    """Terminate a connection and wait until it is closed; return whether it existed."""
    # pg_terminate_backend cannot wait before PostgreSQL 14.
    remains = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        was_there = bool(connection.scalar(select(func.pg_terminate_backend(pid))))
        eventually(lambda: not connection.scalar(remains, {"pid": pid}))
    return was_there


@contextmanager
def separate_engine(shop: Engine) -> Iterator[Engine]:
    """Yield a separate engine for the worker, so that the test's engine is not affected."""
    engine = create_engine(shop.url)
    yield engine
    engine.dispose()


class ConnectionLoss:
    """Terminates the worker's connection once.

    :param statement: a pattern of the statement concerned.
    :param when: "before" the statement, "at commit" of its transaction, or "after commit", when
        the server has committed but the worker does not know it yet.
    """

    def __init__(self, engine: Engine, cut: Callable[[], int], statement: str, when: str) -> None:
        self.happened = False
        self._cut = cut
        self._statement = re.compile(statement)
        self._when = when
        self._connection: Any = None
        event.listen(engine, "before_cursor_execute", self._before)
        event.listen(engine, "commit", self._at_commit)
        self._commit = engine.dialect.do_commit
        engine.dialect.do_commit = self._after_commit  # type: ignore[method-assign]

    def _before(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if self.happened or not self._statement.search(statement):
            return
        if self._when == "before":
            self.happened = self._cut() > 0
        else:
            self._connection = connection.connection.dbapi_connection

    def _at_commit(self, connection: Any) -> None:
        mine = connection.connection.dbapi_connection is self._connection
        if mine and self._when == "at commit" and not self.happened:
            self.happened = self._cut() > 0

    def _after_commit(self, pooled: Any) -> None:
        self._commit(pooled)
        mine = pooled.dbapi_connection is self._connection
        if mine and self._when == "after commit" and not self.happened:
            self.happened = self._cut() > 0
            pooled.cursor().execute("SELECT 1")  # fails, as the commit would


CLAIM, LEASE, SETTLE = (
    r"LATERAL",
    r"^UPDATE proletarian.job SET .*lease_id=(?!NULL)",
    r"archived_job",
)


@leases
@pytest.mark.parametrize(
    ("statement", "when", "writes"),
    [
        (CLAIM, "before", False),
        (CLAIM, "at commit", True),
        (CLAIM, "after commit", True),
        (LEASE, "before", True),
        (SETTLE, "before", False),
        (SETTLE, "at commit", False),
        (SETTLE, "after commit", False),
    ],
    ids=str,
)
def test_a_connection_lost_during_a_poll(
    shop: Engine, kind: Kind, statement: str, when: str, *, writes: bool
) -> None:
    """Whenever the connection is lost, each job takes effect once and on its first attempt."""
    handlers = Handlers()
    runs: Counter[int] = Counter()
    if writes:

        @handlers("job")
        def write(payload: int, session: Session) -> None:
            runs[payload] += 1
            session.add(Note(text=str(payload)))

    else:

        @handlers("job")
        def count(payload: int) -> None:
            runs[payload] += 1

    with Session(shop) as session, session.begin():
        enqueue_many(session, [("job", n) for n in range(6)])
    log = Log()
    with separate_engine(shop) as engine:
        worker = kind.worker(engine, handlers, threads=3, name="cut", log=log, lease=2 * SECOND)
        loss = ConnectionLoss(inner(worker, engine), lambda: cut(shop, "cut"), statement, when)
        with worker:
            eventually(lambda: not queued(shop))
    assert loss.happened
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert len(archived(shop)) == 6
    assert runs == Counter(range(6))
    assert sorted(notes(shop)) == ([str(n) for n in range(6)] if writes else [])
    assert rows(shop, RunningJob) == []


@leases
def test_a_connection_lost_between_polls(shop: Engine, kind: Kind) -> None:
    """Losing the connection that holds the leases does not affect running handlers."""
    handlers = Handlers()
    runs: list[int] = []
    running = Event()

    @handlers("long")
    def long(payload: Any, session: Session) -> None:
        runs.append(1)
        session.add(Note(text="long"))
        session.flush()
        running.set()
        sleep(1.2 * SHORT.total_seconds())

    put(shop, "long")
    with kind.worker(shop, handlers, name="cut", lease=SHORT):
        assert running.wait(25)
        assert cut(shop, "cut") == 1
        eventually(lambda: archived(shop))
    assert runs == [1]
    assert notes(shop) == ["long"]
    assert only_archived(shop).attempts == 1
    assert rows(shop, RunningJob) == []


@leases
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_handler_session_that_loses_its_connection(
    shop: Engine, kind: Kind, wrapped: bool
) -> None:
    """The job runs again, and the interrupted attempt is not counted."""
    handlers = Handlers()
    runs: list[str] = []

    @handlers("write", retry={"retries": 0})
    def write(payload: Any, session: Session) -> None:
        runs.append("begins")
        session.add(Note(text="written"))
        session.flush()
        if len(runs) == 1:
            pid = session.scalar(select(func.pg_backend_pid()))
            end_backend(shop, pid)
            try:
                session.execute(text("SELECT 1"))
            except Exception as error:
                if wrapped:
                    raise LookupError("nothing there") from error
                raise

    put(shop, "write")
    log = Log()
    with kind.worker(shop, handlers, log=log):
        eventually(lambda: archived(shop))
    assert runs == ["begins", "begins"]
    assert log.events().count("polling-error") == 1
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
    assert notes(shop) == ["written"]


@leases
def test_a_connection_lost_at_the_handlers_commit(shop: Engine, kind: Kind) -> None:
    """A connection lost just before the handler's commit does not use up an attempt."""
    handlers = Handlers()
    runs: list[int] = []
    pids: list[int] = []

    @handlers("write", retry={"retries": 0})
    def write(payload: Any, session: Session) -> None:
        runs.append(1)
        session.add(Note(text="written"))
        if len(runs) == 1:
            pids.append(session.scalar(select(func.pg_backend_pid())))

    put(shop, "write")
    with separate_engine(shop) as engine:
        worker = kind.worker(engine, handlers)
        statement = "INSERT INTO proletarian.archived_job"
        ConnectionLoss(
            inner(worker, engine), lambda: end_backend(shop, pids[0]), statement, "at commit"
        )
        with worker:
            eventually(lambda: archived(shop))
    assert runs == [1, 1]
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
    assert notes(shop) == ["written"]


@leases
def test_leases_are_extended_while_the_pool_is_exhausted(shop: Engine, kind: Kind) -> None:
    """A worker extends its leases even if sessions use every connection of the pool."""
    handlers = Handlers()
    running, release = Barrier(3), Event()

    @handlers("hold")
    def hold(payload: Any, session: Session) -> None:
        session.execute(text("SELECT 1"))
        running.wait(25)
        assert release.wait(20)

    for _ in range(2):
        put(shop, "hold")
    options: Any = {"name": "cut", "lease": SHORT}
    with pool_of_two(shop, kind, handlers, **options):
        running.wait(25)
        assert cut(shop, "cut") == 1
        before = max(job.process_at for job in queued(shop))
        try:
            eventually(lambda: min(job.process_at for job in queued(shop)) > before)
        finally:
            release.set()
        eventually(lambda: not queued(shop))
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}


@contextmanager
def pool_of_two(shop: Engine, kind: Kind, handlers: Handlers, **options: Any) -> Iterator[Any]:
    """Yield a worker for two concurrent jobs, whose engine has at most two connections."""
    pool: Any = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 1}
    if kind.driver is None:
        engine = create_engine(shop.url, **pool)
        with QueueWorker(engine, handlers, threads=2, **options) as worker:
            yield worker
        engine.dispose()
        return
    url = shop.url.set(drivername=f"postgresql+{kind.driver}")
    async_engine = create_async_engine(url, **pool)
    in_a_loop = WorkerInALoop.__new__(WorkerInALoop)
    in_a_loop._engine = async_engine
    in_a_loop._worker = AsyncQueueWorker(async_engine, handlers, concurrency=2, **options)
    with in_a_loop:
        yield in_a_loop


@leases
def test_a_pool_timeout_does_not_count_an_attempt(shop: Engine, kind: Kind) -> None:
    """If the pool times out, the job waits and no attempt is counted."""
    handlers = Handlers()
    held, release = Event(), Event()

    @handlers("write", retry={"retries": 0})
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="written"))
        session.flush()
        held.set()
        assert release.wait(20)

    log = Log()
    for _ in range(2):
        put(shop, "write")
    pool: Any = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.3}

    async def main() -> None:
        url = shop.url.set(drivername=f"postgresql+{kind.driver}")
        engine = create_async_engine(url, **pool)
        async with AsyncQueueWorker(engine, handlers, concurrency=2, lease=MINUTE, log=log):
            await asyncio.to_thread(finish)
        await engine.dispose()

    def finish() -> None:
        assert held.wait(25)
        eventually(lambda: "polling-error" in log.events())
        release.set()
        eventually(lambda: not queued(shop))

    if kind.driver is None:
        engine = create_engine(shop.url, **pool)
        with QueueWorker(engine, handlers, threads=2, lease=MINUTE, log=log):
            finish()
        engine.dispose()
    else:
        asyncio.run(main())
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert notes(shop) == ["written", "written"]


@contextmanager
def unreachable(server: URL, database: str | None) -> Iterator[None]:
    """Reject new connections to a database and terminate the existing ones."""
    admin = create_engine(server, isolation_level="AUTOCOMMIT")

    def allow(answer: str) -> None:
        with admin.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {database} ALLOW_CONNECTIONS {answer}"))

    allow("false")
    try:
        with admin.connect() as connection:
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            connection.execute(text(end), {"name": database})
        yield
    finally:
        allow("true")
        admin.dispose()


@leases
def test_workers_continue_after_an_outage_longer_than_the_lease(
    shop: Engine, server_url: URL, kind: Kind
) -> None:
    """After an outage longer than the lease, the same workers continue the jobs they run."""
    handlers = Handlers()
    runs: Counter[int] = Counter()
    running, release = Barrier(3), Event()

    @handlers("long", retry={"retries": 0})
    def long(payload: int) -> None:
        runs[payload] += 1
        if runs[payload] == 1:
            running.wait(25)
        assert release.wait(20)

    for n in range(2):
        put(shop, "long", n)
    options: Any = {"lease": SHORT, "polling_interval": SECOND / 10}
    with kind.worker(shop, handlers, **options), kind.worker(shop, handlers, **options):
        running.wait(25)  # one job each
        with unreachable(server_url, shop.url.database):
            sleep(1.5 * SHORT.total_seconds())
        sleep(0.3)  # the first worker that reconnects finds the other's lease expired
        release.set()
        eventually(lambda: not reachable_queue(shop))
    assert runs == {0: 1, 1: 1}
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert rows(shop, RunningJob) == []


def reachable_queue(engine: Engine) -> list[Any]:
    """Return the queued jobs; a failure removes a connection that the outage closed."""
    try:
        return queued(engine)
    except Exception:
        return [None]


@leases
def test_a_worker_takes_over_jobs_some_time_after_an_outage(
    shop: Engine, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After losing its connection, a worker waits before it takes jobs of disconnected workers."""
    monkeypatch.setattr("sqlalchemy_proletarian.execution.lease.runner.RECONNECT_TIME", 3.0)
    seen: list[int] = []

    def handler(job_type: str, payload: Any) -> None:
        seen.append(payload)

    with kind.worker(shop, handler, name="cut", polling_interval=SECOND / 10):
        put(shop, "job", 1)
        eventually(lambda: seen == [1])
        assert cut(shop, "cut") == 1
        with shop.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO proletarian.running (job_id, worker, batch_size, started_at)"
                    " VALUES ('00000000-0000-0000-0000-000000000001', 'disconnected', 9,"
                    " clock_timestamp())"
                )
            )
            connection.execute(
                text(
                    "INSERT INTO proletarian.job (job_id, queue, job_type, payload, attempts,"
                    " enqueued_at, process_at, lease_id)"
                    " VALUES ('00000000-0000-0000-0000-000000000001',"
                    " 'default', 'job', '2', 0, now(), clock_timestamp(), gen_random_uuid())"
                )
            )
        put(shop, "job", 3)
        eventually(lambda: 3 in seen)
        eventually(lambda: len(archived(shop)) == 2)
        assert seen == [1, 3]
        assert only_queued(shop).attempts == 0
        eventually(lambda: len(archived(shop)) == 3)
    assert seen == [1, 3, 2]
    assert {job.attempts for job in archived(shop)} == {1}
    assert rows(shop, RunningJob) == []
