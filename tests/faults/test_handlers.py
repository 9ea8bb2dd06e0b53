"""Handlers and callbacks that misbehave: only their own job fails.

:mod:`tests.integration` tests sessions, exits and errors one at a time. Here handlers misbehave in
the middle of a batch, also through the connection connection_behind the session.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from threading import Barrier, BrokenBarrierError, Lock
from typing import Any, NoReturn
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import Handlers, Job, RunningJob
from tests.integration.kinds import KINDS, Kind, either_sort_of_handler
from tests.integration.support import FAST, MINUTE, SECOND, Log, archived, eventually, queued, rows

from .fleet import put
from .sites import TEST

ENTER = text("INSERT INTO ledger (job_id) VALUES (:job_id)")
ENDED = "HandlerEndedTransactionError: the handler ended the transaction of the session"
END_ALL_OTHERS = text("""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name <> :test
""").bindparams(test=TEST)
RETRIES = 1


class Base(DeclarativeBase):
    """The declarative base of the application."""


class EndError(BaseException):
    """An error that is not an ``Exception``."""


def leave() -> NoReturn:
    """Exit the program, as code written for the command line does."""
    sys.exit("enough")


class Entry(Base):
    """A row of the ledger; the default of ``attempt`` exits the program."""

    __tablename__ = "ledger"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    worker: Mapped[int | None]
    attempt: Mapped[int | None] = mapped_column(default=leave)


class Nonsense:
    """An object whose special methods all raise."""

    def __bool__(self) -> NoReturn:
        raise EndError

    __eq__ = __hash__ = __len__ = __iter__ = __str__ = __repr__ = __bool__  # type: ignore[assignment]


def recurse(session: Session) -> None:
    recurse(session)


def raise_in(statement: str) -> Callable[[Session], Any]:
    """Return a function that makes the database raise an error that calls for a retry."""
    return lambda session: session.execute(text(f"DO $$ BEGIN RAISE {statement}; END $$"))


def raising(error: BaseException) -> Callable[[Session], NoReturn]:
    def misbehave(session: Session) -> NoReturn:
        raise error

    return misbehave


def as_context_manager(session: Session) -> None:
    with session.connection() as connection:
        connection.execute(text("SELECT 1"))


def connection_behind(session: Session) -> Connection:
    """Return the connection connection_behind the session, which handlers should not use."""
    connection: Connection = session.connection()
    connection.execute(text("SELECT 1"))
    return connection


FAILURES: dict[str, tuple[Callable[[Session], Any], str]] = {
    "commits the connection": (lambda session: connection_behind(session).commit(), ENDED),
    "rolls back the connection": (lambda session: connection_behind(session).rollback(), ENDED),
    "closes the connection": (lambda session: connection_behind(session).close(), ENDED),
    "uses the connection as a context manager": (as_context_manager, ENDED),
    "invalidates the connection": (
        lambda session: connection_behind(session).invalidate(),
        "reconnect",
    ),
    "resets the session": (Session.reset, ENDED),
    "removes its own job": (
        lambda session: session.execute(text("DELETE FROM proletarian.job WHERE payload ~ 'own'")),
        "removed its own job",
    ),
    "exits": (lambda session: leave(), "SystemExit('enough')"),
    "raises a BaseException": (raising(EndError()), "EndError"),
    "runs out of memory": (raising(MemoryError()), "MemoryError"),
    "recurses without end": (recurse, "RecursionError"),
    "is chosen for a deadlock": (raise_in("deadlock_detected"), "deadlock"),
    "cannot be serialized": (raise_in("serialization_failure"), "serialization"),
}
"""What handlers do after they have written, and a part of their job's error."""

FAIR: dict[str, Callable[[Session], Any]] = {
    "returns nonsense": lambda session: Nonsense(),
    "returns its session": lambda session: session,
    "expunges everything": Session.expunge_all,
}
"""Odd behaviour that does not concern the worker: the job succeeds."""


def run(engine: Engine, kind: Kind, handlers: Handlers, payloads: list[str], **options: Any) -> Log:
    """Run jobs of one type in one batch, after the worker has learned that the type is fast."""
    log = Log()
    with kind.worker(engine, handlers, batch_window=10 * MINUTE, log=log, **options):
        put(engine, [("job", "one of many")] * FAST)
        eventually(lambda: not queued(engine), 60)
        put(engine, [("job", payload) for payload in payloads])
        eventually(lambda: not queued(engine), 60)
    return log


