"""Unique jobs: while one with the key is in the queue, there is no second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import (
    URL,
    BigInteger,
    Engine,
    ForeignKey,
    Identity,
    create_engine,
    delete,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
    validates,
)

from sqlalchemy_proletarian import (
    Job,
    JobMixin,
    PayloadError,
    QueueWorker,
    TablesMissingError,
    UnboundSessionError,
    enqueue,
    enqueue_unique,
)
from sqlalchemy_proletarian.wakeup.announce import channel_of

from .support import (
    MINUTE,
    Customer,
    EmailJob,
    Log,
    ManualClock,
    Note,
    at_most,
    eventually,
    notes,
    only_queued,
    queued,
    run_all,
    succeed,
)


def put_unique(engine: Engine, unique_key: str = "k", **options: Any) -> bool:
    """Enqueue and commit; tell whether there is a new job."""
    with Session(engine) as session, session.begin():
        return enqueue_unique(session, "mail", unique_key=unique_key, **options) is not None


def fail(job_type: str, payload: Any) -> None:
    """Handle a job by raising."""
    raise ValueError("no")


@contextmanager
def announced(engine: Engine) -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns the queues whose workers were told of jobs."""
    with engine.connect() as connection:
        connection.exec_driver_sql(f'LISTEN "{channel_of("proletarian.job")}"')
        connection.commit()
        driver: Any = connection.connection.dbapi_connection
        yield lambda: sorted(found.payload for found in driver.notifies(timeout=0.05))


def test_the_second_is_none(engine: Engine) -> None:
    """The first call returns the job, a second one with its key None, and there is one job."""
    with Session(engine) as session, session.begin():
        job = enqueue_unique(session, "mail", {"n": 1}, unique_key="k")
        assert isinstance(job, Job)
        assert enqueue_unique(session, "mail", {"n": 2}, unique_key="k") is None
        assert enqueue_unique(session, "other", unique_key="k", priority=0) is None
        job_id = job.job_id
    assert not put_unique(engine)
    found = only_queued(engine)
    assert (found.job_id, found.payload, found.unique_key) == (job_id, '{"n":1}', "k")


def test_inserted_at_once_and_never_committed(engine: Engine) -> None:
    """The job is in the database and in the session when the call returns, and not committed."""
    with Session(engine) as session:
        job = enqueue_unique(session, "mail", unique_key="k")
        assert inspect(job).persistent
        assert session.scalars(select(Job)).one() is job
        assert queued(engine) == []
        session.commit()
    assert len(queued(engine)) == 1


def test_every_option(engine: Engine, clock: ManualClock) -> None:
    """The options are those of ``enqueue``, and arrive in their columns."""
    job_id = uuid4()
    with Session(engine) as session, session.begin():
        options: Any = {"queue": "slow", "process_in": MINUTE, "priority": 0, "clock": clock}
        one = enqueue_unique(
            session, "mail", [1], unique_key="k", uuid_fn=lambda: job_id, **options
        )
        other = enqueue(session, "mail", [1], unique_key="l", **options)
        session.flush()
        assert one is not None
        for name in ("queue", "job_type", "payload", "attempts", "priority", "error"):
            assert getattr(one, name) == getattr(other, name)
        assert (one.enqueued_at, one.process_at) == (clock.now, clock.now + MINUTE)
        assert one.job_id == job_id


def test_keys_belong_to_a_queue(engine: Engine) -> None:
    """Another key in the queue, and the same key in another queue, are free."""
    assert put_unique(engine)
    assert put_unique(engine, "other")
    assert put_unique(engine, queue="other")
    assert not put_unique(engine, queue="other")
    assert len(queued(engine)) == 3


def test_the_key_of_a_plain_job(engine: Engine) -> None:
    """A job that ``enqueue`` gave the key holds it, flushed or still pending in the session."""
    with Session(engine) as session, session.begin():
        enqueue(session, "mail", unique_key="k")
        assert enqueue_unique(session, "mail", unique_key="k") is None
    assert len(queued(engine)) == 1


