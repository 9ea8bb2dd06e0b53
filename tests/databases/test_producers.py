"""What enqueues, and what looks after the tables, on every database."""

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
from tests.integration.support import archived, only_archived, only_queued, put, queued, succeed

from .conftest import engine_of
from .places import PRODUCERS, Note, Place
from .test_life import notes, writer


def test_atomic(producer: Place, engine: Engine) -> None:
    """A job is there when its transaction has committed, and only then."""
    with Session(engine) as session:
        session.add(Note(text="kept"))
        session.flush()
        enqueue(session, "kept")
        with session.begin_nested() as savepoint:
            enqueue(session, "undone")
            enqueue_many(session, [("undone", None)])
            assert enqueue_unique(session, "undone", unique_key="k")
            savepoint.rollback()
        session.commit()
        enqueue(session, "never")
        enqueue_many(session, [("never", None)])
        session.rollback()
    assert [job.job_type for job in queued(engine)] == ["kept"]


def test_unique(producer: Place, engine: Engine) -> None:
    """A key is taken while its job is queued; other keys, queues and errors are not its affair."""

    def put_unique(key: str, **options: Any) -> bool:
        with Session(engine) as session, session.begin():
            job = enqueue_unique(session, "write", "x", unique_key=key, **options)
            assert job is None or (job in session and job.attempts == 0)
            return job is not None

    assert put_unique("key")
    assert not put_unique("key")
    assert put_unique("KEY")
    assert put_unique("kéy")
    assert put_unique("key", queue="other")
    assert put_unique("another", uuid_fn=lambda: same)
    with pytest.raises(Exception, match=r"(?i)duplicate|unique"):
        put_unique("one more", uuid_fn=lambda: same)
    with Session(engine) as session:
        session.add(Note(text="kept"))
        assert enqueue_unique(session, "write", unique_key="key") is None
        session.commit()
    assert notes(engine) == ["kept"]
    assert QueueWorker(engine, succeed).drain() == 4
    assert put_unique("key")


same = uuid4()


def test_values(producer: Place, engine: Engine) -> None:
    """Times keep their microseconds and come back in UTC; payloads are as long as they are."""
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
    """One job runs in a session of the caller's, whatever it holds besides."""
    put(engine, "write", "a")
    with Session(engine) as session:
        assert process_next_job(session, writer()) is True
        assert process_next_job(session, writer()) is None
        enqueue(session, "write", "b")
        session.add(Note(text="c"))
        assert process_next_job(session, writer()) is True
    assert notes(engine) == ["a", "b", "c"]
    assert len(archived(engine)) == 2


def test_process_next_job_undoes_what_failed(producer: Place, engine: Engine) -> None:
    """What a handler wrote that failed is undone, and the rest of the session is not."""
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
    """The URL of a database without tables."""
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
    # The job tables of a MySQL server are all in one place: see test_mysql.py.
    "producer",
    [producer for producer in PRODUCERS if not producer.is_mysql],
    ids=str,
)
def test_migrations(producer: Place, empty: URL) -> None:
    """The migrations make what the models say, and take it away; a worker says what is missing."""
    walk_through_the_migrations(producer, empty)


def walk_through_the_migrations(producer: Place, url: URL) -> None:
    """Migrate up and down a database without tables, and try to work at each step."""
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
    look = inspect(engine)
    assert not look.has_schema("proletarian")
    assert not look.has_table("job")
    migrate.upgrade(engine.url)
    migrate.downgrade(engine.url)
    engine.dispose()


def test_now(producer: Place, engine: Engine) -> None:
    """A worker tells leases by the database's clock: it is the same as the host's here."""
    put(engine, "a")
    log: list[str] = []
    worker = QueueWorker(
        engine, succeed, lease=timedelta(seconds=30), log=lambda event, _: log.append(event)
    )
    assert worker.drain() == 1
    assert "clock-skew" not in log
    assert abs(worker._core._shared_time() - utcnow()) < timedelta(seconds=5)