def audit(engine: Engine, failures: dict[str, str]) -> None:
    """Assert that these jobs failed after all their attempts, and all others ran once."""
    with engine.connect() as connection:
        ledger = Counter(connection.scalars(text("SELECT job_id FROM ledger")))
    expected: Counter[UUID] = Counter()
    for job in archived(engine):
        behaviour = job.payload.strip('"')
        if behaviour in failures:
            assert (job.status, job.attempts) == ("failure", RETRIES + 1), behaviour
            assert failures[behaviour] in job.error, behaviour
        else:
            assert (job.status, job.attempts, job.error) == ("success", 1, None), behaviour
            expected[job.job_id] += 1
    assert ledger == expected
    assert queued(engine) == rows(engine, RunningJob) == []


@either_sort_of_handler
def test_misbehaviour_in_a_batch(engine: Engine, kind: Kind) -> None:
    """The attempts of a misbehaving handler count and its writes roll back; other jobs run once.

    That includes what the handler does to the connection connection_behind its session.
    """
    handlers = Handlers(retry={"retries": RETRIES})
    behaviours = {name: behaviour for name, (behaviour, _) in FAILURES.items()} | FAIR

    @handlers("job")
    def misbehave(payload: str, session: Session, job: Job) -> Any:
        session.execute(ENTER, {"job_id": job.job_id})
        return behaviours.get(payload, lambda _: None)(session)

    payloads = [
        name for pair in zip(behaviours, map(str, range(99)), strict=False) for name in pair
    ]
    run(engine, kind, handlers, payloads)
    assert len(archived(engine)) == FAST + len(payloads)
    audit(engine, {name: says for name, (_, says) in FAILURES.items()})


@either_sort_of_handler
def test_exit_in_a_flush(engine: Engine, kind: Kind) -> None:
    """An exception raised by a column's default fails the job that added the object.

    Objects that handlers only add are flushed together with those of other jobs in the batch.
    """
    handlers = Handlers(retry={"retries": RETRIES})

    @handlers("job")
    def add(payload: str, session: Session, job: Job) -> None:
        given = {} if "leaves it open" in payload else {"attempt": 1}
        session.add(Entry(job_id=job.job_id, **given))
        if "flushes" in payload:
            session.flush()

    bad = ["leaves it open", "leaves it open and flushes"]
    run(engine, kind, handlers, ["a", bad[0], "b", "c, flushes", bad[1], "d"])
    audit(engine, dict.fromkeys(bad, "SystemExit('enough')"))


def close_the_connection(session: Session) -> None:
    """End the session's connection at the server, which works with any driver."""
    session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_connection_lost_each_time(engine: Engine, kind: Kind) -> None:
    """A job that loses its worker's connection on every run fails after five losses.

    A single loss does not count as an attempt, and the jobs connection_behind it run.
    """
    handlers = Handlers()
    runs: Counter[str] = Counter()

    @handlers("job")
    def lose(payload: str, session: Session, job: Job) -> None:
        session.execute(ENTER, {"job_id": job.job_id})
        runs[payload] += 1
        if payload == "always" or (payload == "once" and runs[payload] == 1):
            close_the_connection(session)

    log = run(engine, kind, handlers, ["a", "once", "b", "always", "c"])
    ended = Counter((job.status, job.attempts) for job in archived(engine))
    assert ended == {("success", 1): FAST + 4, ("failure", 1): 1}
    (failed,) = [job for job in archived(engine) if job.status == "failure"]
    assert failed.payload == '"always"'
    assert "terminating connection due to administrator command" in failed.error
    assert runs["once"] == 2
    assert 1 < runs["always"] < 10
    assert "polling-error" in log.events()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_open_transaction_elsewhere(engine: Engine, kind: Kind) -> None:
    """A transaction that a handler leaves open in another session never commits."""
    handlers = Handlers()
    elsewhere = create_engine(engine.url)
    left: list[Session] = []

    @handlers("job")
    def leave_open(payload: Any, session: Session, job: Job) -> None:
        session.execute(ENTER, {"job_id": job.job_id})
        other = Session(elsewhere)
        other.execute(ENTER, {"job_id": job.job_id})
        left.append(other)

    ids = put(engine, [("job", None)] * 3)
    kind.run_all(engine, handlers)
    for session in left:
        session.close()
    elsewhere.dispose()
    assert len(left) == 3
    with engine.connect() as connection:
        assert set(connection.scalars(text("SELECT job_id FROM ledger"))) == ids
        assert connection.scalar(text("SELECT count(*) FROM ledger")) == 3
    assert {job.status for job in archived(engine)} == {"success"}


# Deadlocks.