@pytest.mark.parametrize("handler", [succeed, fail])
def test_free_when_it_has_finished(engine: Engine, handler: Callable[[str, Any], None]) -> None:
    """When the job has succeeded or failed for good, its key is free again."""
    for _ in range(2):
        assert put_unique(engine)
        assert not put_unique(engine)
        assert run_all(engine, handler) == 1
    assert queued(engine) == []


def test_taken_while_it_is_to_be_retried(engine: Engine) -> None:
    """A failed job that waits for its retry keeps its key."""
    assert put_unique(engine)
    run_all(engine, fail, retry_strategy={"retries": 1, "delays": [60_000]})
    assert only_queued(engine).attempts == 1
    assert not put_unique(engine)


def test_taken_while_it_runs(engine: Engine) -> None:
    """While the job runs its key is taken, and saying so takes no waiting for the worker."""
    seen: list[Any] = []

    def look(job_type: str, payload: Any) -> None:
        with Session(engine) as session:
            assert session.scalars(select(Job).with_for_update(skip_locked=True)).all() == []
            session.execute(text("SET LOCAL lock_timeout = '1s'"))
            seen.append(enqueue_unique(session, "mail", unique_key="k"))

    assert put_unique(engine)
    run_all(engine, look)
    assert seen == [None]


def take(session: Session) -> None:
    """Take the key."""
    assert enqueue_unique(session, "mail", unique_key="k")


def free(session: Session) -> None:
    """Free the key, as a worker does that finishes the job."""
    session.execute(delete(Job))


@pytest.mark.parametrize(
    ("first", "commits", "second_has_it"),
    [(take, True, False), (take, False, True), (free, True, True), (free, False, False)],
)
def test_two_transactions(
    engine: Engine, first: Callable[[Session], None], commits: bool, second_has_it: bool
) -> None:
    """Who wants a key that another transaction is taking or freeing waits for how that ends."""
    if first is free:
        put_unique(engine)
    with Session(engine) as session, ThreadPoolExecutor(1) as pool, at_most(10, session.close):
        first(session)
        second = pool.submit(put_unique, engine)
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        with engine.connect() as connection:
            eventually(lambda: connection.scalar(waiting))
        assert not second.done()
        session.commit() if commits else session.rollback()
        assert second.result(10) is second_has_it
    assert len(queued(engine)) == 1


def test_many_at_the_same_time(engine: Engine) -> None:
    """Of many producers at the same time one has the job, and none an error."""
    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(lambda _: put_unique(engine), range(50)))
    assert results.count(True) == len(queued(engine)) == 1


def test_repeatable_read(engine: Engine) -> None:
    """Above READ COMMITTED a key that was taken meanwhile is a serialization failure."""
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        assert session.scalars(select(Job)).all() == []
        assert put_unique(engine)
        with pytest.raises(OperationalError, match="could not serialize"):
            enqueue_unique(session, "mail", unique_key="k")


def test_rollback_leaves_nothing(shop: Engine) -> None:
    """What is rolled back was never there: no job, no taken key, no wake-up."""
    with announced(shop) as heard:
        with Session(shop) as session:
            session.add(Note(text="order"))
            assert enqueue_unique(session, "mail", unique_key="k")
            session.rollback()
            session.commit()
        assert queued(shop) == []
        assert notes(shop) == []
        assert heard() == []
    assert put_unique(shop)


def test_savepoint_rollback_leaves_nothing(engine: Engine) -> None:
    """The rollback of a SAVEPOINT takes the job, its key and its wake-up with it."""
    with announced(engine) as heard:
        with Session(engine) as session, session.begin():
            savepoint = session.begin_nested()
            assert enqueue_unique(session, "mail", unique_key="k", queue="undone")
            savepoint.rollback()
            assert enqueue_unique(session, "mail", unique_key="k", queue="undone", notify=False)
            with session.begin_nested():
                assert enqueue_unique(session, "mail", unique_key="k", queue="released")
        assert heard() == ["released"]
    assert [job.queue for job in queued(engine)] == ["undone", "released"]


def test_only_a_new_job_is_announced(engine: Engine) -> None:
    """Workers are told of a job that was inserted, unless ``notify=False``, and of nothing else."""
    assert put_unique(engine, queue="taken", notify=False)
    with announced(engine) as heard:
        assert put_unique(engine, queue="loud")
        assert put_unique(engine, queue="quiet", notify=False)
        assert not put_unique(engine, queue="taken")
        assert heard() == ["loud"]


