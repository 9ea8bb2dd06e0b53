"""The test kit, in a transaction that the test rolls back, on PostgreSQL and SQLite."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import ANY

import pydantic
import pytest
from sqlalchemy import URL, Engine, String, create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from sqlalchemy_proletarian import (
    ArchivedJob,
    Base,
    Discard,
    HandlerEndedTransactionError,
    HandlerError,
    Handlers,
    Job,
    JobCancelledError,
    OwnJobRemovedError,
    PayloadError,
    RetryStrategy,
    Snooze,
    TablesMissingError,
    UnboundSessionError,
    enqueue,
    enqueue_unique,
    process_next_job,
    utcnow,
)
from sqlalchemy_proletarian.testing import (
    FrozenClock,
    Outcome,
    assert_enqueued,
    assert_not_enqueued,
    drain,
    enqueued,
    perform,
)

from .orders import ORDERS, Order, PackParcel, SendInvoice, ShopJob, invoicing
from .support import (
    MINUTE,
    ArchivedEmailJob,
    Customer,
    EmailJob,
    Log,
    archived,
    only_archived,
    put,
    queued,
    rows,
    run_all,
    succeed,
)


class Kit(DeclarativeBase):
    """The declarative base of the application under test."""


class Letter(Kit):
    """A row that handlers write and change."""

    __tablename__ = "kit_letter"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(100))


@dataclass
class Mail:
    """A payload."""

    to: str
    copies: int = 1


class Parcel(pydantic.BaseModel):
    """A payload that pydantic decodes."""

    weight: int
    to: str


handlers = Handlers()
sent: list[Any] = []


@handlers("mail", queue="post", retry=RetryStrategy(retries=2, delays=[MINUTE, 2 * MINUTE]))
def send_mail(mail: Mail, session: Session, job: Job) -> None:
    """Write a letter; fail if the address says so; enqueue a job for each copy."""
    session.add(Letter(text=f"to {mail.to}"))
    session.flush()
    if job.attempts <= mail.to.count("!"):
        raise ConnectionError(mail.to)
    sent.append((mail, job.attempts))
    if mail.copies > 1:
        send_mail.enqueue(session, Mail(mail.to, mail.copies - 1))


@handlers("parcel")
def send_parcel(parcel: Parcel) -> None:
    """Record a parcel."""
    sent.append(parcel)


@pytest.fixture
def memory() -> Iterator[Engine]:
    """An SQLite database in memory, with transactions that can be rolled back."""
    engine = create_engine(
        "sqlite://", execution_options={"schema_translate_map": {"proletarian": None}}
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=["engine", "memory"])
def database(request: pytest.FixtureRequest) -> Engine:
    """A database of each kind, with the tables of the application."""
    engine: Engine = request.getfixturevalue(request.param)
    Kit.metadata.create_all(engine)
    return engine


@pytest.fixture
def isolated(database: Engine) -> Iterator[Session]:
    """A session in an outer transaction that is rolled back; then nothing must be left."""
    sent.clear()
    with database.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()
    assert queued(database) == archived(database) == rows(database, Letter) == []


def letters(session: Session) -> list[str]:
    """Return the texts of all letters."""
    return list(session.scalars(select(Letter.text).order_by(Letter.id)))


def message_of(failing: Any) -> str:
    """Return the message of the AssertionError that a function raises."""
    with pytest.raises(AssertionError) as caught:
        failing()
    return str(caught.value)


# Reading what is enqueued.


def test_pending_and_flushed_jobs_are_returned(isolated: Session, database: Engine) -> None:
    """Jobs that are not flushed yet count, and nothing is committed."""
    enqueue(isolated, "first", {"n": 1}, priority=2)
    isolated.commit()
    enqueue(isolated, "second", [1], queue="other", process_in=MINUTE)
    first, second = enqueued(isolated)
    assert (first.job_type, first.payload, first.queue) == ("first", {"n": 1}, "default")
    assert (first.priority, first.attempts, first.error) == (2, 0, None)
    assert (second.payload, second.queue) == ([1], "other")
    assert second.process_at - second.enqueued_at == MINUTE
    assert second.job in isolated
    assert [job.job_type for job in enqueued(isolated, "second")] == ["second"]
    assert [job.job_type for job in enqueued(isolated, queue="default")] == ["first"]
    isolated.rollback()
    assert [job.job_type for job in enqueued(isolated)] == ["first"]


def test_nothing_is_committed(engine: Engine) -> None:
    """In a session on an engine, too, reading leaves the transaction to the caller."""
    with Session(engine, autoflush=False) as session:
        enqueue(session, "job")
        assert_enqueued(session, "job", count=1)
        assert queued(engine) == []
        session.rollback()
        assert enqueued(session) == []


def test_payloads_are_decoded_to_the_annotation_of_the_handler(isolated: Session) -> None:
    """Given a handler, its payload type is what the views contain."""
    send_mail.enqueue(isolated, Mail("ada"))
    send_parcel.enqueue(isolated, Parcel(weight=3, to="ada"))
    assert [job.payload for job in enqueued(isolated, send_mail)] == [Mail("ada")]
    assert [job.payload for job in enqueued(isolated, send_parcel)] == [Parcel(weight=3, to="ada")]
    assert [job.payload for job in enqueued(isolated, "mail")] == [{"to": "ada", "copies": 1}]


def test_a_payload_that_cannot_be_decoded_names_its_job(isolated: Session) -> None:
    enqueue(isolated, "mail", {"to": 7})
    with pytest.raises(PayloadError, match=r"does not fit Mail: .*`\$\.to`") as caught:
        enqueued(isolated, send_mail)
    assert "<Job 'mail'" in caught.value.__notes__[0]


def test_jobs_of_models_and_classes(shop: Engine) -> None:
    """Columns of models are compared, and a mapped class selects its own jobs."""
    with Session(shop) as session:
        order = Order(customer=Customer(name="Ada"))
        session.add_all([order, SendInvoice(order=order, note="now")])
        session.add(PackParcel(parcel_order=order, weight=3))
        enqueue(session, "mail", job_model=EmailJob, campaign="spring")
        (invoice,) = enqueued(session, SendInvoice)
        assert invoice.job.order is order
        assert_enqueued(session, PackParcel, weight=3, queue="parcels", priority=2)
        assert_enqueued(session, "mail", job_model=EmailJob, campaign="spring")
        assert_not_enqueued(session)
        text = message_of(lambda: assert_enqueued(session, PackParcel, weight=4))
        assert "no such job is enqueued: 'PackParcel' weight=4" in text
        assert "'pack-parcel' payload=None queue='parcels'" in text
        assert "weight=3  ← weight differs" in text
        assert "'send-invoice'" in text
        with pytest.raises(TypeError, match="'weight' is neither an option nor an attr"):
            assert_enqueued(session, SendInvoice, weight=4)


def test_sessions_that_are_rejected(isolated: Session, empty_database: URL) -> None:
    """The error says which function or which command to use."""
    where = r"await sqlalchemy_proletarian\.testing\.asyncio\."
    for function in (enqueued, assert_enqueued, assert_not_enqueued):
        with pytest.raises(TypeError, match=f"{where}{function.__name__}"):
            function(AsyncSession())  # type: ignore[operator]
    with pytest.raises(TypeError, match=f"{where}drain"):
        drain(AsyncSession(), handlers)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{where}perform"):
        perform(send_parcel, Parcel(weight=1, to="a"), session=AsyncSession())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"what @handlers\(…\) returned, not <function"):
        enqueued(isolated, send_mail.function)  # type: ignore[call-overload]
    with pytest.raises(UnboundSessionError, match="no database for Job"):
        enqueued(Session())
    empty = create_engine(empty_database)
    for call in (
        enqueued,
        lambda session: drain(session, handlers),
        lambda session: perform(send_mail, Mail("a"), session=session),
    ):
        with Session(empty) as session, pytest.raises(TablesMissingError, match="migrate upgrade"):
            call(session)
    empty.dispose()


# Assertions.


def test_what_is_given_is_compared(isolated: Session) -> None:
    """The jobs that match are returned."""
    due = utcnow() + 2 * MINUTE
    send_mail.enqueue(isolated, Mail("ada"), process_at=due)
    send_mail.enqueue(isolated, Mail("bob"), process_in=MINUTE, priority=1)
    assert len(assert_enqueued(isolated, "mail")) == 2
    (ada,) = assert_enqueued(isolated, send_mail, payload=Mail("ada"), process_at=due, count=1)
    assert ada.payload == Mail("ada")
    (bob,) = assert_enqueued(isolated, "mail", process_in=MINUTE, priority=1, queue="post")
    assert bob.payload == {"to": "bob", "copies": 1}
    assert_enqueued(isolated, "mail", payload={"to": ANY, "copies": 1}, count=2)
    assert_enqueued(isolated, "mail", payload=Mail("ada"), count=1)
    assert_enqueued(isolated, queue="post", count=2)
    assert_enqueued(isolated, "parcel", count=0)
    assert_not_enqueued(isolated, "mail", payload={"to": "eve", "copies": 1})
    assert_not_enqueued(isolated, "mail", payload=None)
    assert_not_enqueued(isolated, send_parcel)
    with pytest.raises(ValueError, match="naive"):
        assert_enqueued(isolated, process_at=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(TypeError, match="'payloads' is neither an option nor an attribute"):
        assert_enqueued(isolated, payloads=1)


def test_tuples_and_other_values_are_compared_as_the_handler_gets_them(isolated: Session) -> None:
    """A payload is encoded and decoded before it is compared."""
    enqueue(isolated, "job", {"size": (1, 2)})
    (job,) = assert_enqueued(isolated, "job", payload={"size": (1, 2)})
    assert job.payload == {"size": [1, 2]}
    assert_enqueued(isolated, "job", payload={"size": (1, ANY)})


def test_the_message_shows_the_most_similar_jobs_first(isolated: Session) -> None:
    """The message says what differs: first the jobs of the type, then similar types."""
    enqueue(isolated, "report", {"month": "May"})
    enqueue(isolated, "mial", {"to": "ada"})
    enqueue(isolated, "mail", {"to": "eve", "copies": {"paper": 1, "pdf": 2}}, queue="post")
    enqueue(isolated, "mail", {"to": "ada", "copies": {"paper": 1, "pdf": 3}})
    text = message_of(
        lambda: assert_enqueued(
            isolated, "mail", payload={"to": "ada", "copies": {"paper": 1, "pdf": 2}}, queue="post"
        )
    )
    first, second, *others = text.splitlines()
    assert first == (
        "no such job is enqueued: 'mail' "
        "payload={'to': 'ada', 'copies': {'paper': 1, 'pdf': 2}} queue='post'"
    )
    assert second == "Enqueued instead, the most similar first:"
    assert [line.split("  ← ")[1] for line in others] == [
        "payload['to'] differs",
        "payload['copies']['pdf'], queue differ",
        "the type, payload['copies'], queue differ",
        "the type, payload, queue differ",
    ]
    assert others[0].startswith("  'mail' payload={'to': 'eve', 'copies': {'paper': 1, 'pdf': 2}} ")
    assert "'mial'" in others[2]


@dataclass
class Shy:
    """A payload without a text."""

    n: int

    def __repr__(self) -> str:
        raise RuntimeError


def test_every_payload_can_be_shown(isolated: Session) -> None:
    """Keys that one payload lacks are named; long texts are cut; errors of ``repr`` are ignored."""
    shy = Handlers()

    @shy("shy")
    def handle(payload: Shy) -> None: ...

    handle.enqueue(isolated, Shy(1))
    assert "payload=<Shy> " in message_of(lambda: assert_enqueued(isolated, handle, queue="x"))
    enqueue(isolated, "job", {"text": "a" * 500, "n": 1})
    text = message_of(lambda: assert_enqueued(isolated, "job", payload={"text": "a" * 500}))
    assert "payload['n'] differs" in text
    assert max(len(line) for line in text.splitlines()) < 400


def test_the_other_messages(isolated: Session) -> None:
    """The message fits what was asserted."""
    text = message_of(lambda: assert_enqueued(isolated, "mail"))
    assert text.startswith("no such job is enqueued: 'mail'\nNothing is enqueued, as the transac")
    for n in range(7):
        send_mail.enqueue(isolated, Mail("ada", n))
    enqueue(isolated, "report")
    text = message_of(lambda: assert_enqueued(isolated, send_mail, count=1))
    assert text.startswith("7 jobs are enqueued, not 1: 'mail'\n  'mail' payload=Mail(to='ada', co")
    assert "  … and 2 more\nAlso enqueued, the most similar first:\n  'report' " in text
    text = message_of(lambda: assert_enqueued(isolated, queue="post", count=2))
    assert text.startswith("7 jobs are enqueued, not 2: any type queue='post'\n")
    text = message_of(lambda: assert_enqueued(isolated, count=2))
    assert text.startswith("8 jobs are enqueued, not 2: any type\n")
    assert text.endswith("  … and 3 more")
    text = message_of(lambda: assert_not_enqueued(isolated, "report"))
    assert text.startswith("1 job is enqueued, but must not be: 'report'\n  'report' payload=None")
    assert "mail" not in text
    text = message_of(lambda: assert_not_enqueued(isolated))
    assert text.startswith("8 jobs are enqueued, but must not be: any type\n")
    text = message_of(lambda: assert_enqueued(isolated, "mail", payload={"to": object()}))
    assert "No job can have this payload: payload['to'] is a builtins.object" in text
    text = message_of(lambda: assert_enqueued(isolated, "mail", payload={"to": ANY, "copies": -1}))
    assert "payload['copies'] differs" in text
    assert "No job can have this payload" not in text


def test_jobs_of_other_types_need_not_be_readable_in_messages(isolated: Session) -> None:
    """A payload that cannot be decoded is shown as it is stored."""
    isolated.add(Job(job_type="clojure", payload="{:a 1}"))
    text = message_of(lambda: assert_enqueued(isolated, "mail", payload=1))
    assert "'clojure' payload='{:a 1}'" in text


# Draining.


def test_due_jobs_and_those_that_they_enqueue_run(isolated: Session) -> None:
    """All queues are drained, each job is archived, and the caller's objects are current."""
    first = Letter(text="old")
    isolated.add(first)
    change = Handlers()

    @change("change")
    def change_letter(letter_id: int, session: Session) -> None:
        session.get_one(Letter, letter_id).text = "new"
        send_mail.enqueue(session, Mail("ada", 2))

    isolated.flush()
    change_letter.enqueue(isolated, first.id)
    enqueue(isolated, "change", first.id, process_in=MINUTE)
    assert [run.outcome for run in drain(isolated, change)] == ["success"]
    assert first.text == "new"
    runs = drain(isolated, handlers)
    assert [(run.job_type, run.payload, run.attempt) for run in runs] == [
        ("mail", Mail("ada", 2), 1),
        ("mail", Mail("ada", 1), 1),
    ]
    assert [(run.error, run.process_at, run.failed) for run in runs] == [(None, None, False)] * 2
    assert sent == [(Mail("ada", 2), 1), (Mail("ada", 1), 1)]
    assert letters(isolated) == ["new", "to ada", "to ada"]
    assert drain(isolated, handlers) == []
    assert_enqueued(isolated, "change", count=1)
    ended = isolated.scalars(select(ArchivedJob.status)).all()
    assert ended == ["success", "success", "success"]
    assert isolated.get(ArchivedJob, runs[0].job_id) is not None