@pytest.fixture
def accounts(engine: Engine) -> Engine:
    """Return the test's engine, on a database with two accounts."""
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE IF NOT EXISTS account (name text PRIMARY KEY, bookings integer)")
        )
        connection.execute(text("TRUNCATE account"))
        connection.execute(text("INSERT INTO account VALUES ('a', 0), ('b', 0)"))
    return engine


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_deadlock(accounts: Engine, kind: Kind) -> None:
    """When two jobs deadlock, one fails and is retried; each takes effect once."""
    handlers = Handlers(retry={"retries": 5})
    both = Barrier(2)

    @handlers("transfer")
    def transfer(payload: list[str], session: Session, job: Job) -> None:
        for account in payload:
            session.execute(
                text("UPDATE account SET bookings = bookings + 1 WHERE name = :name"),
                {"name": account},
            )
            if job.attempts == 1 and account == payload[0]:
                try:
                    both.wait(10)
                except BrokenBarrierError:
                    return

    log = Log()
    with kind.worker(accounts, handlers, threads=2, log=log):
        put(accounts, [("transfer", ["a", "b"]), ("transfer", ["b", "a"])])
        eventually(lambda: not queued(accounts), 60)
    assert not both.broken
    assert sorted((job.status, job.attempts) for job in archived(accounts)) == [
        ("success", 1),
        ("success", 2),
    ]
    (error,) = [job.error for job in archived(accounts) if job.attempts == 2]
    assert "deadlock detected" in error
    with accounts.connect() as connection:
        assert connection.scalars(text("SELECT bookings FROM account")).all() == [2, 2]
    assert "polling-error" not in log.events()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_serialization_failure(accounts: Engine, kind: Kind) -> None:
    """A handler whose own serializable transaction fails is retried by its retry strategy."""
    handlers = Handlers(retry={"retries": 5})
    strict = create_engine(accounts.url, isolation_level="SERIALIZABLE")
    both = Barrier(2)
    total = text("SELECT sum(bookings) FROM account")
    book = text("UPDATE account SET bookings = bookings + 1 WHERE name = :name")

    @handlers("book")
    def book_once(payload: str, session: Session, job: Job) -> None:
        session.execute(ENTER, {"job_id": job.job_id})
        with strict.begin() as own:
            own.scalar(total)
            if job.attempts == 1:
                both.wait(10)
            own.execute(book, {"name": payload})

    with kind.worker(accounts, handlers, threads=2):
        ids = put(accounts, [("book", "a"), ("book", "b")])
        eventually(lambda: not queued(accounts), 60)
    strict.dispose()
    assert sorted((job.status, job.attempts) for job in archived(accounts)) == [
        ("success", 1),
        ("success", 2),
    ]
    (error,) = [job.error for job in archived(accounts) if job.attempts == 2]
    assert "could not serialize access" in error
    with accounts.connect() as connection:
        assert set(connection.scalars(text("SELECT job_id FROM ledger"))) == ids
        assert connection.scalars(text("SELECT bookings FROM account")).all() == [1, 1]


# Callbacks.


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no")], ids=repr)
def test_callbacks_that_raise(
    engine: Engine, kind: Kind, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs end once and as usual, whatever the callbacks of a worker raise."""
    caplog.set_level(logging.CRITICAL + 1, "sqlalchemy_proletarian")  # logging tracebacks is slow
    handlers = Handlers(retry={"retries": RETRIES})
    called: Counter[str] = Counter()
    lock = Lock()

    @handlers("job")
    def write(payload: str, session: Session, job: Job) -> None:
        session.execute(ENTER, {"job_id": job.job_id})
        if payload == "fails":
            raise LookupError

    def raises(name: str) -> Callable[..., NoReturn]:
        def callback(*_: object) -> NoReturn:
            with lock:
                called[name] += 1
            raise error

        return callback

    names = ["on_failed", "on_polling_error", "on_shutdown", "format_error", "log"]
    options: Any = {name: raises(name) for name in names}
    options |= {"batch_window": 10 * MINUTE, "polling_interval": SECOND / 10}
    with kind.worker(engine, handlers, **options):
        put(engine, [("job", "one of many")] * FAST)
        eventually(lambda: not queued(engine), 60)
        put(engine, [("job", payload) for payload in ("a", "fails", "b", "fails", "c")])
        eventually(lambda: not queued(engine), 60)
        with engine.begin() as connection:
            connection.execute(END_ALL_OTHERS)
        eventually(lambda: called["on_polling_error"], 60)
        put(engine, [("job", "after the callbacks")])
        eventually(lambda: not queued(engine), 60)
    audit(engine, {"fails": "LookupError"})
    assert set(called) == set(names)
    assert called["on_failed"] == 2
    assert called["on_shutdown"] == 1
