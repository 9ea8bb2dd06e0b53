"""The tables of a shop, and helpers to inspect the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Timer
from time import monotonic, sleep
from typing import Annotated, Any

import psycopg
from sqlalchemy import (
    URL,
    BigInteger,
    Engine,
    ForeignKey,
    Integer,
    String,
    UniqueConstraint,
    create_engine,
    false,
    func,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Handlers,
    Job,
    JobMixin,
    QueueWorker,
    RunningJob,
    enqueue,
    enqueue_many,
    utcnow,
)
from sqlalchemy_proletarian.wakeup.announce import DEBOUNCE
from sqlalchemy_proletarian.wakeup.channels import channel_of

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


Name = Annotated[str, mapped_column(String(100))]
"""A string column for tables on all databases: MySQL needs a length."""

NUMBER = BigInteger().with_variant(Integer, "sqlite")
"""The type of autoincrement ids, for all databases."""


class Shop(DeclarativeBase):
    """The user's declarative base."""


class Note(Shop):
    """Business data. A duplicate code raises an error when the transaction commits."""

    __tablename__ = "note"
    __table_args__ = (UniqueConstraint("code", deferrable=True, initially="DEFERRED"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    code: Mapped[int | None]
    transaction: Mapped[int] = mapped_column(default=func.txid_current())


class Customer(Shop):
    """A customer to whom jobs of the shop belong."""

    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[Name]


class EmailJob(JobMixin, Shop):
    """A custom job model of the shop."""

    __tablename__ = "email_job"

    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customer.id"))
    campaign: Mapped[Name | None]
    internal: Mapped[Name | None]
    customer: Mapped[Customer | None] = relationship()


class ArchivedEmailJob(ArchivedJobMixin, Shop):
    """The archive of EmailJob, without the column ``internal`` and with an additional column."""

    __tablename__ = "archived_email_job"

    customer_id: Mapped[int | None]
    campaign: Mapped[Name | None]
    reviewed: Mapped[bool] = mapped_column(server_default=false())


class ManualClock:
    """A clock that stands still until ``advance`` is called."""

    def __init__(self) -> None:
        self.now = utcnow()

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> datetime:
        self.now += by
        return self.now


class Log:
    """A ``log`` callable that records its calls."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Mapping[str, Any]]] = []

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        self.entries.append((event, data))

    def events(self) -> list[str]:
        return [event for event, _ in self.entries]

    def data(self, event: str) -> list[Mapping[str, Any]]:
        return [data for name, data in self.entries if name == event]


def connect_args(driver: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return ``connect_args`` that apply these settings to a driver's connections."""
    if driver == "asyncpg":
        return {"server_settings": dict(settings)}
    return {"options": " ".join(f"-c {name}={value}" for name, value in settings.items())}


def with_settings(engine: Engine, **settings: str) -> Engine:
    """Return another engine for the same database, whose connections have these settings."""
    return create_engine(
        engine.url,
        connect_args=connect_args(engine.driver, settings),
        execution_options={"settings": settings},
    )


def succeed(job_type: str, payload: Any) -> None:
    """Handle a job by doing nothing."""


def fail(job_type: str, payload: Any) -> None:
    """Fail every job."""
    raise ValueError(f"no {job_type} today")


def put(engine: Engine, job_type: str, payload: Any = None, **options: Any) -> Any:
    """Enqueue and commit one job, and return its id."""
    with Session(engine) as session, session.begin():
        return enqueue(session, job_type, payload, **options).job_id


def run_all(bind: Any, handlers: Any, **options: Any) -> int:
    """Run due jobs with a new worker, and return the number of runs."""
    return QueueWorker(bind, handlers, **options).drain()


def rows(engine: Engine, model: type[Any], order_by: Any = None) -> list[Any]:
    """Return all rows of a table as detached objects."""
    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(select(model).order_by(order_by)))


def queued(engine: Engine, model: type[Any] = Job) -> list[Any]:
    """Return the queued jobs in the order in which they were enqueued."""
    return rows(engine, model, model.enqueued_at)


def archived(engine: Engine, model: type[Any] = ArchivedJob) -> list[Any]:
    """Return the finished jobs in the order in which they were enqueued."""
    return rows(engine, model, model.enqueued_at)


def only_archived(engine: Engine, model: type[Any] = ArchivedJob) -> Any:
    """Return the only finished job."""
    (job,) = archived(engine, model)
    return job


def only_queued(engine: Engine, model: type[Any] = Job) -> Any:
    """Return the only queued job."""
    (job,) = queued(engine, model)
    return job


def notes(engine: Engine) -> list[str]:
    """Return the texts of all notes, in the order in which they were written."""
    return [note.text for note in rows(engine, Note, Note.id)]


PATIENCE = 25.0
"""Seconds to wait for a condition. Tests that must not find a job by polling use a longer polling
interval."""


def eventually(
    condition: Callable[[], object], seconds: float = PATIENCE, *, about: object = ""
) -> None:
    """Wait until the condition holds.

    :param seconds: the time limit; longer for slow conditions.
    :param about: shown if the condition never holds.
    """
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"the condition never became true {about}"
        sleep(0.005)


def visible_markers(engine: Engine, model: type[Any] = RunningJob) -> list[Any]:
    """Return the running markers, as soon as there are any that other sessions see.

    The server has received a marker when its handler starts, but may not have committed it yet.
    """
    eventually(lambda: rows(engine, model))
    return rows(engine, model)


@contextmanager
def at_most(seconds: float, rescue: Callable[[], object]) -> Iterator[None]:
    """Call ``rescue`` and fail if the block takes longer, so that a broken test does not hang."""
    late = Timer(seconds, rescue)
    late.daemon = True
    late.start()
    before = monotonic()
    try:
        yield
    finally:
        late.cancel()
    assert monotonic() - before < seconds, "the block took too long"


@contextmanager
def listening(url: URL, table: str = "proletarian.job") -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns the queues announced since its last call."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    channel = channel_of(table)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f'LISTEN "{channel}"')

        def announced() -> list[str]:
            with psycopg.connect(plain, autocommit=True) as other:
                other.execute("SELECT pg_notify(%s, %s)", [channel, "the end"])
            queues: list[str] = []
            for notification in connection.notifies(timeout=PATIENCE):
                if notification.payload == "the end":
                    break
                queues.append(notification.payload)
            sleep(2 * DEBOUNCE)  # a commit just after one that has notified does not notify again
            return sorted(queues)

        yield announced


def shared_transactions(engine: Engine, texts: Sequence[str]) -> int:
    """Return the number of transactions in which these notes were written."""
    return len({note.transaction for note in rows(engine, Note) if note.text in texts})


FAST = 20
"""After this many fast jobs, a worker runs the next jobs of their type in one transaction."""


def writers() -> Handlers:
    """Return a handler for "write" jobs, which adds a note and fails if the payload says so."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: dict[str, Any], session: Session) -> None:
        session.add(Note(text=payload["text"], code=payload.get("code")))
        if "fail" in payload:
            session.flush()
            raise ValueError(payload["fail"])

    return handlers


def enqueue_batch(engine: Engine, payloads: list[dict[str, Any]]) -> None:
    """Enqueue "write" jobs that run in one transaction, after FAST jobs that cause this."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("write", {"text": "warm"})] * FAST, priority=0)
        for payload in payloads:
            enqueue(session, "write", payload)
