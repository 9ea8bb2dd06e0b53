"""MySQL and MariaDB: a deadlock rolls back the whole transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Thread
from typing import Any, get_args

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    DatabaseNotReadyError,
    Handlers,
    Job,
    RetryStrategy,
    enqueue,
    enqueue_many,
    migrate,
)
from sqlalchemy_proletarian.database.dialects import require_release
from tests.integration.support import archived, eventually, only_archived, put

from .places import Note, Place, on_mysql
from .servers import Kind, own_server
from .test_life import kill, notes, writer
from .test_producers import upgrade_and_downgrade


@contextmanager
def opponent(engine: Engine) -> Iterator[Callable[[], None]]:
    """Yield a function that starts a transaction that locks "two" and then waits for "one".

    A session that has locked "one" and then requests "two" is the victim of the deadlock, because
    InnoDB rolls back the transaction that has changed fewer rows.
    """
    threads: list[Thread] = []

    def lock_two_then_one() -> None:
        with engine.connect() as other, other.begin() as transaction:
            filler = [{"n": n} for n in range(200)]
            other.execute(text("INSERT INTO note (text) VALUES (:n)"), filler)
            other.execute(text("UPDATE note SET text = 'two' WHERE text = 'two'"))
            locked.append(1)
            other.execute(text("UPDATE note SET text = 'one' WHERE text = 'one'"))
            transaction.rollback()

    locked: list[int] = []

    def start() -> None:
        threads.append(Thread(target=lock_two_then_one))
        threads[-1].start()
        eventually(lambda: locked and waits_for_a_lock(engine))

    yield start
    for thread in threads:
        thread.join()


def waits_for_a_lock(engine: Engine) -> bool:
    with engine.connect() as connection:
        query = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        return bool(connection.scalar(text(query)))


@pytest.fixture
def contested(engine: Engine) -> Iterator[Engine]:
    """Yield the engine of a database with an index on notes and with two notes."""
    with engine.begin() as connection:
        connection.execute(text("CREATE INDEX ix_note_text ON note (text)"))
        connection.execute(text("INSERT INTO note (text) VALUES ('one'), ('two')"))
    yield engine
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX ix_note_text ON note"))


def deadlock(session: Session, start: Callable[[], None]) -> None:
    session.execute(text("UPDATE note SET text = 'one' WHERE text = 'one'"))
    start()
    session.execute(text("UPDATE note SET text = 'two' WHERE text = 'two'"))


@on_mysql
@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
def test_a_deadlock(place: Place, contested: Engine, *, swallowed: bool) -> None:
    """A deadlock rolls back the batch; its jobs run again and each takes effect once."""
    runs: list[int] = []
    handlers = writer()
    with opponent(contested) as start:

        @handlers("fight", retry=RetryStrategy(retries=1))
        def fight(payload: Any, session: Session, job: Job) -> None:
            if payload == "warm":
                return
            runs.append(job.attempts)
            session.add(Note(text="fought"))
            session.flush()
            try:
                if len(runs) == 1:
                    deadlock(session, start)
            except OperationalError:
                if not swallowed:
                    raise
                # The handler ignores the error and continues; for the server, this statement
                # begins a new transaction.
                session.connection().exec_driver_sql("INSERT INTO note (text) VALUES ('half')")

        with Session(contested) as session, session.begin():
            # Fast jobs of both types first, so that the later ones share a transaction.
            enqueue_many(session, [("write", "warm"), ("fight", "warm")] * 20, priority=0)
            enqueue_many(session, [("write", "before")], priority=1)
            enqueue(session, "fight", priority=2)
            enqueue_many(session, [("write", "after")], priority=3)
        place.run_all(contested, handlers, batch_window=timedelta(minutes=1))
    assert notes(contested) == ["after", "before", "fought", "one", "two"] + ["warm"] * 20
    assert runs == [1, 2]
    assert {job.status for job in archived(contested)} == {"success"}
    assert len(archived(contested)) == 43


@on_mysql
@pytest.mark.parametrize("connection_lost", [True, False])
def test_a_shutdown_error_of_the_server(
    place: Place, engine: Engine, *, connection_lost: bool
) -> None:
    """A shutdown error costs no attempt if the connection is lost, and one if it is not."""
    attempts: list[int] = []
    handlers = Handlers()

    @handlers("write", retry=RetryStrategy(retries=1))
    def write(payload: str, session: Session, job: Job) -> None:
        attempts.append(job.attempts)
        session.add(Note(text=payload))
        session.flush()
        if len(attempts) == 1:
            try:
                session.execute(text("SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = 1053"))
            finally:
                if connection_lost:
                    kill(engine, session)

    put(engine, "write", "once")
    with place.worker(engine, handlers, polling_interval=timedelta(seconds=0.2)):
        eventually(lambda: archived(engine))
    assert attempts == ([1, 1] if connection_lost else [1, 2])
    assert only_archived(engine).status == "success"
    assert notes(engine) == ["once"]


@on_mysql
def test_many_workers_do_not_block_each_other(place: Place, engine: Engine) -> None:
    """Claiming and settling do not lock other workers' rows, so no batch is rolled back."""
    log: list[str] = []
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("write", n) for n in range(200)])
    place.run_all(engine, writer(), threads=8, log=lambda event, _: log.append(event))
    assert len(archived(engine)) == 200 == len(set(notes(engine)))
    assert "batch-undone" not in log
    assert "polling-error" not in log


@pytest.mark.parametrize("kind", get_args(Kind))
def test_migrations(kind: Kind) -> None:
    """The migrations create the tables of the models; a downgrade keeps a schema in use."""
    with own_server(kind) as server:
        admin = create_engine(server.url)
        with admin.begin() as connection:
            connection.execute(text("CREATE DATABASE app"))
        url = server.url.set(database="app")
        place = Place(kind, server.url.drivername)
        upgrade_and_downgrade(place, url)
        migrate.upgrade(url)
        with admin.begin() as connection:
            connection.execute(text("CREATE TABLE proletarian.yours (id INT)"))
        migrate.downgrade(url)
        with admin.begin() as connection:
            assert connection.scalar(text("SELECT COUNT(*) FROM proletarian.yours")) == 0
        admin.dispose()


@pytest.mark.parametrize(
    ("release", "is_mariadb", "message"),
    [((5, 7, 44), False, r"MySQL 5\.7\.44 is too old"), ((10, 5, 9), True, r"MariaDB 10\.5\.9")],
)
def test_old_servers(release: tuple[int, ...], is_mariadb: bool, message: str) -> None:
    """A server without SKIP LOCKED is rejected; the error names its release."""
    dialect = mysql.dialect(is_mariadb=is_mariadb)
    dialect.server_version_info = release
    with pytest.raises(DatabaseNotReadyError, match=message):
        require_release(dialect)
