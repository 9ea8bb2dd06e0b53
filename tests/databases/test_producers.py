"""Enqueueing, ``process_next_job`` and migrations on every database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, create_engine, inspect, select, text
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    QueueWorker,
    SchemaMismatchError,
    TablesMissingError,
    enqueue,
    enqueue_many,
    enqueue_unique,
    migrate,
    process_next_job,
    utcnow,
)
from tests.integration.support import (
    Log,
    archived,
    eventually,
    only_archived,
    only_queued,
    put,
    queued,
    succeed,
)

from .conftest import engine_of
from .places import PRODUCERS, Note, Place
from .test_life import notes, writer


def test_a_job_exists_if_its_transaction_committed(producer: Place, engine: Engine) -> None:
    """A job exists if and only if its transaction committed."""
    with Session(engine) as session:
        session.add(Note(text="kept"))
        session.flush()
        enqueue(session, "kept")
        with session.begin_nested() as savepoint:
            enqueue(session, "undone")
            enqueue_many(session, [("undone", None)])
            assert enqueue_unique(session, "undone", unique_key="k").created
            savepoint.rollback()
        session.commit()
        enqueue(session, "never")
        enqueue_many(session, [("never", None)])
        session.rollback()
    assert [job.job_type for job in queued(engine)] == ["kept"]


def test_unique(producer: Place, engine: Engine) -> None:
    """A unique key is taken while its job is queued, in its queue only; other errors are raised."""

    def put_unique(key: str, **options: Any) -> bool:
        with Session(engine) as session, session.begin():
            result = enqueue_unique(session, "write", "x", unique_key=key, **options)
            assert result.job in session
            assert (result.job.unique_key, result.job.attempts) == (key, 0)
            return result.created

    assert put_unique("key")
    assert not put_unique("key")
    assert put_unique("KEY")
    assert put_unique("kéy")
    assert put_unique("key", queue="other")
    assert put_unique("another", uuid_fn=lambda: SAME_ID)
    with pytest.raises(Exception, match=r"(?i)duplicate|unique"):
        put_unique("one more", uuid_fn=lambda: SAME_ID)
    with Session(engine) as session:
        session.add(Note(text="kept"))
        assert not enqueue_unique(session, "write", unique_key="key").created
        session.commit()
    assert notes(engine) == ["kept"]
    assert QueueWorker(engine, succeed).drain() == 4
    assert put_unique("key")


SAME_ID = uuid4()


def test_a_connection(producer: Place, engine: Engine) -> None:
    """A Connection enqueues in its transaction, which the caller commits, and returns the id."""
    at = datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    with engine.connect() as connection:
        one = enqueue(connection, "one", {"a": "ü😀"}, process_at=at, priority=1)
        two = enqueue(connection, "two", unique_key="own")
        assert enqueue_many(connection, [("many", n) for n in range(3)], queue="many") == 3
        three = enqueue_unique(connection, "three", unique_key="key").job
        assert not enqueue_unique(connection, "three", unique_key="key").created
        with connection.begin_nested() as savepoint:
            enqueue(connection, "undone")
            enqueue_many(connection, [("undone", 1)])
            savepoint.rollback()
        connection.commit()
        enqueue(connection, "never")
        connection.rollback()
    jobs = {job.job_type: job for job in queued(engine)}
    assert sorted(jobs) == ["many", "one", "three", "two"]
    assert [jobs[name].job_id for name in ("one", "two", "three")] == [one, two, three]
    assert (jobs["one"].payload, jobs["one"].process_at, jobs["one"].priority) == (
        '{"a":"ü😀"}',
        at,
        1,
    )
    assert (jobs["two"].unique_key, jobs["three"].unique_key) == ("own", "key")
    assert QueueWorker(engine, succeed).drain() == 2  # the others are later, or in another queue


def test_a_connection_wakes_a_worker_of_its_process(producer: Place, engine: Engine) -> None:
    """A worker that polls once an hour runs a job as soon as it is committed."""
    seen: list[str] = []
    log = Log()
    with QueueWorker(
        engine,
        lambda job_type, _: seen.append(job_type),
        polling_interval=timedelta(hours=1),
        lease=timedelta(seconds=30),
        log=log,
    ):
        eventually(lambda: log.events().count("polling-for-jobs") >= 4)
        with engine.begin() as connection:
            enqueue(connection, "a")
        eventually(lambda: seen == ["a"])


def test_times_and_large_payloads(producer: Place, engine: Engine) -> None:
    """Times keep their microseconds and are loaded in UTC; large payloads are not truncated."""
    at = datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=5.5)))
    payload = "a" * 10_000_000 + "😀"
    put(engine, "big", payload, process_at=at)
    job = only_queued(engine)
    assert job.process_at == at
    assert job.process_at.tzinfo is UTC
    assert job.payload == f'"{payload}"'
    with Session(engine) as session:
        later = select(Job).where(Job.process_at > at - timedelta(microseconds=1))
        assert session.scalars(later).one().job_id == job.job_id
        assert session.scalars(select(Job).where(Job.process_at > at)).first() is None
        with pytest.raises(StatementError, match="naive"):
            session.scalars(select(Job).where(Job.process_at > at.replace(tzinfo=None)))


def test_process_next_job(producer: Place, engine: Engine) -> None:
    """``process_next_job`` runs one job in the caller's session along with pending changes."""
    put(engine, "write", "a")
    with Session(engine) as session:
        assert process_next_job(session, writer()) is True
        assert process_next_job(session, writer()) is None
        enqueue(session, "write", "b")
        session.add(Note(text="c"))
        assert process_next_job(session, writer()) is True
    assert notes(engine) == ["a", "b", "c"]
    assert len(archived(engine)) == 2