def test_objects_are_current_without_expire_on_commit(database: Engine) -> None:
    """What handlers wrote is seen in a session that does not expire objects at its commit, too."""
    change = Handlers()

    @change("change")
    def change_letter(letter_id: int, session: Session) -> None:
        session.get_one(Letter, letter_id).text += "!"

    with database.connect() as connection, connection.begin() as transaction:
        registry = scoped_session(
            sessionmaker(
                connection, join_transaction_mode="create_savepoint", expire_on_commit=False
            )
        )
        letter = Letter(text="a")
        registry.add(letter)
        registry.flush()
        change_letter.enqueue(registry, letter.id)
        drain(registry, change)
        assert letter.text == "a!"
        perform(change_letter, letter.id, session=registry)
        assert letter.text == "a!!"
        registry.remove()
        transaction.rollback()


def test_a_retry_runs_when_the_clock_has_moved(isolated: Session) -> None:
    """A failed attempt shows its error and when the job runs again; its writes are undone."""
    with FrozenClock(datetime(2031, 5, 1, tzinfo=UTC)) as clock:
        send_mail.enqueue(isolated, Mail("ada!!"))
        delays = [MINUTE, 2 * MINUTE]
        for attempt, delay in enumerate(delays, 1):
            (run,) = drain(isolated, handlers)
            assert (run.outcome, run.attempt, run.failed) == (Outcome.RETRIED, attempt, True)
            assert repr(run.error) == "ConnectionError('ada!!')"
            assert run.process_at == clock() + delay
            assert letters(isolated) == []
            (waiting,) = enqueued(isolated)
            assert (waiting.attempts, waiting.process_at) == (attempt, run.process_at)
            assert "ConnectionError: ada!!" in str(waiting.error)
            clock.advance(delay - timedelta(microseconds=1))
            assert drain(isolated, handlers) == []
            clock.advance_to(run.process_at)
        (run,) = drain(isolated, handlers)
        assert (run.outcome, run.attempt, run.process_at) == ("success", 3, None)
        assert letters(isolated) == ["to ada!!"]
        assert isolated.scalars(select(ArchivedJob.finished_at)).all() == [clock()]


