"""Producers without a session: jobs are inserted in the transaction of a Connection."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, BigInteger, Connection, Engine, Identity, event, insert, text
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    JobMixin,
    JSONSerializer,
    PayloadError,
    PrivilegeError,
    QueueWorker,
    enqueue,
    enqueue_many,
    enqueue_unique,
)
from sqlalchemy_proletarian import asyncio as awaitable

from .loops import in_a_loop
from .support import (
    MINUTE,
    Customer,
    EmailJob,
    Log,
    ManualClock,
    Note,
    eventually,
    listening,
    notes,
    only_queued,
    queued,
)


class Numbered(DeclarativeBase):
    """Tables whose ids the database generates, and joined tables."""


class NumberedJob(JobMixin, Numbered):
    """A job whose id is a number."""

    __tablename__ = "numbered_job"
    __mapper_args__: Any = {"polymorphic_on": "job_type"}  # noqa: RUF012

    job_id: Mapped[int] = mapped_column(  # type: ignore[assignment]
        BigInteger, Identity(), primary_key=True
    )
    version: Mapped[int] = mapped_column(default=1)
    token: Mapped[str] = mapped_column(default=lambda: uuid4().hex)


class Invoice(NumberedJob):
    """A class of one job type."""

    __mapper_args__: Any = {"polymorphic_identity": "invoice"}  # noqa: RUF012
    __queue__ = "invoices"


@pytest.fixture
def numbered(engine: Engine) -> Any:
    Numbered.metadata.create_all(engine)
    yield engine
    Numbered.metadata.drop_all(engine)


def test_a_job_is_inserted_in_the_transaction_of_the_connection(shop: Engine) -> None:
    """The row is there at once, the caller commits, and the result is the job's id."""
    with shop.begin() as connection:
        connection.execute(insert(Note), {"text": "a"})
        job_id = enqueue(connection, "mail", {"to": "Ada"})
        there = connection.execute(text("SELECT job_id FROM proletarian.job")).scalar_one()
        assert isinstance(job_id, UUID)
        assert there == job_id
        assert queued(shop) == []
    job = only_queued(shop)
    assert (job.job_id, job.queue, job.job_type, job.priority) == (job_id, "default", "mail", 5)
    assert (job.attempts, job.deaths, json.loads(job.payload)) == (0, 0, {"to": "Ada"})
    assert job.enqueued_at == job.process_at
    assert notes(shop) == ["a"]


def test_every_option_is_stored(engine: Engine, clock: ManualClock) -> None:
    job_id = uuid4()
    with engine.begin() as connection:
        found = enqueue(
            connection,
            "mail",
            1,
            queue="slow",
            process_in=MINUTE,
            priority=0,
            uuid_fn=lambda: job_id,
            clock=clock,
        )
        assert found == job_id
    job = only_queued(engine)
    assert (job.job_id, job.queue, job.priority, job.payload) == (job_id, "slow", 0, "1")
    assert (job.enqueued_at, job.process_at) == (clock.now, clock.now + MINUTE)


def test_a_rollback_leaves_neither_a_job_nor_a_notification(engine: Engine, url: URL) -> None:
    """The same is true for a SAVEPOINT; a commit sends one NOTIFY for each queue."""
    with listening(url) as announced, engine.connect() as connection:
        enqueue(connection, "mail", queue="undone")
        enqueue_many(connection, [("mail", 1)], queue="undone")
        enqueue_unique(connection, "mail", unique_key="a", queue="undone")
        connection.rollback()
        with connection.begin():
            with connection.begin_nested() as savepoint:
                enqueue(connection, "mail", queue="undone")
                savepoint.rollback()
            for _ in range(3):
                enqueue(connection, "mail", queue="one")
            enqueue(connection, "mail", queue="quiet", notify=False)
            enqueue_many(connection, [("mail", 1), ("mail", 2)], queue="many")
            enqueue_unique(connection, "mail", unique_key="a", queue="unique")
        assert announced() == ["many", "one", "unique"]
    assert {job.queue for job in queued(engine)} == {"one", "quiet", "many", "unique"}