def test_process_next_job_rolls_back_a_failed_handler(producer: Place, engine: Engine) -> None:
    """The writes of a failed handler roll back; the caller's other changes do not."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="never"))
        session.flush()
        raise ValueError("no")

    put(engine, "write")
    with Session(engine) as session:
        session.add(Note(text="kept"))
        assert process_next_job(session, handlers) is True
    assert notes(engine) == ["kept"]
    assert only_archived(engine).status == "failure"


@pytest.fixture
def empty(
    producer: Place, server_of: Callable[[str], URL], tmp_path: Any, request: pytest.FixtureRequest
) -> URL:
    """Return the URL of a database without tables."""
    if producer.server == "sqlite":
        return URL.create("sqlite", database=str(tmp_path / "empty"))
    url = server_of(producer.server)
    name = f"proletarian_test_{uuid4().hex[:12]}"
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return url.set(database=name)


@pytest.mark.parametrize(
    # A MySQL server has only one schema for job tables: see test_mysql.py.
    "producer",
    [producer for producer in PRODUCERS if not producer.is_mysql],
    ids=str,
)
def test_migrations(producer: Place, empty: URL) -> None:
    """The migrations create and drop the tables of the models; a worker names missing tables."""
    upgrade_and_downgrade(producer, empty)


def upgrade_and_downgrade(producer: Place, url: URL) -> None:
    """Upgrade and downgrade an empty database, and try to run jobs at each step."""
    engine = engine_of(producer, url)
    with pytest.raises(TablesMissingError, match=r"job does not exist.*proletarian migrate"):
        QueueWorker(engine, succeed).drain()
    with Session(engine) as session, pytest.raises(TablesMissingError):
        enqueue_many(session, [("a", 1)])
    assert any("job is missing" in line for line in migrate.check(engine.url).differences)
    migrate.upgrade(engine.url)
    migrate.upgrade(engine.url)
    assert not migrate.check(engine.url).differences
    put(engine, "a")
    assert QueueWorker(engine, succeed).drain() == 1
    job = "job" if producer.server == "sqlite" else "proletarian.job"
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {job} DROP COLUMN error"))
    with pytest.raises(SchemaMismatchError, match=r"column error of proletarian\.job is missing"):
        QueueWorker(engine, succeed).drain()
    with Session(engine) as session, pytest.raises(SchemaMismatchError):
        enqueue_many(session, [{"job_type": "a", "error": "b"}])
    migrate.downgrade(engine.url)
    inspector = inspect(engine)
    assert not inspector.has_schema("proletarian")
    assert not inspector.has_table("job")
    migrate.upgrade(engine.url)
    migrate.downgrade(engine.url)
    engine.dispose()


def test_the_clock_of_the_database(producer: Place, engine: Engine) -> None:
    """A worker in lease mode reads the database's clock, which equals the host's clock here."""
    put(engine, "a")
    log: list[str] = []
    worker = QueueWorker(
        engine, succeed, lease=timedelta(seconds=30), log=lambda event, _: log.append(event)
    )
    assert worker.drain() == 1
    assert "clock-skew" not in log
    assert abs(worker._core._assembly._shared_time() - utcnow()) < timedelta(seconds=5)