def test_a_failure_calls_on_failed(isolated: Session) -> None:
    """A job without retries left is a failure, and ``on_failed`` gets the archived job."""
    failures: list[Any] = []
    send_mail.enqueue(isolated, Mail("ada!!!"))
    runs = []
    with FrozenClock() as clock:
        while not runs or runs[-1].process_at:
            runs += drain(
                isolated,
                handlers,
                on_failed=lambda job, error: failures.append((job.attempts, str(error))),
            )
            clock.advance(5 * MINUTE)
    assert [run.outcome for run in runs] == ["retried", "retried", "failure"]
    assert failures == [(3, "ada!!!")]
    assert_not_enqueued(isolated)


def test_the_outcomes_that_handlers_choose(isolated: Session) -> None:
    """Snooze, Discard and cancellation are outcomes of their own; only failures are failed."""
    chosen = Handlers()
    errors = [Snooze(MINUTE), Discard("hopeless"), JobCancelledError("stop")]

    @chosen("choose")
    def choose(which: int) -> None:
        raise errors[which]

    for which in range(3):
        choose.enqueue(isolated, which)
    clock = FrozenClock(utcnow())
    runs = drain(isolated, chosen, clock=clock)
    assert [(run.outcome, run.error, run.failed) for run in runs] == [
        ("snoozed", errors[0], False),
        ("failure", errors[1], True),
        ("cancelled", errors[2], False),
    ]
    assert runs[0].process_at == clock() + MINUTE
    choose.enqueue(isolated, 0)
    drain(isolated, chosen, raise_errors=True)
    choose.enqueue(isolated, 1)
    with pytest.raises(Discard, match="hopeless"):
        drain(isolated, chosen, raise_errors=True)


