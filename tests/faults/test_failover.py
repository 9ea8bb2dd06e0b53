"""A primary that fails or is switched, with clients whose URL names both servers."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    URL,
    Engine,
    NullPool,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    QueueWorker,
    ReadOnlyDatabaseError,
    enqueue,
    enqueue_many,
    manage,
    migrate,
    utcnow,
)
from sqlalchemy_proletarian import asyncio as awaitable
from sqlalchemy_proletarian.database import connections
from tests.acceptance.cli_runs import cli, succeeds
from tests.dashboard.site import Visitor
from tests.integration.support import put as put_one

from .fleet import EACH, Fleet, Kind, attempts, audit, await_empty, fleet, until
from .program import ACCOUNT, LEDGER
from .server import Server, Standby, own_server, standby_of

FOLLOWED = 20.0
"""Seconds within which each worker has run a job after the promotion."""

KINDS = [*EACH, Kind("threads", None, "psycopg2")]

WALSENDER = "SELECT count(*) FROM pg_stat_replication WHERE {}"


@dataclass
class Producer:
    """An application that enqueues a job with each row that it writes."""

    engine: Engine
    kinds: Sequence[Kind]
    acknowledged: set[UUID] = field(default_factory=set)
    stopped: Event = field(default_factory=Event)

    def work(self) -> None:
        """Enqueue until ``stopped`` is set."""
        while not self.stopped.wait(0.02):
            ids: set[UUID] = set()
            try:
                with Session(self.engine) as session, session.begin():
                    for kind in self.kinds:
                        job = enqueue(session, "effect", 0.01, queue=kind.queue)
                        session.execute(insert(ACCOUNT), {"name": str(job.job_id), "bookings": 0})
                        ids.add(job.job_id)
            except DBAPIError:
                sleep(0.05)
            else:
                self.acknowledged |= ids


@contextmanager
def producing(engine: Engine, kinds: Sequence[Kind]) -> Iterator[Producer]:
    """Run an application in the background."""
    producer = Producer(engine, kinds)
    thread = Thread(target=producer.work)
    thread.start()
    try:
        yield producer
    finally:
        producer.stopped.set()
        thread.join()


@dataclass
class Pair:
    """A primary and its standby, and what connects to whichever of them takes writes."""

    primary: Server
    standby: Standby
    url: URL
    engine: Engine
    workers: Fleet

    def replicated(self, condition: str = "state = 'streaming'") -> None:
        """Wait until the standby receives what the primary writes."""
        with self.admin() as connection:
            until(lambda: connection.scalar(text(WALSENDER.format(condition))), 30)

    @contextmanager
    def admin(self) -> Iterator[Any]:
        engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield connection


@pytest.fixture
def pair(tmp_path: Path, seed: int) -> Iterator[Pair]:
    with own_server() as primary:
        migrate.upgrade(primary.url())
        with standby_of(primary) as standby:
            # As in SQLAlchemy's documentation; the driver asks each server what it is.
            hosts = [f"127.0.0.1:{server.port}" for server in (primary, standby)]
            query = {"host": hosts, "target_session_attrs": "read-write"}
            url = URL.create("postgresql+psycopg", "postgres", database="postgres", query=query)
            engine = create_engine(url, poolclass=NullPool)
            LEDGER.metadata.create_all(engine)
            with fleet(url, KINDS, tmp_path, seed) as workers:
                yield Pair(primary, standby, url, engine, workers)


def done(engine: Engine) -> Counter[str]:
    """Return the number of archived jobs by queue; nothing while no server takes writes."""
    count = select(ArchivedJob.queue, func.count()).group_by(ArchivedJob.queue)
    try:
        with engine.connect() as connection:
            return Counter(dict(connection.execute(count).all()))  # type: ignore[arg-type]
    except DBAPIError:
        return Counter()


def start_all(pair: Pair) -> None:
    for kind in pair.workers.kinds:
        pair.workers.start(kind, "--queue", kind.queue, *(["--lease", "5"] if kind.lease else []))
    until(lambda: done(pair.engine).keys() >= {kind.queue for kind in KINDS}, 30)


def followed(pair: Pair, before: Counter[str], since: float) -> dict[Kind, float]:
    """Wait until each worker has run another job; return the seconds that this took."""
    seconds: dict[Kind, float] = {}

    def all_have() -> bool:
        now = done(pair.engine)
        for kind in pair.workers.kinds:
            if now[kind.queue] > before[kind.queue]:
                seconds.setdefault(kind, monotonic() - since)
        return len(seconds) == len(pair.workers.kinds)

    until(all_have, FOLLOWED)
    return seconds


def check(pair: Pair, acknowledged: set[UUID]) -> None:
    """Check that what the producer wrote, the jobs and their effects agree."""
    await_empty(pair.engine, 60)
    assert pair.workers.stop() == [0] * len(pair.workers.kinds)
    made = attempts(pair.engine)
    assert acknowledged <= made.keys()
    with Session(pair.engine) as session:
        names = session.scalars(select(ACCOUNT.c.name))
        assert made.keys() == set(map(UUID, names)), "a row without its job, or the reverse"
    audit(pair.engine, set(made), pair.workers.effects_by_job())
    assert set(made.values()) == {1}


def more_of(pair: Pair, queue: str, since: int) -> Callable[[], bool]:
    """Return a function that says whether more jobs of a queue have ended than before."""
    return lambda: done(pair.engine)[queue] > since


def is_listening(worker: QueueWorker) -> bool:
    pool = worker._core.pool
    return pool is not None and pool.listener is not None and pool.listener.active


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    def record(fault: str, seconds: dict[Kind, float]) -> None:
        for kind, each in seconds.items():
            record_property(f"seconds to recovery: PostgreSQL: {fault}", f"{kind.held} {each:.2f}")

    return record


def test_a_failover_with_synchronous_replication(pair: Pair, record: Callable[..., None]) -> None:
    """The primary crashes under load: no acknowledged job is lost, and no attempt is counted."""
    with pair.admin() as connection:
        connection.execute(text("ALTER SYSTEM SET synchronous_standby_names = '*'"))
        connection.execute(text("SELECT pg_reload_conf()"))
    pair.replicated("sync_state = 'sync'")
    with producing(pair.engine, pair.workers.kinds) as producer:
        start_all(pair)
        sleep(1.0)
        pair.primary.kill()
        crashed = len(producer.acknowledged)
        pair.standby.promote()
        before, promoted = done(pair.engine), monotonic()
        with pair.admin() as connection:  # it has no standby now
            connection.execute(text("ALTER SYSTEM RESET synchronous_standby_names"))
            connection.execute(text("SELECT pg_reload_conf()"))
        record("failover", followed(pair, before, promoted))
        until(lambda: len(producer.acknowledged) > crashed, 10)
    check(pair, producer.acknowledged)


def test_a_failover_that_loses_commits(pair: Pair) -> None:
    """What is lost is what the server has lost: rows, jobs and effects still agree."""
    with producing(pair.engine, pair.workers.kinds) as producer:
        start_all(pair)
        pair.standby.stop()
        then = done(pair.engine)
        until(lambda: all(done(pair.engine)[q] > then[q] + 2 for q in then), 30)
        pair.primary.kill()
        pair.standby.start()
        pair.standby.promote()
        followed(pair, done(pair.engine), monotonic())
    made = len(producer.acknowledged)
    check(pair, set())
    kept = attempts(pair.engine)
    assert 0 < len(producer.acknowledged & kept.keys()) < made, "nothing was lost"


def test_a_planned_switch_and_back(pair: Pair, record: Callable[..., None]) -> None:
    """The old primary stays, as a standby, and is the first host in the URL."""
    handlers = Handlers()

    @handlers.recurring("often", every=timedelta(seconds=1), queue="ticks")
    @handlers("tick")
    def tick(payload: Any) -> None: ...

    # Between polls only a commit that is announced can wake it.
    options: Any = {"polling_interval": timedelta(seconds=20), "queues": ["own", "ticks"]}
    own = QueueWorker(pair.engine, handlers, **options)
    with producing(pair.engine, pair.workers.kinds) as producer, own:
        start_all(pair)
        for old, new in ((pair.primary, pair.standby), (pair.standby, pair.primary)):
            pair.replicated()
            old.stop()
            new.promote()
            before, promoted = done(pair.engine), monotonic()
            old.follow(new)
            record("switchover", followed(pair, before, promoted))
            until(lambda: own.health().ready and is_listening(own), 15)
            now = done(pair.engine)
            put_one(pair.engine, "tick", queue="own")
            until(more_of(pair, "own", now["own"]), 3)
            until(more_of(pair, "ticks", now["ticks"]), 10)
    with Session(pair.engine) as session, session.begin():
        for model in (Job, ArchivedJob):
            session.execute(delete(model).where(model.queue.in_(["own", "ticks"])))
    check(pair, producer.acknowledged)
    assert "in a read-only transaction" not in pair.workers.said()


def test_a_read_replica(tmp_path: Path) -> None:
    """What reads works on a standby; what writes says where to connect."""
    with own_server() as primary:
        migrate.upgrade(primary.url())
        engine = create_engine(primary.url(), poolclass=NullPool)
        job_id = put_one(engine, "mail", {"to": "Ada"})
        put_one(engine, "late", process_in=timedelta(hours=1))
        put_one(engine, "leased")
        with Session(engine) as session, session.begin():
            job = session.scalars(select(Job).where(Job.job_type == "leased")).one()
            job.lease_id, job.process_at = uuid4(), utcnow() + timedelta(minutes=5)
        put_one(engine, "done", queue="other")
        QueueWorker(engine, lambda job_type, payload: None, queues="other").drain()
        with standby_of(primary) as standby:
            replica = create_engine(standby.url(), poolclass=NullPool)
            read_with_functions(replica, job_id)
            read_with_commands(standby.url(), job_id)
            read_with_pages(replica, job_id)
            asyncio.run(read_in_a_loop(standby.url(), job_id))
            for bind in (replica, create_engine(standby.url(), poolclass=NullPool)):
                with Session(bind) as session, pytest.raises(ReadOnlyDatabaseError, match=PRIMARY):
                    enqueue_many(session, [("mail", None)])
            with Session(replica) as session, pytest.raises(ReadOnlyDatabaseError, match=PRIMARY):
                manage.cancel(session, job_id)


def test_a_connection_to_a_standby() -> None:
    """A leased job whose session was connected to the wrong server runs again on another one."""
    with own_server() as primary:
        migrate.upgrade(primary.url())
        engine = create_engine(primary.url())
        LEDGER.metadata.create_all(engine)
        put_one(engine, "write")
        with standby_of(primary) as standby:
            strays: list[Server] = []

            @event.listens_for(engine, "do_connect")
            def connect(_dialect: Any, _record: Any, _args: Any, parameters: Any) -> None:
                if strays:
                    to = strays.pop()
                    parameters.update(host=str(to.directory), port=str(to.port))

            handlers, runs = Handlers(), []

            @handlers("write")
            def write(payload: Any, session: Session, job: Job) -> None:
                runs.append(job.attempts)
                if len(runs) == 1:
                    engine.dispose()
                    strays.append(standby)
                session.execute(insert(LEDGER), {"job_id": job.job_id})

            with QueueWorker(engine, handlers, lease=timedelta(minutes=1)):
                until(lambda: attempts(engine), 20)
            assert set(attempts(engine).values()) == {1}
            assert runs == [1, 1]
            engine.dispose()


PRIMARY = "connect to the primary"


def test_a_first_host_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a time limit for each host, a worker reaches the second one; else the error says so."""
    with own_server() as primary, socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = [f"127.0.0.1:{port}" for port in (silent.getsockname()[1], primary.port)]
        query = {"host": hosts, "target_session_attrs": "read-write", "connect_timeout": "2"}
        url = URL.create("postgresql+psycopg", "postgres", database="postgres", query=query)
        with connections.own_connection(create_engine(url), "test") as connection:
            assert connection.scalar(text("SHOW port")) == str(primary.port)
        monkeypatch.setattr(connections, "_CONNECT_TIMEOUT", 0.2)
        engine = create_engine(url.difference_update_query(["connect_timeout"]))
        with pytest.raises(TimeoutError, match="only tried in this time with connect_timeout=3"):
            connections.own_connection(engine, "test")