def test_wakes_an_idle_worker(engine: Engine) -> None:
    """The job starts when it is committed, not at the next poll."""
    seen: list[Any] = []
    log = Log()
    with QueueWorker(
        engine, lambda _, payload: seen.append(payload), polling_interval=MINUTE, log=log
    ):
        eventually(lambda: log.events().count("polling-for-jobs") >= 2)
        assert put_unique(engine, payload="one")
        eventually(lambda: seen == ["one"])


def test_pending_objects_are_flushed_first(shop: Engine) -> None:
    """A foreign key may name an object that is pending in the session."""
    with Session(shop) as session, session.begin():
        session.add(Customer(id=7, name="Ann"))
        job = enqueue_unique(
            session, "mail", unique_key="k", job_model=EmailJob, customer_id=7, campaign="spring"
        )
        assert job is not None
        assert job.customer is not None
        assert (job.customer.name, job.campaign, job.internal) == ("Ann", "spring", None)
    assert only_queued(shop, EmailJob).customer_id == 7


def test_tables_do_not_share_keys(shop: Engine) -> None:
    """Each table of jobs has its own keys."""
    assert put_unique(shop)
    assert put_unique(shop, job_model=EmailJob)
    assert not put_unique(shop, job_model=EmailJob)


class Local(DeclarativeBase):
    """Tables for what the shop's do not have."""


class NumberedJob(JobMixin, Local):
    __tablename__ = "unique_numbered_job"
    job_id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)


class KindJob(JobMixin, Local):
    __tablename__ = "unique_kind_job"
    kind: Mapped[str]
    colour: Mapped[str] = mapped_column("color", default=lambda: "red")

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "day"}  # noqa: RUF012

    @validates("colour")
    def _lower(self, _: str, value: str) -> str:
        return value.lower()


class NightJob(KindJob):
    __mapper_args__ = {"polymorphic_identity": "night"}  # noqa: RUF012


class BigJob(KindJob):
    __tablename__ = "unique_big_job"
    job_id: Mapped[Any] = mapped_column(ForeignKey(KindJob.job_id), primary_key=True)

    __mapper_args__ = {"polymorphic_identity": "big"}  # noqa: RUF012


@pytest.fixture
def local(engine: Engine) -> Iterator[Engine]:
    """The engine of a database that has these tables too."""
    Local.metadata.create_all(engine)
    yield engine
    Local.metadata.drop_all(engine)


def test_ids_made_by_the_database(local: Engine) -> None:
    """A table whose ids are numbers works alike, and the job knows its number."""
    with Session(local) as session, session.begin():
        job = enqueue_unique(session, "mail", unique_key="k", job_model=NumberedJob)
        assert job is not None
        assert enqueue_unique(session, "mail", unique_key="k", job_model=NumberedJob) is None
        number: int = job.job_id
    assert only_queued(local, NumberedJob).job_id == number


