"""Workers and producers behind PgBouncer, and what their sessions leave to its other clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    PoolerError,
    QueueWorker,
    RunningJob,
    enqueue,
    enqueue_many,
    manage,
)
from tests.databases.bouncer import Bouncer, bouncer
from tests.integration.kinds import WorkerInALoop

from .fleet import Fleet, Kind, attempts, audit, await_empty, put, until
from .program import ENTER, LEDGER, POOLED, entry
from .sites import Site

FIT: Any = {"notify": False, "running_job_model": None}
LEASE = timedelta(seconds=30)
KINDS = [
    pytest.param(
        driver, in_a_loop, lease, id=f"{driver}-{'asyncio' if in_a_loop else 'threads'}-{held}"
    )
    for driver, in_a_loop in (("psycopg", False), ("psycopg", True), ("asyncpg", True))
    for held, lease in (("transaction", None), ("lease", LEASE))
]
SESSIONS = 4
"""How many sessions of the server the PgBouncer with transaction pooling has."""


@pytest.fixture(scope="module")
def transactions(_sites: Callable[[str], Site]) -> Iterator[Bouncer]:
    """A PgBouncer with transaction pooling."""
    with bouncer(_sites("postgresql").url, "transaction", pool_size=SESSIONS) as started:
        yield started


@pytest.fixture(scope="module")
def sessions(_sites: Callable[[str], Site]) -> Iterator[Bouncer]:
    """A PgBouncer with session pooling."""
    with bouncer(_sites("postgresql").url, "session") as started:
        yield started


@contextmanager
def engine_on(pooler: Bouncer, driver: str = "psycopg", **options: Any) -> Iterator[Engine]:
    """Yield an engine whose driver prepares no statements."""
    url = pooler.url.set(drivername=f"postgresql+{driver}")
    engine = create_engine(url, **{"connect_args": POOLED.get(driver, {}), **options})
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def worker_on(
    pooler: Bouncer, driver: str, handlers: Handlers, *, in_a_loop: bool, **options: Any
) -> Iterator[QueueWorker | WorkerInALoop]:
    """Yield a worker behind the pooler that is not started; stop it afterwards."""
    url = pooler.url.set(drivername=f"postgresql+{driver}")
    worker: QueueWorker | WorkerInALoop
    if in_a_loop:
        engine = create_async_engine(url, connect_args=POOLED[driver])
        worker = WorkerInALoop(async_sessionmaker(engine), handlers, **options)
        yield worker
        if worker._core.pool is not None:
            worker.stop()
        return
    with engine_on(pooler, driver) as plain:
        worker = QueueWorker(plain, handlers, **options)
        yield worker
        worker.stop()


def ledger_handlers(*, in_a_loop: bool) -> Handlers:
    """Return handlers of which one writes to the ledger, and fails for some payloads."""
    handlers = Handlers()
    if in_a_loop:

        @handlers("note", retry={"retries": 1})
        async def note_in_a_loop(payload: int, session: AsyncSession, job: Job) -> None:
            await session.execute(ENTER, entry(job))
            if payload % 10 == 0 and job.attempts == 1:
                raise ValueError(payload)
    else:

        @handlers("note", retry={"retries": 1})
        def note(payload: int, session: Session, job: Job) -> None:
            session.execute(ENTER, entry(job))
            if payload % 10 == 0 and job.attempts == 1:
                raise ValueError(payload)

    return handlers


def left_in_sessions(pooler: Bouncer, count: int) -> list[Any]:
    """Return what clients find in the sessions of the server that differs from a new one."""
    found: list[Any] = []
    with ExitStack() as stack:
        engine = stack.enter_context(engine_on(pooler, poolclass=NullPool))
        connections = [stack.enter_context(engine.connect()) for _ in range(count)]
        pids = set()
        for connection in connections:  # each one has a transaction, so each one has a session
            pids.add(connection.scalar(text("SELECT pg_backend_pid()")))
            found += connection.execute(_SETTINGS).all()
            found += connection.execute(_PREPARED).all()
            found += connection.execute(_LISTENING).all()
            found += connection.execute(_LOCKS).all()
        assert len(pids) == count
    return found


# PgBouncer sets the encoding and the name as each of its clients has them.
_SETTINGS = text(
    "SELECT name, setting FROM pg_settings WHERE source = 'session' AND setting <> reset_val "
    "AND name NOT IN ('client_encoding', 'application_name')"
)
_PREPARED = text("SELECT name, statement FROM pg_prepared_statements WHERE name <> ''")
_LISTENING = text("SELECT pg_listening_channels()")
_LOCKS = text("SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")


@contextmanager
def other_clients(pooler: Bouncer) -> Iterator[None]:
    """Let other clients use the sessions of the server in the block, so that they change hands."""
    over = Event()

    def use(engine: Engine) -> None:
        while not over.wait(0.001):
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_sleep(0.001)"))

    with engine_on(pooler) as engine:
        threads = [Thread(target=use, args=[engine]) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize(("driver", "in_a_loop", "lease"), KINDS)
def test_every_job_takes_effect_once_behind_transaction_pooling_and_no_setting_stays(
    transactions: Bouncer, engine: Engine, driver: str, in_a_loop: bool, lease: timedelta | None
) -> None:
    ids = put(engine, [("note", n) for n in range(100)])
    assert left_in_sessions(transactions, SESSIONS) == []
    handlers = ledger_handlers(in_a_loop=in_a_loop)
    options: Any = {"batch_size": 5, "lease": lease}
    options["concurrency" if in_a_loop else "threads"] = 3
    with (
        worker_on(transactions, driver, handlers, in_a_loop=in_a_loop, **options, **FIT) as worker,
        other_clients(transactions),
    ):
        worker.start()
        await_empty(engine, 30)
    with Session(engine) as session:
        noted = session.scalars(select(LEDGER.c.job_id)).all()
        done = session.execute(select(ArchivedJob.status, func.count()).group_by("status")).all()
    assert sorted(noted) == sorted(ids)
    assert done == [("success", 100)]
    assert left_in_sessions(transactions, SESSIONS) == []


def test_services_of_a_worker_leave_nothing_in_sessions(
    transactions: Bouncer, engine: Engine
) -> None:
    """Recurring jobs, pruning, limits and the health check, in transaction mode."""
    handlers = Handlers()
    ran = Event()

    @handlers("limited", rate="100/second")
    def limited(payload: None) -> None:
        pass

    @handlers.recurring("often", every=timedelta(seconds=1))
    def tick(payload: None) -> None:
        ran.set()

    put(engine, [("limited", None)] * 5)
    options: Any = {"threads": 2, "archive_retention": timedelta(days=1)}
    with (
        worker_on(transactions, "psycopg", handlers, in_a_loop=False, **options, **FIT) as worker,
        other_clients(transactions),
    ):
        worker.start()
        assert ran.wait(10)
        until(lambda: worker.health().ready, 10)
        await_empty(engine, 10)
    assert left_in_sessions(transactions, SESSIONS) == []


@pytest.mark.parametrize("lease", [None, LEASE], ids=["transaction", "lease"])
@pytest.mark.parametrize("in_a_loop", [False, True], ids=["threads", "asyncio"])
def test_a_worker_with_its_defaults_is_refused_with_the_options_to_set(
    transactions: Bouncer, engine: Engine, lease: timedelta | None, in_a_loop: bool
) -> None:
    del engine
    handlers = ledger_handlers(in_a_loop=in_a_loop)
    with (
        worker_on(transactions, "psycopg", handlers, in_a_loop=in_a_loop, lease=lease) as worker,
        pytest.raises(PoolerError) as refused,
    ):
        worker.start()
    assert "transaction pooling" in str(refused.value)
    assert "cannot use LISTEN and running markers" in str(refused.value)
    assert "notify=False, running_job_model=None" in str(refused.value)
    assert left_in_sessions(transactions, SESSIONS) == []


def test_prepared_statements_of_psycopg_are_refused(transactions: Bouncer, engine: Engine) -> None:
    del engine
    with engine_on(transactions, connect_args={}) as prepares:
        worker = QueueWorker(prepares, Handlers(), lease=LEASE, **FIT)
        with pytest.raises(PoolerError, match=r'connect_args=\{"prepare_threshold": None\}'):
            worker.start()
        with pytest.raises(
            PoolerError, match=r"LISTEN .* prepared statements .*notify=False.*None"
        ):
            QueueWorker(prepares, Handlers()).start()
    assert left_in_sessions(transactions, SESSIONS) == []


def test_prepared_statements_of_asyncpg_are_refused(transactions: Bouncer, engine: Engine) -> None:
    del engine
    url = transactions.url.set(drivername="postgresql+asyncpg")
    prepares = create_async_engine(url)
    worker = WorkerInALoop(async_sessionmaker(prepares), Handlers(), lease=LEASE, **FIT)
    with pytest.raises(PoolerError, match="prepared_statement_name_func"):
        worker.start()


def test_an_engine_that_collides_names_the_remedy_to_producers(
    transactions: Bouncer, engine: Engine
) -> None:
    del engine
    prepares: Any = {"connect_args": {"prepare_threshold": 0}}
    with (
        engine_on(transactions, **prepares) as one,
        engine_on(transactions, **prepares) as other,
        one.connect() as connection,
    ):
        enqueue(connection, "note", 1)
        connection.commit()
        other.connect().close()
        with pytest.raises(PoolerError, match=r"does not exist: .*prepare_threshold"):
            enqueue(connection, "note", 2)


def test_a_worker_that_starts_before_its_pooler_is_refused_later(
    transactions: Bouncer, engine: Engine
) -> None:
    put(engine, [("note", 1)])
    transactions.kill()
    errors: list[BaseException] = []
    try:
        with worker_on(
            transactions,
            "psycopg",
            ledger_handlers(in_a_loop=False),
            in_a_loop=False,
            on_polling_error=errors.append,
        ) as worker:
            worker.start()
            transactions.start()
            until(lambda: any(isinstance(error, PoolerError) for error in errors), 20)
    finally:
        if not transactions.running():
            transactions.start()
    assert attempts(engine) == {}
    assert left_in_sessions(transactions, SESSIONS) == []


@pytest.mark.parametrize("pooling", ["transactions", "sessions"])
def test_a_producer_behind_a_pooler_wakes_a_worker_on_a_direct_connection(
    pooling: str, request: pytest.FixtureRequest, engine: Engine
) -> None:
    pooler: Bouncer = request.getfixturevalue(pooling)
    idle = Event()

    def log(name: str, about: object) -> None:
        if name == "polling-for-jobs":
            idle.set()

    patient: Any = {"polling_interval": timedelta(minutes=5), "log": log}
    with (
        engine_on(pooler) as producer,
        QueueWorker(engine, ledger_handlers(in_a_loop=False), **patient) as worker,
    ):
        assert idle.wait(10)
        until(lambda: worker._core.pool.listener.active, 10)
        sleep(1.5)  # it looks a few more times by itself when it becomes idle
        with Session(producer) as session, session.begin():
            enqueue(session, "note", 1)
        assert await_empty(engine, 10) < 2
    if pooling == "transactions":
        assert left_in_sessions(pooler, SESSIONS) == []


@pytest.mark.parametrize(("driver", "in_a_loop", "lease"), KINDS)
def test_everything_works_behind_session_pooling(
    sessions: Bouncer, engine: Engine, driver: str, in_a_loop: bool, lease: timedelta | None
) -> None:
    """The markers, LISTEN, and the wake-up; then other clients get sessions as new."""
    handlers = ledger_handlers(in_a_loop=in_a_loop)
    may_end, marked = Event(), Event()

    @handlers("slow")
    def slow(payload: None, job: Job) -> None:
        with Session(engine) as session:
            if session.get(RunningJob, job.job_id) is not None:
                marked.set()
        may_end.wait(10)

    patient: Any = {"polling_interval": timedelta(minutes=5), "lease": lease}
    with (
        engine_on(sessions) as producer,
        worker_on(sessions, driver, handlers, in_a_loop=in_a_loop, **patient) as worker,
    ):
        worker.start()
        until(lambda: worker._core.pool.listener.active, 10)
        sleep(1.5)
        with Session(producer) as session, session.begin():
            enqueue(session, "slow")
            enqueue_many(session, [("note", n) for n in range(1, 10)])
        assert marked.wait(2)
        may_end.set()
        await_empty(engine, 10)
    assert left_in_sessions(sessions, 8) == []


def test_waiting_for_a_result_behind_transaction_pooling(
    transactions: Bouncer, engine: Engine
) -> None:
    handlers = Handlers()

    @handlers("double", keep_result=True)
    def double(payload: int) -> int:
        return 2 * payload

    with (
        engine_on(transactions) as behind,
        worker_on(transactions, "psycopg", handlers, in_a_loop=False, lease=LEASE, **FIT) as worker,
        other_clients(transactions),
    ):
        with Session(behind) as session, session.begin():
            job = double.enqueue(session, 21)
            job_id = job.job_id
        worker.start()
        with Session(behind) as session:
            assert manage.wait_for(session, job_id, timeout=timedelta(seconds=10)).value == 42
    assert left_in_sessions(transactions, SESSIONS) == []


def test_a_direct_connection_costs_no_more(engine: Engine) -> None:
    """The worker opens no connection to find out that there is no pooler."""
    opened: list[Any] = []
    event.listen(engine, "connect", lambda *about: opened.append(about))
    engine.dispose()
    with QueueWorker(engine, Handlers(), lease=LEASE, **FIT):
        sleep(0.5)
    assert len(opened) == 2  # one to check the tables, and its own


BEHIND = [Kind("threads", 2.0), Kind("asyncio", 2.0), Kind("asyncio", 2.0, "asyncpg")]


def test_no_job_is_lost_when_the_pooler_is_killed_under_load(
    transactions: Bouncer, workers: Fleet, engine: Engine
) -> None:
    ids = put(engine, [("effect", 0.002)] * 1000)
    for kind in (*BEHIND, Kind("threads", None)):
        workers.start(kind, "--pooled", url=transactions.url)
    for size in (60, 400):
        until(lambda size=size: len(attempts(engine)) > size, 30)
        transactions.kill()
        sleep(0.3)
        transactions.start()
    await_empty(engine, 60)
    assert workers.stop() == [0] * 4
    audit(engine, ids, workers.effects_by_job())
    assert left_in_sessions(transactions, SESSIONS) == []


@pytest.mark.parametrize("kind", [*BEHIND, Kind("threads", None)], ids=lambda k: k.queue)
def test_the_jobs_of_a_killed_worker_come_back(
    transactions: Bouncer, workers: Fleet, engine: Engine, kind: Kind
) -> None:
    ids = put(engine, [("effect", 60.0)])
    victim = workers.start(kind, "--pooled", url=transactions.url)
    until(workers.begun, 20)
    workers.kill(victim)
    with engine.begin() as connection:  # the next run takes no time
        # A lock of the killed worker would block this.
        connection.execute(text("UPDATE proletarian.job SET payload = '0'"))
    started = monotonic()
    workers.start(kind, "--pooled", url=transactions.url)
    await_empty(engine, 30)
    assert monotonic() - started < 15
    assert workers.stop() == [0]
    audit(engine, ids, workers.effects_by_job())
