"""SQLite: one writer at a time, no schemas, in-memory databases."""

from __future__ import annotations

from datetime import timedelta
from threading import Thread
from time import sleep
from typing import Any

import pytest
from sqlalchemy import URL, Engine, StaticPool, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import (
    Base,
    Handlers,
    QueueWorker,
    TablesMissingError,
    enqueue,
    enqueue_many,
    migrate,
    process_next_job,
)
from tests.integration.support import archived, eventually, only_archived, put, rows, succeed

from .places import WITHOUT_SCHEMA, Note, Place, Shelf, only
from .test_life import notes, writer

on_sqlite = only(lambda place: place.server == "sqlite")


def test_in_memory_databases() -> None:
    """``process_next_job`` runs jobs of an in-memory database; a worker rejects one."""
    engine = create_engine("sqlite://", execution_options=WITHOUT_SCHEMA)
    Base.metadata.create_all(engine)
    Shelf.metadata.create_all(engine)
    with Session(engine) as session:
        enqueue(session, "write", "a")
        assert process_next_job(session, writer()) is True
    assert notes(engine) == ["a"]
    for url in ("sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"):
        with pytest.raises(ValueError, match="process_next_job"):
            QueueWorker(create_engine(url, poolclass=StaticPool), succeed)
    engine.dispose()


def test_without_the_option(tmp_path: Any) -> None:
    """An engine without ``schema_translate_map`` gets an error that names the option."""
    url = URL.create("sqlite", database=str(tmp_path / "file"))
    migrate.upgrade(url)
    engine = create_engine(url)
    with pytest.raises(TablesMissingError, match="proletarian migrate"):
        QueueWorker(engine, succeed).drain()
    with Session(engine) as session, pytest.raises(TablesMissingError, match="schema_translate"):
        enqueue_many(session, [("a", 1)])
    engine.dispose()


def test_an_attached_database(tmp_path: Any) -> None:
    """A database attached under the schema's name serves as the schema."""
    from sqlalchemy import event

    engine = create_engine(URL.create("sqlite", database=str(tmp_path / "main")))
    jobs = str(tmp_path / "jobs")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE mine (id INTEGER)")

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.execute("ATTACH DATABASE ? AS proletarian", (jobs,))

    engine.dispose()
    Base.metadata.create_all(engine)
    put(engine, "a")
    assert QueueWorker(engine, succeed).drain() == 1
    assert only_archived(engine).status == "success"
    engine.dispose()


@on_sqlite
def test_a_job_waits_for_another_writer(place: Place, engine: Engine) -> None:
    """No job fails while another connection holds the write lock; it is rescheduled."""
    attempts: list[int] = []
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            begun.append(1)
            eventually(lambda: held)
        session.add(Note(text="once"))

    begun: list[int] = []
    held: list[int] = []
    # The handler's connection gives up at once.
    without_timeout = engine_without_timeout(engine)

    def hold() -> None:
        eventually(lambda: begun)
        with engine.connect() as other:
            other.exec_driver_sql("BEGIN IMMEDIATE")
            held.append(1)
            sleep(1.5)
            other.rollback()

    holder = Thread(target=hold)
    holder.start()
    put(engine, "write")
    if place.in_a_loop:  # a plain function in a loop holds the write lock from the start
        begun.append(1)
        eventually(lambda: held)
    interval = timedelta(seconds=0.2)
    with place.worker(without_timeout, handlers, polling_interval=interval):
        eventually(lambda: archived(engine))
    holder.join()
    without_timeout.dispose()
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("success", 1)
    assert notes(engine) == ["once"]


def engine_without_timeout(engine: Engine) -> Engine:
    """Return an engine whose connections do not wait for the write lock."""
    return create_engine(
        engine.url.update_query_dict({"timeout": "0"}),
        execution_options=WITHOUT_SCHEMA,
    )


@on_sqlite
def test_handlers_take_the_write_lock_in_turn(place: Place, engine: Engine) -> None:
    """Concurrent handlers take the write lock in turn, and no attempt is lost."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        first = session.query(Note).count()
        session.add(Note(text=f"{payload}"))
        session.flush()
        assert session.query(Note).count() == first + 1

    with Session(engine) as session, session.begin():
        enqueue_many(session, [("write", n) for n in range(20)])
    assert place.run_all(engine, handlers, threads=5) == 20
    assert {job.attempts for job in archived(engine)} == {1}
    assert len(notes(engine)) == 20


def test_savepoints_of_handlers(tmp_path: Any) -> None:
    """A handler's SAVEPOINT is part of its transaction, as on other databases."""
    url = URL.create("sqlite", database=str(tmp_path / "file"))
    migrate.upgrade(url)
    engine = create_engine(url, execution_options=WITHOUT_SCHEMA)
    Shelf.metadata.create_all(engine)
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        with session.begin_nested():
            session.add(Note(text="never"))
        raise ValueError("no")

    put(engine, "write")
    assert QueueWorker(sessionmaker(engine), handlers).drain() == 1
    assert not rows(engine, Note)
    put(engine, "write")
    with Session(engine) as session:
        assert process_next_job(session, handlers) is True
    assert not rows(engine, Note)
    engine.dispose()


def test_an_engine_that_emits_begin(tmp_path: Any) -> None:
    """An engine that emits BEGIN itself, as in SQLAlchemy's documentation, works."""
    from sqlalchemy import event

    url = URL.create("sqlite", database=str(tmp_path / "file"))
    migrate.upgrade(url)
    engine = create_engine(url, execution_options=WITHOUT_SCHEMA)
    Shelf.metadata.create_all(engine)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.execute(text("BEGIN"))

    with Session(engine) as session, session.begin():
        enqueue_many(session, [("write", n) for n in range(5)])
    assert QueueWorker(engine, writer()).drain() == 5
    assert len(notes(engine)) == 5
    engine.dispose()