def test_models_have_their_say(local: Engine) -> None:
    """Defaults, validators, column names and the subclass of a model are respected."""
    assert put_unique(local, "1", job_model=KindJob)
    assert put_unique(local, "2", job_model=NightJob, colour="BLUE")
    assert not put_unique(local, "2", job_model=KindJob)
    found = {(type(job), job.colour) for job in queued(local, KindJob)}
    assert found == {(KindJob, "red"), (NightJob, "blue")}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"job_model": EmailJob, "customer": None}, "customer is a relationship of EmailJob.*fore"),
        ({"job_model": EmailJob, "colour": "red"}, "'colour' is an invalid keyword argument"),
        ({"job_model": BigJob}, "BigJob is mapped to 2 tables: unique_kind_job, unique_big_job"),
        ({"attempts": 5}, "multiple values for keyword argument 'attempts'"),
    ],
)
def test_columns_that_cannot_be_written(
    session: Session, options: dict[str, Any], reason: str
) -> None:
    """What is no column of the one row is refused by name, before anything is sent."""
    with pytest.raises(TypeError, match=reason):
        enqueue_unique(session, "mail", unique_key="k", **options)
    assert not session.in_transaction()


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"unique_key": ""}, ValueError, "unique_key must have 1 to 255 characters"),
        ({"unique_key": "x" * 256}, ValueError, "unique_key must have 1 to 255 characters"),
        ({"unique_key": "a\0b"}, ValueError, "unique_key must .* no NUL"),
        ({"unique_key": None}, TypeError, "unique_key must be a string, not None"),
        ({"unique_key": 7}, TypeError, "unique_key must be a string, not 7"),
        ({"payload": {"x": {1}}}, PayloadError, r"payload\['x'\]"),
        ({"priority": 10}, ValueError, "priority must be"),
        ({"queue": ""}, ValueError, "queue must have"),
        ({"process_at": datetime(2999, 1, 1)}, ValueError, "process_at is a naive"),  # noqa: DTZ001
    ],
)
def test_bad_input(
    engine: Engine, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """Bad input is an error at the call; nothing is sent, and the transaction is as it was."""
    with Session(engine) as session:
        pending = enqueue(session, "kept")
        with pytest.raises(error, match=reason):
            enqueue_unique(session, "mail", **{"unique_key": "k"} | options)
        assert pending in session.new
        session.commit()
    assert only_queued(engine).job_type == "kept"


def test_longest_key(engine: Engine) -> None:
    """A key has up to 255 characters, whatever they are."""
    assert put_unique(engine, "€" * 255)
    assert not put_unique(engine, "€" * 255)


def test_scoped_session(engine: Engine) -> None:
    """A scoped_session is taken as it is."""
    session = scoped_session(sessionmaker(engine))
    assert enqueue_unique(session, "mail", unique_key="k")
    session.commit()
    session.remove()
    assert len(queued(engine)) == 1


@pytest.mark.parametrize("scoped", [False, True])
def test_async_sessions(engine: Engine, url: URL, scoped: bool) -> None:
    """An AsyncSession is refused by the name of the awaitable twin; run_sync is what works."""

    async def work() -> None:
        async_engine = create_async_engine(url)
        session: Any = AsyncSession(async_engine)
        given = async_scoped_session(lambda: session, asyncio.current_task) if scoped else session
        twin = r"use `await sqlalchemy_proletarian\.asyncio\.enqueue_unique\(session, \.\.\.\)`"
        with pytest.raises(TypeError, match=twin):
            enqueue_unique(given, "mail", unique_key="k")
        assert await session.run_sync(enqueue_unique, "mail", unique_key="k")
        await session.commit()
        await session.close()
        await async_engine.dispose()

    asyncio.run(work())
    assert len(queued(engine)) == 1


@pytest.mark.parametrize("session", [None, object(), sessionmaker()])
def test_what_is_no_session(session: Any) -> None:
    """What is no session is refused with the ones that are."""
    with pytest.raises(TypeError, match="Session, scoped_session, AsyncSession"):
        enqueue_unique(session, "mail", unique_key="k")


def test_unbound_session() -> None:
    """A session without a database for the jobs is refused."""
    with Session() as session, pytest.raises(UnboundSessionError, match="no database for Job"):
        enqueue_unique(session, "mail", unique_key="k")


def test_missing_tables(empty_database: URL) -> None:
    """Where the tables are missing, the error names the command that creates them."""
    engine = create_engine(empty_database)
    with Session(engine) as session, pytest.raises(TablesMissingError, match="migrate upgrade"):
        enqueue_unique(session, "mail", unique_key="k")
    engine.dispose()


def test_on_sqlite() -> None:
    """A program's own tests may use SQLite."""
    engine = create_engine("sqlite://")
    Local.metadata.create_all(engine, [KindJob.__table__])  # type: ignore[list-item]
    assert put_unique(engine, job_model=KindJob)
    assert not put_unique(engine, job_model=KindJob)
    assert put_unique(engine, job_model=KindJob, queue="other")
    engine.dispose()


def test_other_databases() -> None:
    """A database without ON CONFLICT is refused by its name."""
    engine = create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with Session(engine) as session, pytest.raises(NotImplementedError, match="oracle"):
        enqueue_unique(session, "mail", unique_key="k")
