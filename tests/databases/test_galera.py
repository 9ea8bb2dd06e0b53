"""Workers on the nodes of a Galera cluster."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Event, Lock, Semaphore, Thread
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, make_url, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Base,
    DatabaseNotReadyError,
    Handlers,
    Job,
    LimitPlace,
    QueueWorker,
    RunningJob,
    enqueue,
    enqueue_unique,
    manage,
    migrate,
)
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker
from sqlalchemy_proletarian.database.error_codes import code_of
from tests.faults.program import LEDGER, STOCK
from tests.integration.support import Log, archived, eventually, queued, rows

from .galera import Node, galera_cluster
from .places import Place

LEASE = timedelta(seconds=3)
SHORT = timedelta(seconds=0.2)
THREADS = Place("mariadb", "mariadb+pymysql", leased=True)
TASKS = Place("mariadb", "mariadb+pymysql", "mariadb+asyncmy", leased=True)


# asyncmy leaves its socket open when it cannot connect.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    with galera_cluster() as nodes:
        admin = create_engine(nodes[0].url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text("CREATE DATABASE app CHARACTER SET utf8mb4"))
        admin.dispose()
        for node in nodes:
            node.url = node.url.set(database="app")
        migrate.upgrade(nodes[0].url)
        engine = create_engine(nodes[0].url)
        LEDGER.metadata.create_all(engine)
        with engine.begin() as connection:  # a cluster needs primary keys
            connection.execute(text("ALTER TABLE ledger ADD id BIGINT AUTO_INCREMENT PRIMARY KEY"))
        engine.dispose()
        yield nodes


@pytest.fixture
def engines(nodes: list[Node]) -> Iterator[list[Engine]]:
    """Yield an engine for each node; reads see what was committed on any node before."""
    engines = [
        create_engine(
            node.url,
            pool_pre_ping=True,
            connect_args={"init_command": "SET SESSION wsrep_sync_wait = 1"},
        )
        for node in nodes
    ]
    with engines[0].begin() as connection:
        for table in (*Base.metadata.sorted_tables, *LEDGER.metadata.sorted_tables):
            connection.execute(table.delete())
        connection.execute(STOCK.insert(), {"name": "hot", "taken": 0})
    eventually(lambda: all(len(rows(engine, Job)) == 0 for engine in engines))
    yield engines
    for engine in engines:
        engine.dispose()
    gc.collect()


def plain(engine: Engine) -> Engine:
    """Return an engine as an application has it, whose reads may be of an older state."""
    return create_engine(engine.url)


def place_of(number: int) -> Place:
    return TASKS if number == 2 else THREADS


class Runs:
    """Handlers that count, in this process, what takes effect in the database."""

    def __init__(self) -> None:
        self.begun: Counter[Any] = Counter()
        self.by_node: Counter[int] = Counter()
        self._lock = Lock()

    def on(self, node: int) -> Handlers:
        handlers = Handlers()

        @handlers("take")
        def take(seconds: float, session: Session, job: Job) -> None:
            """Change a row that every job changes, whatever node it runs on."""
            with self._lock:
                self.begun[job.job_id] += 1
                self.by_node[node] += 1
            one_more = update(STOCK).where(STOCK.c.name == "hot")
            session.execute(one_more.values(taken=STOCK.c.taken + 1))
            session.execute(LEDGER.insert(), {"job_id": job.job_id, "attempt": job.attempts})
            sleep(seconds)

        return handlers


def put(engine: Engine, count: int, seconds: float = 0.0) -> None:
    with Session(engine) as session, session.begin():
        for _ in range(count):
            enqueue(session, "take", seconds)


def check_exact(engine: Engine, count: int) -> None:
    """Check that each job took effect once, and that no attempt and no death was counted."""
    assert not queued(engine)
    assert Counter((j.status, j.attempts, j.deaths) for j in archived(engine)) == {
        ("success", 1, 0): count
    }
    with Session(engine) as session:
        ledger = Counter(session.scalars(select(LEDGER.c.job_id)))
        assert ledger == Counter(job.job_id for job in archived(engine))
        assert session.scalar(select(STOCK.c.taken)) == count
        assert not session.scalars(select(RunningJob)).all()


def errors_of(log: Log) -> list[str]:
    """Return the names of the events that report a problem, without the usual ones."""
    usual = {"worker-starting", "worker-stopping", "worker-stopped", "polling-for-jobs"}
    usual |= {"handling-job", "job-finished", "job-snoozed", "recurring-changed"}
    return [name for name in log.events() if name not in {*usual, "recurring-enqueued"}]


def test_a_worker_without_leases_is_refused(engines: list[Engine]) -> None:
    """The row locks of a transaction concern one node: the message names the remedy."""
    said = r"node of a Galera cluster.*: pass lease=timedelta\(minutes=1\) to the worker"
    put(engines[0], 1)
    worker = QueueWorker(plain(engines[0]), Runs().on(0))
    for call in worker.start, worker.drain:
        with pytest.raises(DatabaseNotReadyError, match=said):
            call()

    async def drain() -> None:
        engine = create_async_engine(engines[0].url.set(drivername="mariadb+asyncmy"))
        try:
            await AsyncQueueWorker(engine, Runs().on(0)).drain()
        finally:
            await engine.dispose()

    with pytest.raises(DatabaseNotReadyError, match=said):
        asyncio.run(drain())
    assert len(queued(engines[1])) == 1


def test_a_conflict_costs_a_retry_and_nothing_else(engines: list[Engine]) -> None:
    """Workers of all nodes claim the same rows, and all jobs change one row."""
    runs, count = Runs(), 45
    put(engines[0], count, 0.02)
    logs = [Log() for _ in engines]
    with ExitStack() as workers:
        for number, engine in enumerate(engines):
            worker = place_of(number).worker(
                plain(engine),
                runs.on(number),
                lease=timedelta(seconds=20),
                threads=2,
                polling_interval=SHORT,
                log=logs[number],
            )
            workers.enter_context(worker)
        eventually(lambda: runs.by_node.keys() == {0, 1, 2})
        with Session(engines[1]) as session:
            eventually(lambda: session.rollback() or manage.running(session))
            assert {run.worker for run in manage.running(session)} == {None}
        eventually(lambda: len(archived(engines[0])) == count, 60)
    check_exact(engines[2], count)
    assert sum(runs.begun.values()) > count, "there was no conflict"
    assert not [name for log in logs for name in errors_of(log)]


def test_limits_apply_to_all_nodes(engines: list[Engine]) -> None:
    running, most, lock = 0, 0, Lock()
    handlers = Handlers()

    @handlers("limited", concurrency=2)
    def limited(payload: Any) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        sleep(0.05)
        with lock:
            running -= 1

    starts: list[float] = []

    @handlers("rated", rate="3/second")
    def rated(payload: Any) -> None:
        starts.append(monotonic())

    with Session(engines[0]) as session, session.begin():
        for _ in range(20):
            enqueue(session, "limited")
        for _ in range(7):
            enqueue(session, "rated")
    logs = [Log() for _ in engines]
    with ExitStack() as workers:
        for number, engine in enumerate(engines):
            worker = place_of(number).worker(
                plain(engine), handlers, threads=3, polling_interval=SHORT, log=logs[number]
            )
            workers.enter_context(worker)
        eventually(lambda: len(archived(engines[0])) == 27, 60)
    assert most == 2
    assert len(starts) == 7
    assert max(sum(first <= at < first + 1 for at in starts) for first in starts) <= 3
    assert {job.attempts for job in archived(engines[0])} == {1}
    assert {place.number for place in rows(engines[1], LimitPlace)} == {0, 1, 2}
    assert not [name for log in logs for name in errors_of(log)]


def test_a_tick_becomes_one_job(engines: list[Engine]) -> None:
    """Each worker looks for ticks at the same times, on a node of its own."""
    handlers = Handlers()

    @handlers.recurring("often", every=timedelta(seconds=1))
    @handlers("tick")
    def tick(payload: Any) -> None: ...

    logs = [Log() for _ in engines]
    with ExitStack() as workers:
        for number, engine in enumerate(engines):
            worker = place_of(number).worker(
                plain(engine), handlers, polling_interval=SHORT, log=logs[number]
            )
            workers.enter_context(worker)
        eventually(lambda: len(archived(engines[0])) >= 3)
    keys = [job.unique_key for job in (*archived(engines[1]), *queued(engines[1]))]
    assert len(set(keys)) == len(keys) >= 3
    reported = [name for log in logs for name in log.events()].count("recurring-enqueued")
    assert reported == len(keys)
    assert not [name for log in logs for name in errors_of(log)]


def test_a_key_is_unique_in_the_cluster(engines: list[Engine]) -> None:
    """Of two producers that commit the same key at once, one gets the error of a deadlock."""
    inserted = Barrier(2)
    outcomes: list[str] = []

    def produce(engine: Engine) -> None:
        with Session(engine) as session:
            enqueue_unique(session, "take", 0.0, unique_key="one")
            inserted.wait(30)
            try:
                session.commit()
            except OperationalError as error:
                outcomes.append(str(code_of(error)))
            else:
                outcomes.append("committed")

    threads = [Thread(target=produce, args=(plain(engine),)) for engine in engines[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["1213", "committed"]
    assert [job.unique_key for job in queued(engines[2])] == ["one"]
    with Session(engines[1]) as session, session.begin():
        assert not enqueue_unique(session, "take", 0.0, unique_key="one").created


def test_a_node_that_is_cut_off(nodes: list[Node], engines: list[Engine]) -> None:
    """Jobs that run there are undone, their workers wait, and no attempt is counted."""
    runs = Runs()
    waiting, going = Semaphore(0), Event()

    def on(node: int) -> Handlers:
        handlers = runs.on(node)

        @handlers("late")
        def late(payload: Any, session: Session, job: Job) -> None:
            runs.begun[job.job_id] += 1
            waiting.release()
            going.wait(30)
            session.execute(update(STOCK).values(taken=STOCK.c.taken + 1))
            session.execute(LEDGER.insert(), {"job_id": job.job_id, "attempt": job.attempts})

        return handlers

    logs = [Log(), Log()]
    with ExitStack() as workers:
        for place, log in zip((THREADS, TASKS), logs, strict=True):
            options = {"polling_interval": SHORT, "log": log, "lease": timedelta(seconds=60)}
            workers.enter_context(place.worker(plain(engines[1]), on(1), **options))
        with Session(engines[0]) as session, session.begin():
            for _ in logs:
                enqueue(session, "late")
        for _ in logs:
            assert waiting.acquire(timeout=30)
        nodes[1].isolate()
        try:
            eventually(lambda: not nodes[1].is_ready(), 60)
            going.set()
            eventually(lambda: all("polling-error" in log.events() for log in logs))
            assert len(queued(engines[0])) == 2
        finally:
            nodes[1].rejoin()
            eventually(nodes[1].is_ready, 60)
        eventually(lambda: len(archived(engines[0])) == 2, 60)
    check_exact(engines[0], 2)
    assert set(runs.begun.values()) == {2}


def test_a_killed_node(nodes: list[Node], engines: list[Engine]) -> None:
    """Jobs of its worker continue on others when their leases expire; it comes back by itself."""
    runs, count = Runs(), 30
    with ExitStack() as workers:
        for number, engine in enumerate(engines):
            worker = place_of(number).worker(
                plain(engine), runs.on(number), polling_interval=SHORT, lease=LEASE
            )
            workers.enter_context(worker)
        put(engines[0], count, 0.05)
        eventually(lambda: runs.by_node[1] > 0)
        nodes[1].kill()
        try:
            eventually(lambda: len(archived(engines[0])) >= count - 1, 60)
        finally:
            nodes[1].start()
        before = runs.by_node[1]
        eventually(lambda: len(archived(engines[0])) == count, 60)

        def is_back() -> bool:
            nonlocal count
            put(engines[0], 1, 0.05)
            count += 1
            sleep(0.1)
            return runs.by_node[1] > before

        eventually(is_back, 60)
        eventually(lambda: len(archived(engines[0])) == count, 60)
    jobs = archived(engines[2])
    assert {(job.status, job.attempts) for job in jobs} == {("success", 1)}
    with Session(engines[2]) as session:
        assert session.scalar(select(STOCK.c.taken)) == count
        assert session.scalar(select(func.count()).select_from(LEDGER)) == count


def test_a_killed_worker(engines: list[Engine], tmp_path: Path) -> None:
    """Its job runs again on another node when its lease has expired, and one death is counted."""
    put(engines[0], 1)
    begun = tmp_path / "begun"
    url = engines[0].url.render_as_string(hide_password=False)
    with subprocess.Popen([sys.executable, "-m", __name__, url, str(begun)]) as process:
        try:
            eventually(begun.exists)
        finally:
            process.kill()
    with THREADS.worker(plain(engines[1]), Runs().on(1), polling_interval=SHORT):
        eventually(lambda: archived(engines[1]))
    (job,) = archived(engines[0])
    assert (job.status, job.attempts, job.deaths) == ("success", 1, 1)
    with Session(engines[0]) as session:
        assert session.scalar(select(STOCK.c.taken)) == 1


def main(url: str, begun: str) -> None:
    """Run a job that writes and never ends, in a separate process."""
    handlers = Handlers()

    @handlers("take")
    def take(payload: Any, session: Session, job: Job) -> None:
        session.execute(update(STOCK).values(taken=STOCK.c.taken + 1))
        Path(begun).touch()
        sleep(600)

    QueueWorker(create_engine(make_url(url)), handlers, lease=LEASE).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