def test_a_worker_of_the_same_process_is_woken(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit of a Connection that stays open wakes a worker that cannot listen."""
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.listener._RECEIVERS", {})
    seen: list[Any] = []
    log = Log()
    with (
        engine.connect() as connection,
        QueueWorker(
            engine,
            lambda _, payload: seen.append(payload),
            polling_interval=timedelta(hours=1),
            log=log,
        ),
    ):
        for n in range(2):
            eventually(lambda n=n: log.events().count("polling-for-jobs") >= 4 * (n + 1))  # type: ignore[misc]
            enqueue(connection, "mail", n)
            connection.commit()
            eventually(lambda n=n: seen == list(range(n + 1)), seconds=20)  # type: ignore[misc]


@pytest.mark.parametrize("bad", [{"x": b""}, {1: 2}])
def test_a_payload_that_cannot_be_encoded_is_rejected(engine: Engine, bad: Any) -> None:
    """The transaction goes on."""
    with engine.begin() as connection:
        with pytest.raises(PayloadError, match="payload"):
            enqueue(connection, "mail", bad)
        with pytest.raises(ValueError, match="priority must be"):
            enqueue(connection, "mail", priority=10)
        with pytest.raises(TypeError, match="colour: no such column in Job"):
            enqueue(connection, "mail", colour="red")
        with pytest.raises(TypeError, match="attempts: enqueue sets this value itself"):
            enqueue(connection, "mail", attempts=3)
        enqueue(connection, "kept")
    assert only_queued(engine).job_type == "kept"


def test_extra_columns(shop: Engine) -> None:
    """Columns are keyword arguments; a relationship needs a session."""
    with Session(shop) as session, session.begin():
        session.add(Customer(id=1, name="Ann"))
    with shop.begin() as connection:
        enqueue(connection, "a", job_model=EmailJob)
        enqueue(connection, "b", job_model=EmailJob, customer_id=1, unique_key="k")
        enqueue_many(connection, [{"job_type": "c", "campaign": "spring"}], job_model=EmailJob)
        with pytest.raises(TypeError, match="customer is a relationship of EmailJob: pass the for"):
            enqueue(connection, "d", job_model=EmailJob, customer=Customer(name="Bob"))
        with pytest.raises(TypeError, match="customer is a relationship of EmailJob"):
            enqueue(connection, EmailJob(job_type="d", customer=Customer(name="Bob")))
        with pytest.raises(ValueError, match="unique_key must have"):
            enqueue(connection, "d", job_model=EmailJob, unique_key="")
    found = {
        job.job_type: (job.customer_id, job.campaign, job.unique_key)
        for job in queued(shop, EmailJob)
    }
    assert found == {"a": (None, None, None), "b": (1, None, "k"), "c": (None, "spring", None)}


def test_ids_that_the_database_generates(numbered: Engine) -> None:
    """They are returned; the defaults of Python columns are filled."""
    with numbered.begin() as connection:
        one = enqueue(connection, "invoice", job_model=Invoice)
        job = Invoice()
        two = enqueue(connection, job, priority=1)
        three = enqueue_unique(connection, "invoice", unique_key="k", job_model=Invoice).job
        assert not enqueue_unique(connection, "invoice", unique_key="k", job_model=Invoice).created
        assert enqueue_many(connection, [{"payload": 1}, {"payload": 2}], job_model=Invoice) == 2
        with pytest.raises(ValueError, match="use job_model=Invoice"):
            enqueue(connection, "invoice", job_model=NumberedJob)
    jobs = queued(numbered, NumberedJob)
    assert {one, two, three} < {job.job_id for job in jobs}
    assert len({job.token for job in jobs}) == len(jobs) == 5
    assert {(type(job), job.queue, job.version) for job in jobs} == {(Invoice, "invoices", 1)}
    assert job.job_id == two


def test_a_job_object(shop: Engine) -> None:
    """An object that is in a session, or was loaded, is not inserted again."""
    job = EmailJob(job_type="a", campaign="spring")
    with shop.begin() as connection, Session(shop) as session:
        assert enqueue(connection, job, queue="mails", process_in=MINUTE) == job.job_id
        pending = EmailJob(job_type="b")
        session.add(pending)
        with pytest.raises(ValueError, match="is in a session, which inserts it"):
            enqueue(connection, pending)
    found = only_queued(shop, EmailJob)
    assert (found.job_id, found.queue, found.campaign) == (job.job_id, "mails", "spring")
    assert found.process_at == found.enqueued_at + MINUTE
    with shop.begin() as connection, pytest.raises(ValueError, match="is enqueued already"):
        enqueue(connection, found)


def test_a_handler_enqueues_its_own_jobs(engine: Engine) -> None:
    handlers = Handlers()

    @handlers("remind", queue="mails", priority=2)
    def remind(at: datetime) -> None: ...

    now = datetime.now(UTC)
    with engine.begin() as connection:
        job_id = remind.enqueue(connection, now)
        with pytest.raises(PayloadError):
            remind.enqueue(connection, "tomorrow")  # type: ignore[arg-type]
    job = only_queued(engine)
    assert (job.job_id, job.job_type, job.queue, job.priority) == (job_id, "remind", "mails", 2)


def test_schemas_are_translated(engine: Engine) -> None:
    """``schema_translate_map`` of the connection applies, also between other connections' jobs."""
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
        connection.execute(text("CREATE TABLE tenant.job (LIKE proletarian.job INCLUDING ALL)"))
    try:
        for schema in ("proletarian", "tenant", "proletarian"):
            mapped = engine.execution_options(schema_translate_map={"proletarian": schema})
            with (engine if schema == "proletarian" else mapped).begin() as connection:
                enqueue(connection, schema)
                enqueue_many(connection, [(schema, 1)])
        with engine.connect() as connection:
            found = connection.execute(text("SELECT job_type FROM tenant.job")).scalars().all()
            assert found == ["tenant", "tenant"]
        assert {job.job_type for job in queued(engine)} == {"proletarian"}
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA tenant CASCADE"))


def test_statements_can_be_intercepted(engine: Engine) -> None:
    """A "before_execute" listener of the application sees the INSERT."""
    seen: list[Any] = []

    def before(_connection: Any, statement: Any, *_: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_execute", before)
    with engine.begin() as connection:
        enqueue(connection, "mail")
    assert [statement.table.name for statement in seen] == ["job"]


@pytest.mark.parametrize(
    "call",
    [
        lambda connection: enqueue(connection, "mail", uuid_fn=lambda: SAME),
        lambda connection: enqueue_many(connection, [("mail", 1)] * 2, uuid_fn=lambda: SAME),
    ],
)
def test_an_error_of_the_database_leaves_the_transaction_to_the_caller(
    engine: Engine, call: Callable[[Connection], Any]
) -> None:
    """After a rollback to its SAVEPOINT, the caller's transaction goes on."""
    with engine.begin() as connection:
        enqueue(connection, "first", uuid_fn=lambda: SAME)
        with pytest.raises(IntegrityError), connection.begin_nested():
            call(connection)
        enqueue(connection, "last")
    assert sorted(job.job_type for job in queued(engine)) == ["first", "last"]


SAME = uuid4()


def test_a_missing_privilege_is_explained(engine: Engine) -> None:
    """The error contains the GRANT."""
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE nobody_connection"))
        connection.execute(text("GRANT USAGE ON SCHEMA proletarian TO nobody_connection"))
    try:
        for call in (
            lambda connection: enqueue(connection, "mail"),
            lambda connection: enqueue_many(connection, [("mail", 1)]),
        ):
            with engine.connect() as connection:
                connection.execute(text("SET LOCAL ROLE nobody_connection"))
                with pytest.raises(PrivilegeError, match=r"GRANT INSERT ON proletarian\.job TO"):
                    call(connection)
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP OWNED BY nobody_connection"))
            connection.execute(text("DROP ROLE nobody_connection"))


def test_what_is_neither_a_session_nor_a_connection_is_rejected(engine: Engine) -> None:
    """The error says what to use instead."""
    wrong: Any = engine
    with pytest.raises(TypeError, match=r"from an engine, use Session\(engine\), or `with engine"):
        enqueue(wrong, "mail")
    wrong = object()
    with pytest.raises(TypeError, match="not object"):
        enqueue(wrong, "mail")


@in_a_loop
async def test_async_connections(engine: Engine, loop_engine: AsyncEngine, url: URL) -> None:
    """The awaitable twins take an AsyncConnection; the synchronous functions name them."""
    with listening(url) as announced:
        async with loop_engine.begin() as connection:
            await awaitable.enqueue(connection, "a", queue="announced")
            await connection.run_sync(enqueue, "a", queue="run_sync")
        assert announced() == ["announced", "run_sync"]
    with engine.begin() as plain:
        plain.execute(text("DELETE FROM proletarian.job"))
    async with loop_engine.connect() as connection:
        job_id = await awaitable.enqueue(connection, "a", {"x": 1}, queue="one")
        assert await awaitable.enqueue_many(connection, [("b", 1), ("c", 2)]) == 2
        unique_id = (await awaitable.enqueue_unique(connection, "d", unique_key="k")).job
        assert isinstance(unique_id, UUID)
        assert not (await awaitable.enqueue_unique(connection, "d", unique_key="k")).created
        assert queued(engine) == []
        await connection.commit()
        await awaitable.enqueue(connection, "never")
        await awaitable.enqueue_many(connection, [("never", 1)])
        await connection.rollback()
        wrong: Any = connection
        with pytest.raises(TypeError, match=r"await sqlalchemy_proletarian\.asyncio\.enqueue\("):
            enqueue(wrong, "a")
    wrong = loop_engine.connect()
    with pytest.raises(TypeError, match="the AsyncConnection is not open"):
        await awaitable.enqueue(wrong, "a")
    wrong = Session(engine)
    with pytest.raises(TypeError, match="needs an AsyncConnection, not Session"):
        await awaitable.enqueue(wrong, "a")
    found = {job.job_type: job for job in queued(engine)}
    assert sorted(found) == ["a", "b", "c", "d"]
    assert (found["a"].job_id, found["a"].queue, found["a"].payload) == (job_id, "one", '{"x":1}')
    assert found["d"].job_id == unique_id


def test_many_rows_with_ids_of_their_own(numbered: Engine) -> None:
    """A row may give its id, which must be of the model's type."""
    one = uuid4()
    with numbered.begin() as connection:
        enqueue_many(connection, [{"job_type": "a", "job_id": one}, ("b", 1)])
        rows = [{"job_id": 70}, {"job_id": 71, "payload": 1}]
        enqueue_many(connection, rows, job_model=Invoice)
        with pytest.raises(StatementError), connection.begin_nested():
            enqueue_many(connection, [{"job_type": "c", "job_id": 5}])
    assert {job.job_type: job.job_id == one for job in queued(numbered)} == {"a": True, "b": False}
    assert {job.job_id for job in queued(numbered, NumberedJob)} == {70, 71}


SEPARATOR = "\x1f"


@pytest.mark.parametrize("payloads", [[""], ["", "a"], ["a", "\n", "\\", "'", '"', "ü😀"]])
@pytest.mark.parametrize("extra", [[], [SEPARATOR], [f"{SEPARATOR}a{SEPARATOR}"]])
def test_many_payloads_of_any_text(engine: Engine, payloads: list[str], extra: list[str]) -> None:
    """The text of a payload arrives unchanged, whatever it contains."""

    class Raw(JSONSerializer):
        def encode(self, payload: Any, annotation: Any = None) -> str:  # noqa: ARG002
            return str(payload)

    payloads = payloads + extra
    with engine.begin() as connection:
        rows = [(f"{n}", payload) for n, payload in enumerate(payloads)]
        assert enqueue_many(connection, rows, serializer=Raw()) == len(payloads)
    assert [job.payload for job in sorted(queued(engine), key=_by_type)] == payloads


def _by_type(job: Job) -> int:
    return int(job.job_type)


def test_many_rows_with_values_of_their_own(engine: Engine, clock: ManualClock) -> None:
    """Rows of different job types, queues, times and priorities keep their values together."""
    rows = [
        {
            "job_type": f"type {n % 3}",
            "payload": n,
            "queue": f"{n % 2}\n{SEPARATOR if n == 7 else ''}",
            "priority": n % 10,
            "process_at": clock.now + n * MINUTE,
        }
        for n in range(20)
    ]
    for some in (rows[:7], rows[7:]):
        with engine.begin() as connection:
            enqueue_many(connection, some, clock=clock)
    for row, job in zip(rows, sorted(queued(engine), key=_by_payload), strict=True):
        found = (job.job_type, job.queue, job.priority, job.process_at, job.payload)
        names = ("job_type", "queue", "priority", "process_at")
        assert found == (*(row[name] for name in names), str(row["payload"]))


def _by_payload(job: Job) -> int:
    return int(job.payload)
