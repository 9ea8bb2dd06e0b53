"""Producers: a job is a row that is inserted in the caller's transaction."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, Engine, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    JobMixin,
    JSONSerializer,
    PayloadError,
    UnboundSessionError,
    enqueue,
    enqueue_many,
    utcnow,
)
from sqlalchemy_proletarian.execution.invoke import decode_payload
from sqlalchemy_proletarian.wakeup.channels import channel_of

from .support import (
    MINUTE,
    SECOND,
    Customer,
    EmailJob,
    ManualClock,
    Note,
    notes,
    only_queued,
    put,
    queued,
)


def test_default_values_of_a_job(engine: Engine) -> None:
    """A job without options is due now, in the queue "default", with priority 5 and 0 attempts."""
    before = utcnow()
    job_id = put(engine, "mail", {"to": ["a@example.com"]})
    job = only_queued(engine)
    assert job.job_id == job_id
    assert (job.queue, job.job_type, job.priority, job.attempts) == ("default", "mail", 5, 0)
    assert json.loads(job.payload) == {"to": ["a@example.com"]}
    assert before <= job.enqueued_at == job.process_at <= utcnow()
    assert (job.unique_key, job.error) == (None, None)


def test_every_option_is_stored(engine: Engine, clock: ManualClock) -> None:
    job_id = uuid4()

    class Reversed(JSONSerializer):
        def encode(self, payload: Any, annotation: Any = None) -> str:
            return super().encode(payload, annotation)[::-1]

    put(
        engine,
        "mail",
        123,
        queue="slow",
        process_in=MINUTE,
        priority=0,
        serializer=Reversed(),
        uuid_fn=lambda: job_id,
        clock=clock,
        unique_key="once",
        notify=False,
    )
    job = only_queued(engine)
    assert (job.job_id, job.queue, job.priority, job.payload) == (job_id, "slow", 0, "321")
    assert (job.enqueued_at, job.process_at) == (clock.now, clock.now + MINUTE)
    assert job.unique_key == "once"


def test_ids_sort_by_time_of_creation(engine: Engine) -> None:
    """Increasing ids append to the end of the index."""
    ids = [put(engine, "mail") for _ in range(20)]
    assert ids == sorted(ids)
    assert all(id_.version == 7 for id_ in ids)


@pytest.mark.parametrize(
    ("options", "offset"),
    [
        ({"process_in": 90 * SECOND}, 90 * SECOND),
        ({"process_in": -MINUTE}, timedelta(0)),
        ({"process_in": timedelta(0)}, timedelta(0)),
        ({"process_at": -MINUTE}, timedelta(0)),
        ({"process_at": 2 * MINUTE}, 2 * MINUTE),
        ({"process_at": 2 * MINUTE, "process_in": MINUTE}, 2 * MINUTE),
        ({"process_at": MINUTE, "process_in": 2 * MINUTE}, MINUTE),
        ({"process_at": -MINUTE, "process_in": MINUTE}, timedelta(0)),
    ],
)
def test_process_at_takes_precedence_over_process_in(
    engine: Engine, clock: ManualClock, options: dict[str, Any], offset: timedelta
) -> None:
    """A time in the past means now."""
    if "process_at" in options:
        options = options | {"process_at": clock.now + options["process_at"]}
    put(engine, "mail", clock=clock, **options)
    assert only_queued(engine).process_at == clock.now + offset


def test_process_at_may_have_any_time_zone(engine: Engine) -> None:
    """The table stores the same instant."""
    noon = datetime(2999, 1, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    put(engine, "mail", process_at=noon)
    assert only_queued(engine).process_at == noon


def test_enqueue_neither_flushes_nor_commits(engine: Engine) -> None:
    """``enqueue`` executes no SQL; the job is pending and already has its id."""
    with Session(engine) as session:
        job = enqueue(session, "mail")
        assert isinstance(job.job_id, UUID)
        assert list(session.new) == [job]
        assert engine.pool.checkedout() == 0
        session.flush()
        assert queued(engine) == []
        session.commit()
    assert len(queued(engine)) == 1


def test_a_rollback_leaves_no_job(shop: Engine) -> None:
    """Neither a flushed nor a pending job survives the rollback of the business transaction."""
    for flush in (False, True):
        with Session(shop) as session:
            session.add(Note(text="order"))
            enqueue(session, "mail")
            enqueue_many(session, [("mail", 1)])
            if flush:
                session.flush()
            session.rollback()
            session.commit()
    assert queued(shop) == []
    assert notes(shop) == []


def test_a_failed_flush_leaves_no_job(shop: Engine) -> None:
    """No job exists if the business data cannot be written."""
    with Session(shop) as session:
        session.add(Note())
        enqueue(session, "mail")
        with pytest.raises(IntegrityError):
            session.commit()
    assert queued(shop) == []


def test_a_savepoint_rollback_removes_only_its_own_jobs(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        enqueue(session, "before")
        savepoint = session.begin_nested()
        enqueue(session, "inside")
        enqueue_many(session, [("inside", None)])
        savepoint.rollback()
        with session.begin_nested():
            enqueue(session, "released")
            deeper = session.begin_nested()
            enqueue(session, "deeper")
            deeper.rollback()
        enqueue(session, "after")
    assert [job.job_type for job in queued(engine)] == ["before", "released", "after"]


def test_a_job_and_business_data_are_committed_together(shop: Engine) -> None:
    with Session(shop) as session, session.begin():
        session.add(Note(text="order"))
        enqueue(session, "mail")
    assert notes(shop) == ["order"]
    assert len(queued(shop)) == 1


def test_a_scoped_session_is_accepted(engine: Engine) -> None:
    session = scoped_session(sessionmaker(engine))
    enqueue(session, "mail")
    enqueue_many(session, [("mail", None)])
    session.rollback()
    enqueue(session, "kept")
    enqueue_many(session, [("kept", None)])
    session.commit()
    session.remove()
    assert [job.job_type for job in queued(engine)] == ["kept", "kept"]


def run_with_async_session(
    url: URL, work: Callable[[Any], Awaitable[None]], *, scoped: bool
) -> None:
    """Run ``work`` with an AsyncSession, or an async_scoped_session."""

    async def main() -> None:
        engine = create_async_engine(url)
        session: Any = AsyncSession(engine)
        if scoped:
            session = async_scoped_session(lambda: AsyncSession(engine), asyncio.current_task)
        try:
            await work(session)
        finally:
            await session.close()
            await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("scoped", [False, True])
def test_enqueue_accepts_async_sessions(engine: Engine, url: URL, scoped: bool) -> None:
    """An async program calls the same function, without ``await``."""

    async def work(session: Any) -> None:
        enqueue(session, "rolled back")
        await session.rollback()
        enqueue(session, "kept")
        async with session.begin_nested() as savepoint:
            enqueue(session, "undone")
            await savepoint.rollback()
        await session.commit()
        enqueue(session, "never committed")

    run_with_async_session(url, work, scoped=scoped)
    assert only_queued(engine).job_type == "kept"


@pytest.mark.parametrize("session", [None, "postgresql://", object(), sessionmaker()])
def test_other_objects_than_sessions_are_rejected(session: Any) -> None:
    """The error lists the accepted classes."""
    with pytest.raises(TypeError, match="Session, scoped_session, AsyncSession"):
        enqueue(session, "mail")
    with pytest.raises(TypeError, match="Session, scoped_session, AsyncSession"):
        enqueue_many(session, [])


@pytest.mark.parametrize(
    ("job_type", "options", "error", "reason"),
    [
        ("mail", {"payload": {1, 2}}, PayloadError, "payload is a builtins.set"),
        ("mail", {"payload": {"at": [utcnow()]}}, PayloadError, r"payload\['at'\]\[0\]"),
        ("mail", {"process_at": datetime(2999, 1, 1)}, ValueError, "process_at is a naive"),  # noqa: DTZ001
        ("mail", {"clock": lambda: datetime(2024, 1, 1)}, ValueError, "clock.. is a naive"),  # noqa: DTZ001
        ("mail", {"priority": -1}, ValueError, "from 0 .first. to 9 .last., not -1"),
        ("mail", {"priority": 10}, ValueError, "from 0 .first. to 9 .last., not 10"),
        ("mail", {"priority": 1.5}, TypeError, "priority must be an int, not 1.5"),
        ("mail", {"priority": True}, TypeError, "priority must be an int, not True"),
        ("", {}, ValueError, "job_type must have 1 to 255 characters"),
        ("x" * 256, {}, ValueError, "job_type must have 1 to 255 characters"),
        ("a\0b", {}, ValueError, "no NUL"),
        (None, {}, TypeError, "job_type must be a string, not None"),
        (b"mail", {}, TypeError, "job_type must be a string, not b'mail'"),
        ("mail", {"queue": ""}, ValueError, "queue must have 1 to 255 characters"),
        ("mail", {"queue": ["a"]}, TypeError, "queue must be a string"),
    ],
)
def test_invalid_input_is_rejected_at_the_call(
    engine: Engine, job_type: Any, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """The rest of the transaction is not affected."""
    payload = options.pop("payload", None) if "payload" in options else None
    with Session(engine) as session:
        enqueue(session, "kept")
        with pytest.raises(error, match=reason):
            enqueue(session, job_type, payload, **options)
        with pytest.raises(error, match=reason):
            enqueue_many(session, [("x", 1), (job_type, payload)], **options)
        session.commit()
    assert only_queued(engine).job_type == "kept"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"process_in": 60}, TypeError),
        ({"process_at": "tomorrow"}, TypeError),
        ({"process_at": 1_700_000_000}, TypeError),
        ({"process_in": timedelta.max}, ValueError),
    ],
)
def test_an_invalid_time_is_rejected_by_the_name_of_its_option(
    session: Session, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        enqueue(session, "mail", **options)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"payload": 1}, "a mapping with 'job_type', not {'payload': 1}"),
        ("ab", "a row must be a tuple"),
        (("mail",), "a row must be a tuple"),
        (("mail", 1, 2), "a row must be a tuple"),
        (None, "a row must be a tuple"),
    ],
)
def test_an_invalid_row_is_rejected(session: Session, row: Any, reason: str) -> None:
    """The error shows what a row must look like."""
    with pytest.raises(TypeError, match=reason):
        enqueue_many(session, [("good", 1), row])


@pytest.mark.parametrize("scoped", [False, True])
def test_enqueue_many_rejects_an_async_session(engine: Engine, url: URL, scoped: bool) -> None:
    """The error names the async counterpart, and ``run_sync`` works."""

    async def work(session: Any) -> None:
        message = r"use `await sqlalchemy_proletarian\.asyncio\.enqueue_many\(session, rows\)`"
        with pytest.raises(TypeError, match=message):
            enqueue_many(session, [("mail", 1)])
        async_session = session() if scoped else session
        await async_session.run_sync(enqueue_many, [("mail", 1), ("mail", 2)])
        await session.commit()

    run_with_async_session(url, work, scoped=scoped)
    assert {job.payload for job in queued(engine)} == {"1", "2"}


def test_an_unknown_column_is_rejected_at_the_call(engine: Engine) -> None:
    with Session(engine) as session:
        with pytest.raises(TypeError, match="'colour' is an invalid keyword argument"):
            enqueue(session, "mail", colour="red")
        with pytest.raises(TypeError, match="colour: no such column in Job"):
            enqueue_many(session, [("mail", 1), {"job_type": "mail", "colour": "red"}])
        session.commit()
    assert queued(engine) == []


def test_an_unknown_option_is_rejected_at_the_call(session: Session) -> None:
    options: dict[str, Any] = {"prioritie": 1}
    message = r"enqueue_many\(\) got an unexpected keyword argument 'prioritie'"
    with pytest.raises(TypeError, match=message):
        enqueue_many(session, [], **options)


@pytest.mark.parametrize("enqueue_one", [enqueue, lambda *args: enqueue_many(args[0], [])])
def test_an_unbound_session_is_rejected_at_the_call(enqueue_one: Callable[..., object]) -> None:
    """The error says which bind is missing."""
    with Session() as session, pytest.raises(UnboundSessionError) as caught:
        enqueue_one(session, "mail")
    assert "no database for Job (table proletarian.job)" in str(caught.value)
    assert "Session(engine)" in str(caught.value)


def test_a_session_may_bind_each_model(shop: Engine) -> None:
    """Only the model of the job needs a bind."""
    with Session(binds={Job: shop}) as session:
        enqueue(session, "mail")
        with pytest.raises(UnboundSessionError, match="no database for EmailJob"):
            enqueue(session, "mail", job_model=EmailJob)
        session.commit()
    assert len(queued(shop)) == 1


def test_extra_columns_are_keyword_arguments(shop: Engine) -> None:
    """Relationships to new objects may be given as well."""
    with Session(shop) as session, session.begin():
        customer = Customer(name="Ann")
        enqueue(session, "mail", job_model=EmailJob, customer=customer, campaign="spring")
    with Session(shop) as session:
        job = session.scalars(select(EmailJob)).one()
        assert job.customer is not None
        assert (job.customer.name, job.campaign, job.internal) == ("Ann", "spring", None)


def test_a_handler_enqueues_its_own_jobs(shop: Engine) -> None:
    """Job type, queue, priority and serializer come from the handler."""
    handlers = Handlers()

    @dataclass
    class Mail:
        to: str
        at: datetime

    class Prefixed(JSONSerializer):
        def encode(self, payload: Any, annotation: Any = None) -> str:
            assert annotation is Mail
            return "P" + super().encode(payload, annotation)

        def decode(self, text: str, annotation: Any = None) -> Any:
            return super().decode(text.removeprefix("P"), annotation)

    @handlers("mail", queue="mails", priority=2, serializer=Prefixed())
    def send(payload: Mail) -> None: ...

    mail = Mail("a@example.com", datetime(2024, 1, 1, tzinfo=UTC))
    with Session(shop) as session, session.begin():
        job = send.enqueue(session, mail, process_in=MINUTE)
        assert isinstance(job, Job)
        other = send.enqueue(
            session, mail, job_model=EmailJob, queue="now", priority=0, serializer=JSONSerializer()
        )
        assert isinstance(other, EmailJob)
    job = only_queued(shop)
    assert (job.job_type, job.queue, job.priority) == ("mail", "mails", 2)
    assert job.payload.startswith('P{"to":')
    assert job.process_at == job.enqueued_at + MINUTE
    other = only_queued(shop, EmailJob)
    assert (other.queue, other.priority) == ("now", 0)
    assert decode_payload(send, job.payload, JSONSerializer()) == mail


def test_enqueue_many_takes_tuples_and_mappings(engine: Engine, clock: ManualClock) -> None:
    """Values that a row does not give come from the arguments of the call."""
    with Session(engine) as session:
        count = enqueue_many(
            session,
            iter(
                [
                    ("a", [1]),
                    {"job_type": "b"},
                    {
                        "job_type": "c",
                        "payload": {"x": 1},
                        "queue": "own",
                        "priority": 9,
                        "process_in": MINUTE,
                        "unique_key": "k",
                    },
                    {"job_type": "d", "process_at": clock.now + 2 * MINUTE},
                ]
            ),
            queue="many",
            priority=1,
            clock=clock,
        )
        assert count == 4
        session.commit()
    found = {
        job.job_type: (job.queue, job.priority, job.payload, job.process_at - clock.now)
        for job in queued(engine)
    }
    assert found == {
        "a": ("many", 1, "[1]", timedelta(0)),
        "b": ("many", 1, "null", timedelta(0)),
        "c": ("own", 9, '{"x":1}', MINUTE),
        "d": ("many", 1, "null", 2 * MINUTE),
    }
    assert {job.unique_key for job in queued(engine)} == {None, "k"}


def test_enqueue_many_without_rows_does_nothing(engine: Engine) -> None:
    with Session(engine) as session:
        assert enqueue_many(session, []) == 0
        assert not session.in_transaction()


def test_rows_may_have_extra_columns(shop: Engine) -> None:
    with Session(shop) as session, session.begin():
        customer = Customer(name="Ann")
        session.add(customer)
        session.flush()
        customer_id = customer.id
        rows = [
            {"job_type": "a", "campaign": "spring"},
            {"job_type": "b", "customer_id": customer_id},
            ("c", None),
        ]
        assert enqueue_many(session, rows, job_model=EmailJob) == 3
    found = {job.job_type: (job.campaign, job.customer_id) for job in queued(shop, EmailJob)}
    assert found == {"a": ("spring", None), "b": (None, customer_id), "c": (None, None)}


def test_enqueue_many_is_all_or_nothing(engine: Engine) -> None:
    """An invalid row, or an error in the iterator of rows, inserts no job."""

    def failing_source() -> Iterator[tuple[str, Any]]:
        yield "a", 1
        raise OSError

    with Session(engine) as session:
        with pytest.raises(PayloadError, match=r"payload\['x'\]"):
            enqueue_many(session, [("a", 1), {"job_type": "b", "payload": {"x": b""}}, ("c", 1)])
        with pytest.raises(OSError):  # noqa: PT011
            enqueue_many(session, failing_source())
        with pytest.raises(ValueError, match="priority must be"):
            enqueue_many(session, [("a", 1), {"job_type": "b", "priority": 12}])
        session.commit()
    assert queued(engine) == []


def test_enqueue_many_fills_the_defaults_of_extra_columns(engine: Engine) -> None:
    """A default function is called for each row."""

    class Base(DeclarativeBase):
        pass

    class TokenJob(JobMixin, Base):
        __tablename__ = "token_job"
        token: Mapped[str] = mapped_column(default=lambda: uuid4().hex, unique=True)
        colour: Mapped[str] = mapped_column(default="red")

    Base.metadata.create_all(engine)
    try:
        with Session(engine) as session, session.begin():
            assert enqueue_many(session, [("a", 1), ("b", 2)], job_model=TokenJob) == 2
        jobs = queued(engine, TokenJob)
        assert [job.colour for job in jobs] == ["red", "red"]
        assert len({job.token for job in jobs}) == 2
    finally:
        Base.metadata.drop_all(engine)


def test_enqueue_many_flushes_pending_objects(shop: Engine) -> None:
    """Rows may refer to objects that were pending."""
    with Session(shop) as session, session.begin():
        session.add(Note(text="pending"))
        enqueue_many(session, [("a", 1)])
        assert not session.new
    assert notes(shop) == ["pending"]


def test_thousands_of_jobs_are_enqueued_in_one_call(engine: Engine) -> None:
    with Session(engine) as session:
        assert enqueue_many(session, (("n", n) for n in range(3000))) == 3000
        session.commit()
    assert sorted(int(job.payload) for job in queued(engine)) == list(range(3000))


def test_a_producer_may_use_sqlite() -> None:
    """A program may run its own tests on another database than PostgreSQL."""

    class Base(DeclarativeBase):
        pass

    class LocalJob(JobMixin, Base):
        __tablename__ = "local_job"

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        job_id = enqueue(session, "mail", {"to": "a"}, job_model=LocalJob).job_id
        enqueue_many(session, [("mail", 2)], job_model=LocalJob)
        session.commit()
        jobs = session.scalars(select(LocalJob).order_by(LocalJob.job_id)).all()
        assert [job.payload for job in jobs] == ['{"to":"a"}', "2"]
        assert jobs[0].job_id == job_id
    engine.dispose()


def notifications(engine: Engine, work: Callable[[Session], None]) -> list[str]:
    """Return the queues that are announced when ``work`` is committed."""
    with engine.connect() as connection:
        connection.exec_driver_sql(f'LISTEN "{channel_of("proletarian.job")}"')
        connection.commit()
        with Session(engine) as session:
            work(session)
            session.commit()
        driver: Any = connection.connection.dbapi_connection
        return sorted(found.payload for found in driver.notifies(timeout=0.05))


def test_a_transaction_announces_each_queue_once(engine: Engine) -> None:
    """The number of jobs in a queue does not matter."""

    def work(session: Session) -> None:
        for n in range(5):
            enqueue(session, "mail", n, queue="a")
        enqueue_many(session, [("mail", n) for n in range(5)], queue="b")
        enqueue_many(session, [("mail", 1), {"job_type": "mail", "queue": "c"}], queue="a")

    assert notifications(engine, work) == ["a", "b", "c"]


def test_rolled_back_and_silent_jobs_are_not_announced(engine: Engine) -> None:
    """Rolled-back jobs and jobs enqueued with ``notify=False`` are not announced."""

    def work(session: Session) -> None:
        enqueue(session, "mail", queue="rolled back")
        session.rollback()
        savepoint = session.begin_nested()
        enqueue(session, "mail", queue="savepoint")
        savepoint.rollback()
        enqueue(session, "mail", queue="quiet", notify=False)
        enqueue_many(session, [("mail", 1)], queue="quiet too", notify=False)
        with session.begin_nested():
            enqueue(session, "mail", queue="loud")

    assert notifications(engine, work) == ["loud"]


def test_a_reused_session_announces_only_new_jobs(engine: Engine) -> None:
    """Jobs that were already announced or rolled back are not announced by a later commit."""
    with Session(engine) as session:
        enqueue(session, "mail", queue="earlier")
        session.commit()
        enqueue(session, "mail", queue="undone")
        session.rollback()

        def work(_: Session) -> None:
            enqueue(session, "mail", queue="later")
            session.commit()

        assert notifications(engine, work) == ["later"]


@pytest.fixture(scope="module")
def long_session(_shared_database: URL) -> Iterator[Session]:
    """Yield one session for many examples."""
    engine = create_engine(_shared_database)
    with Session(engine) as session:
        yield session
    engine.dispose()


any_text = st.text(st.characters())


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(any_text, any_text | st.integers() | st.none(), max_size=5))
def test_payloads_round_trip_through_the_database(
    long_session: Session, payload: dict[str, Any]
) -> None:
    """PostgreSQL stores all text that the serializer writes, also NULs and lone surrogates."""
    assume(json.loads(json.dumps(payload)) == payload)
    job_id = enqueue(long_session, "any", payload).job_id
    long_session.flush()
    long_session.expire_all()
    text = long_session.scalars(select(Job.payload).where(Job.job_id == job_id)).one()
    long_session.rollback()
    assert JSONSerializer().decode(text) == payload