def test_the_first_error_is_raised_if_asked(isolated: Session) -> None:
    """The handler's own exception is raised, after its job is settled; later jobs do not run."""
    letter = Letter(text="mine")
    isolated.add(letter)
    for to in ("ada", "bob!", "eve"):
        send_mail.enqueue(isolated, Mail(to))
    with pytest.raises(ConnectionError, match="bob!") as caught:
        drain(isolated, handlers, raise_errors=True)
    shown = [entry.name for entry in caught.traceback if not entry.ishidden(caught)]
    assert shown == ["test_the_first_error_is_raised_if_asked", "send_mail"]
    (note,) = caught.value.__notes__
    assert "attempt 1 of the job 'mail' with the payload Mail(to='bob!', copies=1)" in note
    assert [job.attempts for job in enqueued(isolated)] == [1, 0]
    assert letter.text == "mine"
    assert letters(isolated) == ["mine", "to ada"]


def test_unique_jobs(isolated: Session) -> None:
    """The key of a job is taken until the job has run."""
    for _ in range(2):
        enqueue_unique(isolated, "parcel", {"weight": 1, "to": "a"}, unique_key="only")
    assert_enqueued(isolated, "parcel", unique_key="only", count=1)
    assert len(drain(isolated, handlers)) == 1
    assert enqueue_unique(isolated, "parcel", unique_key="only").created


