"""Unique jobs: a queue holds at most one job with a given key."""

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
from sqlalchemy_proletarian.wakeup.channels import channel_of

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
    """Enqueue and commit; return whether there is a new job."""
    with Session(engine) as session, session.begin():
        return enqueue_unique(session, "mail", unique_key=unique_key, **options).created


def fail(job_type: str, payload: Any) -> None:
    """Fail every job."""
    raise ValueError("no")


@contextmanager
def listening_for_queues(engine: Engine) -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns the announced queues."""
    with engine.connect() as connection:
        connection.exec_driver_sql(f'LISTEN "{channel_of("proletarian.job")}"')
        connection.commit()
        driver: Any = connection.connection.dbapi_connection
        yield lambda: sorted(found.payload for found in driver.notifies(timeout=0.05))


def test_a_second_job_with_the_key_is_not_enqueued(engine: Engine) -> None:
    """The second call returns the first job, whatever its job type and options."""
    with Session(engine) as session, session.begin():
        job = enqueue_unique(session, "mail", {"n": 1}, unique_key="k").job
        assert isinstance(job, Job)
        assert not enqueue_unique(session, "mail", {"n": 2}, unique_key="k").created
        assert not enqueue_unique(session, "other", unique_key="k", priority=0).created
        job_id = job.job_id
    assert not put_unique(engine)
    found = only_queued(engine)
    assert (found.job_id, found.payload, found.unique_key) == (job_id, '{"n":1}', "k")


def test_enqueue_unique_inserts_immediately_without_commit(engine: Engine) -> None:
    """The job is persistent in the session when the call returns."""
    with Session(engine) as session:
        job = enqueue_unique(session, "mail", unique_key="k").job
        assert inspect(job).persistent
        assert session.scalars(select(Job)).one() is job
        assert queued(engine) == []
        session.commit()
    assert len(queued(engine)) == 1


def test_enqueue_unique_takes_the_options_of_enqueue(engine: Engine, clock: ManualClock) -> None:
    job_id = uuid4()
    with Session(engine) as session, session.begin():
        options: Any = {"queue": "slow", "process_in": MINUTE, "priority": 0, "clock": clock}
        unique_job = enqueue_unique(
            session, "mail", [1], unique_key="k", uuid_fn=lambda: job_id, **options
        ).job
        other = enqueue(session, "mail", [1], unique_key="l", **options)
        session.flush()
        for name in ("queue", "job_type", "payload", "attempts", "priority", "error"):
            assert getattr(unique_job, name) == getattr(other, name)
        assert (unique_job.enqueued_at, unique_job.process_at) == (clock.now, clock.now + MINUTE)
        assert unique_job.job_id == job_id


def test_keys_are_unique_within_a_queue(engine: Engine) -> None:
    assert put_unique(engine)
    assert put_unique(engine, "other")
    assert put_unique(engine, queue="other")
    assert not put_unique(engine, queue="other")
    assert len(queued(engine)) == 3


def test_a_job_made_by_enqueue_holds_its_key(engine: Engine) -> None:
    """The key is taken even while the job is pending in the session."""
    with Session(engine) as session, session.begin():
        enqueue(session, "mail", unique_key="k")
        assert not enqueue_unique(session, "mail", unique_key="k").created
    assert len(queued(engine)) == 1


@pytest.mark.parametrize("handler", [succeed, fail])
def test_a_finished_job_frees_its_key(engine: Engine, handler: Callable[[str, Any], None]) -> None:
    """A success and a final failure both free the key."""
    for _ in range(2):
        assert put_unique(engine)
        assert not put_unique(engine)
        assert run_all(engine, handler) == 1
    assert queued(engine) == []


def test_a_job_that_waits_for_its_retry_keeps_its_key(engine: Engine) -> None:
    assert put_unique(engine)
    run_all(engine, fail, retry_strategy={"retries": 1, "delays": [60_000]})
    assert only_queued(engine).attempts == 1
    assert not put_unique(engine)


def test_a_running_job_keeps_its_key(engine: Engine) -> None:
    """``enqueue_unique`` returns the job without waiting for the worker."""
    seen: list[Any] = []

    def enqueue_again(job_type: str, payload: Any) -> None:
        with Session(engine) as session:
            assert session.scalars(select(Job).with_for_update(skip_locked=True)).all() == []
            session.execute(text("SET LOCAL lock_timeout = '1s'"))
            result = enqueue_unique(session, "mail", unique_key="k")
            seen.append((result.created, result.job.job_id))

    assert put_unique(engine)
    job_id = only_queued(engine).job_id
    run_all(engine, enqueue_again)
    assert seen == [(False, job_id)]


def take_key(session: Session) -> None:
    """Take the key."""
    assert enqueue_unique(session, "mail", unique_key="k").created


def free_key(session: Session) -> None:
    """Free the key as a worker does when it finishes the job."""
    session.execute(delete(Job))


@pytest.mark.parametrize(
    ("first", "commits", "second_gets_job"),
    [
        (take_key, True, False),
        (take_key, False, True),
        (free_key, True, True),
        (free_key, False, False),
    ],
)
def test_a_second_transaction_waits_for_the_first_one(
    engine: Engine, first: Callable[[Session], None], commits: bool, second_gets_job: bool
) -> None:
    """A caller waits for a transaction that takes or frees the same key."""
    if first is free_key:
        put_unique(engine)
    with Session(engine) as session, ThreadPoolExecutor(1) as pool, at_most(10, session.close):
        first(session)
        second = pool.submit(put_unique, engine)
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        with engine.connect() as connection:
            eventually(lambda: connection.scalar(waiting))
        assert not second.done()
        session.commit() if commits else session.rollback()
        assert second.result(10) is second_gets_job
    assert len(queued(engine)) == 1


def test_concurrent_producers_enqueue_one_job(engine: Engine) -> None:
    """None of the producers gets an error."""
    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(lambda _: put_unique(engine), range(50)))
    assert results.count(True) == len(queued(engine)) == 1


def test_a_concurrent_insert_is_a_serialization_failure(engine: Engine) -> None:
    """This applies to isolation levels above READ COMMITTED."""
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        assert session.scalars(select(Job)).all() == []
        assert put_unique(engine)
        with pytest.raises(OperationalError, match="could not serialize"):
            enqueue_unique(session, "mail", unique_key="k")


def test_a_rollback_leaves_no_job(shop: Engine) -> None:
    """The rollback also frees the key, and no queue is announced."""
    with listening_for_queues(shop) as announced:
        with Session(shop) as session:
            session.add(Note(text="order"))
            assert enqueue_unique(session, "mail", unique_key="k").created
            session.rollback()
            session.commit()
        assert queued(shop) == []
        assert notes(shop) == []
        assert announced() == []
    assert put_unique(shop)


def test_a_savepoint_rollback_leaves_no_job(engine: Engine) -> None:
    """The rollback also frees the key and drops the announcement."""
    with listening_for_queues(engine) as announced:
        with Session(engine) as session, session.begin():
            savepoint = session.begin_nested()
            assert enqueue_unique(session, "mail", unique_key="k", queue="undone").created
            savepoint.rollback()
            assert enqueue_unique(
                session, "mail", unique_key="k", queue="undone", notify=False
            ).created
            with session.begin_nested():
                assert enqueue_unique(session, "mail", unique_key="k", queue="released").created
        assert announced() == ["released"]
    assert [job.queue for job in queued(engine)] == ["undone", "released"]


def test_only_a_new_job_is_announced(engine: Engine) -> None:
    """``notify=False`` suppresses the announcement."""
    assert put_unique(engine, queue="taken", notify=False)
    with listening_for_queues(engine) as announced:
        assert put_unique(engine, queue="loud")
        assert put_unique(engine, queue="quiet", notify=False)
        assert not put_unique(engine, queue="taken")
        assert announced() == ["loud"]


def test_a_unique_job_wakes_an_idle_worker(engine: Engine) -> None:
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
    """A foreign key may refer to an object that was pending in the session."""
    with Session(shop) as session, session.begin():
        session.add(Customer(id=7, name="Ann"))
        job = enqueue_unique(
            session, "mail", unique_key="k", job_model=EmailJob, customer_id=7, campaign="spring"
        ).job
        assert job.customer is not None
        assert (job.customer.name, job.campaign, job.internal) == ("Ann", "spring", None)
    assert only_queued(shop, EmailJob).customer_id == 7


def test_each_job_table_has_its_own_keys(shop: Engine) -> None:
    assert put_unique(shop)
    assert put_unique(shop, job_model=EmailJob)
    assert not put_unique(shop, job_model=EmailJob)


class Local(DeclarativeBase):
    """A base for tables that the shop does not have."""


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
def local_engine(engine: Engine) -> Iterator[Engine]:
    """Create these tables as well."""
    Local.metadata.create_all(engine)
    yield engine
    Local.metadata.drop_all(engine)


def test_the_database_may_generate_the_id(local_engine: Engine) -> None:
    """The returned job has its id."""
    with Session(local_engine) as session, session.begin():
        job = enqueue_unique(session, "mail", unique_key="k", job_model=NumberedJob).job
        assert not enqueue_unique(session, "mail", unique_key="k", job_model=NumberedJob).created
        number: int = job.job_id
    assert only_queued(local_engine, NumberedJob).job_id == number


def test_features_of_the_model_are_respected(local_engine: Engine) -> None:
    """Defaults, validators, column names and the polymorphic identity are applied."""
    assert put_unique(local_engine, "1", job_model=KindJob)
    assert put_unique(local_engine, "2", job_model=NightJob, colour="BLUE")
    assert not put_unique(local_engine, "2", job_model=KindJob)
    found = {(type(job), job.colour) for job in queued(local_engine, KindJob)}
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
def test_columns_that_cannot_be_written_are_rejected_by_name(
    session: Session, options: dict[str, Any], reason: str
) -> None:
    """No SQL is executed."""
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
def test_invalid_input_is_rejected_at_the_call(
    engine: Engine, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """No SQL is executed, and the transaction is not affected."""
    with Session(engine) as session:
        pending = enqueue(session, "kept")
        with pytest.raises(error, match=reason):
            enqueue_unique(session, "mail", **{"unique_key": "k"} | options)
        assert pending in session.new
        session.commit()
    assert only_queued(engine).job_type == "kept"


def test_a_key_may_have_255_characters(engine: Engine) -> None:
    """The limit counts characters, not bytes."""
    assert put_unique(engine, "€" * 255)
    assert not put_unique(engine, "€" * 255)


def test_a_scoped_session_is_accepted(engine: Engine) -> None:
    session = scoped_session(sessionmaker(engine))
    assert enqueue_unique(session, "mail", unique_key="k").created
    session.commit()
    session.remove()
    assert len(queued(engine)) == 1


@pytest.mark.parametrize("scoped", [False, True])
def test_an_async_session_is_rejected(engine: Engine, url: URL, scoped: bool) -> None:
    """The error names the async counterpart, and ``run_sync`` works."""

    async def work() -> None:
        async_engine = create_async_engine(url)
        session: Any = AsyncSession(async_engine)
        given = async_scoped_session(lambda: session, asyncio.current_task) if scoped else session
        message = r"use `await sqlalchemy_proletarian\.asyncio\.enqueue_unique\(session, \.\.\.\)`"
        with pytest.raises(TypeError, match=message):
            enqueue_unique(given, "mail", unique_key="k")
        assert await session.run_sync(enqueue_unique, "mail", unique_key="k")
        await session.commit()
        await session.close()
        await async_engine.dispose()

    asyncio.run(work())
    assert len(queued(engine)) == 1


@pytest.mark.parametrize("session", [None, object(), sessionmaker()])
def test_other_objects_than_sessions_are_rejected(session: Any) -> None:
    """The error lists the accepted classes."""
    with pytest.raises(TypeError, match="Session, scoped_session, AsyncSession"):
        enqueue_unique(session, "mail", unique_key="k")


def test_an_unbound_session_is_rejected() -> None:
    with Session() as session, pytest.raises(UnboundSessionError, match="no database for Job"):
        enqueue_unique(session, "mail", unique_key="k")


def test_a_missing_table_names_the_migrate_command(empty_database: URL) -> None:
    engine = create_engine(empty_database)
    with Session(engine) as session, pytest.raises(TablesMissingError, match="migrate upgrade"):
        enqueue_unique(session, "mail", unique_key="k")
    engine.dispose()


def test_a_producer_may_use_sqlite() -> None:
    """A program may run its own tests on SQLite."""
    engine = create_engine("sqlite://")
    Local.metadata.create_all(engine, [KindJob.__table__])  # type: ignore[list-item]
    assert put_unique(engine, job_model=KindJob)
    assert not put_unique(engine, job_model=KindJob)
    assert put_unique(engine, job_model=KindJob, queue="other")
    engine.dispose()


def test_unsupported_databases_are_rejected_by_name() -> None:
    """A database without ON CONFLICT is not supported."""
    engine = create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with Session(engine) as session, pytest.raises(NotImplementedError, match="oracle"):
        enqueue_unique(session, "mail", unique_key="k")