def read_with_functions(replica: Engine, job_id: UUID) -> None:
    with Session(replica) as session:
        stats = manage.stats(session)
        counts = stats.queues["default"]
        assert (counts.due, counts.running, counts.scheduled) == (1, 1, 1)
        assert stats.queues["other"].succeeded == 1
        (run,) = manage.running(session)
        assert (run.job_type, run.worker, run.alive) == ("leased", None, None)
        assert len(manage.list_jobs(session).jobs) == 3
        (listed,) = manage.list_jobs(session, status="running").jobs
        assert listed.job_id == run.job_id
        assert manage.get_job(session, run.job_id).running is not None
        assert manage.get_job(session, job_id).job.status == "due"


async def read_in_a_loop(url: URL, job_id: UUID) -> None:
    engine = create_async_engine(url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    async with AsyncSession(engine) as session:
        assert len(await awaitable.running(session)) == 1
        assert (await awaitable.stats(session)).queues["default"].running == 1
        assert len((await awaitable.list_jobs(session)).jobs) == 3
    await engine.dispose()


def read_with_commands(url: URL, job_id: UUID) -> None:
    given = url.render_as_string(hide_password=False)
    assert "leased" in succeeds("status", url=given)
    assert "default" in succeeds("queues", "list", url=given)
    assert str(job_id) in succeeds("jobs", "list", url=given)
    assert "Ada" in succeeds("jobs", "show", str(job_id), url=given)
    for command in (["jobs", "cancel", str(job_id)], ["queues", "pause", "default"]):
        refused = cli(*command, url=given)
        assert refused.returncode
        assert PRIMARY in refused.stderr
        assert "Traceback" not in refused.stderr


def read_with_pages(replica: Engine, job_id: UUID) -> None:
    visitor = Visitor(replica)
    assert "default" in visitor.text("/jobs/")
    assert "mail" in visitor.text("/jobs/jobs")
    assert "leased" in visitor.text("/jobs/jobs?state=running")
    assert "Ada" in visitor.text(f"/jobs/jobs/{job_id}")
    visitor.text("/jobs/failures")
    visitor.text("/jobs/recurring")
    for action, name in (("cancel", job_id), ("pause", "default")):
        html = visitor.post("act", 503, action=action, name=[str(name)])
        assert PRIMARY in html