def test_what_handlers_enqueue_is_enqueued_by_the_given_clock(isolated: Session) -> None:
    """The clock of ``drain`` is the default clock while jobs run."""
    clock = FrozenClock(datetime(2031, 5, 1, tzinfo=UTC))
    send_mail.enqueue(isolated, Mail("ada", 3), clock=clock)
    assert len(drain(isolated, handlers, clock=clock)) == 3
    times = isolated.scalars(select(ArchivedJob.enqueued_at)).all()
    assert set(times) == {clock()}
    assert utcnow() < clock()


def test_a_clock_may_be_a_function_of_the_current_time(isolated: Session) -> None:
    """A clock that is an hour ahead is also the clock of what handlers enqueue."""
    send_mail.enqueue(isolated, Mail("ada", 2), process_in=MINUTE)
    assert drain(isolated, handlers) == []
    assert len(drain(isolated, handlers, clock=lambda: utcnow() + 60 * MINUTE)) == 2
    times = isolated.scalars(select(ArchivedJob.enqueued_at)).all()
    assert max(times) - min(times) >= 60 * MINUTE


def test_a_worker_follows_the_clock_of_its_block(engine: Engine, held: dict[str, Any]) -> None:
    """A worker that is made in the block runs what is due then, in both modes."""
    log = Log()
    with FrozenClock(datetime(2031, 5, 1, tzinfo=UTC)) as clock:
        put(engine, "job", process_in=MINUTE)
        assert run_all(engine, succeed, log=log, **held) == 0
        clock.advance(MINUTE)
        assert run_all(engine, succeed, log=log, **held) == 1
        assert only_archived(engine).finished_at == clock()
    assert "clock-skew" not in log.events()


def test_a_job_of_another_clock_is_reported(isolated: Session) -> None:
    """A job that was enqueued later than now is no job that silently does not run."""
    send_mail.enqueue(isolated, Mail("ada"))
    clock = FrozenClock(datetime(2020, 5, 1, tzinfo=UTC))
    with pytest.raises(ValueError, match=r"'mail' was enqueued at .* 2020-05-01.*`with clock:"):
        drain(isolated, handlers, clock=clock)
    assert len(drain(isolated, handlers)) == 1


def test_jobs_without_a_handler_are_logged(
    isolated: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """A job of a misspelt type does not run, and the log says so."""
    enqueue(isolated, "mial")
    with caplog.at_level(logging.WARNING, "sqlalchemy_proletarian"):
        assert drain(isolated, handlers) == []
    assert "job-type-unknown: job_type=mial jobs=1" in caplog.text
    assert_enqueued(isolated, "mial")


def test_jobs_that_run_forever_are_stopped(isolated: Session) -> None:
    send_mail.enqueue(isolated, Mail("ada", 100))
    with pytest.raises(RuntimeError, match=r"more than 10 jobs: 11 of 'mail' \(success\)"):
        drain(isolated, handlers, max_runs=10)
    assert len(drain(isolated, handlers)) == 89


def test_queues_models_and_serializers_are_options(shop: Engine) -> None:
    """The options are those of a worker."""
    with Session(shop) as session:
        order = Order(customer=Customer(name="Ada"))
        session.add_all([order, SendInvoice(order=order), SendInvoice(order=order, queue="x")])
        session.flush()
        options = {name: ORDERS[name] for name in ("job_model", "archived_job_model")}
        (run,) = drain(session, invoicing(), queues=["x"], **options)
        assert (run.job_type, run.payload) == ("send-invoice", None)
        assert order.invoiced == 1
        assert len(drain(session, invoicing(), **options)) == 1
        assert order.invoiced == 2
        assert_not_enqueued(session, job_model=ShopJob)
        enqueue(session, "mail", {"to": "a"}, job_model=EmailJob, campaign="spring")
        (run,) = drain(
            session,
            lambda job_type, payload: sent.append((job_type, payload)),
            job_model=EmailJob,
            archived_job_model=ArchivedEmailJob,
        )
        assert sent[-1] == (run.job_type, run.payload) == ("mail", {"to": "a"})
        assert session.scalars(select(ArchivedEmailJob.campaign)).all() == ["spring"]


def test_a_payload_that_does_not_fit_is_shown_as_text(isolated: Session) -> None:
    """The attempt fails with the error of the payload."""
    enqueue(isolated, "parcel", {"weight": "heavy", "to": "a"})
    (run,) = drain(isolated, handlers)
    assert run.payload == '{"weight":"heavy","to":"a"}'
    assert isinstance(run.error, PayloadError)


def test_arguments_that_are_rejected(isolated: Session) -> None:
    """The error names the option or the handler, and what to do."""
    with pytest.raises(TypeError, match=r"drain\(\) got .* 'raise_error': its options are"):
        drain(isolated, handlers, raise_error=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"process_next_job\(\) got an unexpected .* 'max_runs'"):
        process_next_job(isolated, handlers, max_runs=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="max_runs must be at least 1"):
        drain(isolated, handlers, max_runs=0)
    in_a_loop = Handlers()

    @in_a_loop("job")
    async def job(payload: Any) -> None: ...

    class Special(Session):
        """A session class of the user."""

    special = Handlers()

    @special("job")
    def with_special(payload: Any, session: Special) -> None: ...

    where = r"await sqlalchemy_proletarian\.testing\.asyncio\."
    with pytest.raises(HandlerError, match=f"is async: use `{where}drain"):
        drain(isolated, in_a_loop)
    with pytest.raises(HandlerError, match=f"is async: use `{where}perform"):
        perform(job, None)
    with pytest.raises(HandlerError, match=r"a .*Special.*: call drain with such a session"):
        drain(isolated, special)
    with pytest.raises(HandlerError, match="call perform with such a session"):
        perform(with_special, None, session=isolated)


# Performing one handler.


def test_a_handler_gets_what_a_worker_gives_it(isolated: Session) -> None:
    """The payload is decoded, session and job are given, and only its writes are left."""
    alone = Handlers()

    @alone("job")
    def job(payload: Any, session: Session, job: Job) -> None:
        assert session is not isolated
        assert job in session
        sent.append((payload, job.attempts, job.job_type, job.payload))
        session.add(Letter(text="kept"))
        enqueue(session, "next")

    pending = Letter(text="pending")
    isolated.add(pending)
    perform(job, {"size": (1, 2)}, session=isolated, attempt=3)
    assert sent == [({"size": [1, 2]}, 3, "job", '{"size":[1,2]}')]
    assert letters(isolated) == ["pending", "kept"]
    assert [job.job_type for job in enqueued(isolated)] == ["next"]
    assert isolated.scalars(select(ArchivedJob)).all() == []
    isolated.rollback()
    assert letters(isolated) == []


def test_an_error_of_the_handler_is_raised_and_leaves_nothing(isolated: Session) -> None:
    """The caller's own changes stay."""
    isolated.add(Letter(text="mine"))
    with pytest.raises(ConnectionError, match="ada!") as caught:
        perform(send_mail, Mail("ada!"), session=isolated)
    assert caught.traceback[-1].name == "send_mail"
    assert letters(isolated) == ["mine"]
    assert_not_enqueued(isolated)
    perform(send_mail, Mail("ada!"), session=isolated, attempt=2)
    assert letters(isolated) == ["mine", "to ada!"]
    snoozing = Handlers()

    @snoozing("job")
    def snooze(payload: Any) -> None:
        raise Snooze(MINUTE)

    with pytest.raises(Snooze):
        perform(snooze, None)


def test_a_handler_must_not_end_the_transaction(isolated: Session) -> None:
    """It gets the errors that it gets in a worker."""
    ending = Handlers()

    @ending("commit")
    def commit(payload: Any, session: Session) -> None:
        session.commit()

    @ending("remove")
    def remove(payload: Any, session: Session, job: Job) -> None:
        session.delete(job)

    isolated.add(Letter(text="mine"))
    with pytest.raises(HandlerEndedTransactionError):
        perform(commit, None, session=isolated)
    with pytest.raises(OwnJobRemovedError):
        perform(remove, None, session=isolated)
    assert letters(isolated) == ["mine"]
    assert_not_enqueued(isolated)


def test_a_write_that_fails_at_the_end_is_raised(isolated: Session) -> None:
    """Objects that a handler only adds are flushed after it, as by a worker."""
    writing = Handlers()

    @writing("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Letter(text=None))

    with pytest.raises(Exception, match=r"(?i)not.null"):
        perform(write, None, session=isolated)
    assert letters(isolated) == []


def test_the_handler_of_a_job_class(shop: Engine) -> None:
    """It gets the object, with its relationships; afterwards there is no such job."""
    with Session(shop) as session:
        order = Order(customer=Customer(name="Ada"))
        session.add(order)
        session.flush()
        (handler,) = invoicing()
        perform(handler, SendInvoice(order_id=order.id), session=session)
        assert order.invoiced == 1
        assert_not_enqueued(session, job_model=ShopJob)
        session.rollback()
    assert rows(shop, Order) == []


def test_the_job_of_a_model(shop: Engine) -> None:
    """Columns that a model adds are options."""
    alone = Handlers()

    @alone("job")
    def job(payload: Any, job: EmailJob) -> None:
        sent.append(job.campaign)

    with Session(shop) as session:
        perform(job, None, session=session, job_model=EmailJob, campaign="spring")
        assert_not_enqueued(session, job_model=EmailJob)
    assert sent[-1] == "spring"


def test_a_handler_of_a_payload_only_needs_no_session() -> None:
    """The payload is checked as at enqueue time; other handlers need a session."""
    sent.clear()
    perform(send_parcel, Parcel(weight=1, to="a"))
    assert sent == [Parcel(weight=1, to="a")]
    with pytest.raises(PayloadError, match="payload"):
        perform(send_parcel, {"weight": "heavy"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'mail' takes a session or the job, so perform needs ses"):
        perform(send_mail, Mail("a"))
    with pytest.raises(TypeError, match=r"what @handlers\(…\) returned, not <function send_parcel"):
        perform(send_parcel.function, None)  # type: ignore[arg-type]
