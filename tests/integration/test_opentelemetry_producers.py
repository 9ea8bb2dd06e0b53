"""Each way to enqueue has one span for a call, and passes its context on in the headers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from sqlalchemy import URL, Engine, event, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    JobExistsError,
    PayloadError,
    QueueWorker,
    RecurringJob,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
    utcnow,
)
from sqlalchemy_proletarian import asyncio as awaitable

from .kinds import Kind
from .loops import in_a_loop
from .spans import Seen, attributes, id_of, parent_of, seen, trace_of
from .support import Customer, EmailJob, only_queued, put, queued, rows, succeed

__all__ = ["seen"]


def span_in(headers: Any) -> str:
    """Return the id of the span that headers name."""
    return str(headers["traceparent"].split("-")[2])


def check(seen: Seen, job: Any, *, queue: str = "default") -> ReadableSpan:
    """Return the only span of a producer, which must be the one that the job's headers name."""
    (sent,) = seen.sent
    assert span_in(job.headers) == f"{id_of(sent):016x}"
    assert sent.name == f"send {queue}"
    assert attributes(sent)["messaging.destination.name"] == queue
    assert attributes(sent)["messaging.message.id"] == str(job.job_id)
    assert attributes(sent)["proletarian.job.type"] == job.job_type
    assert sent.status.status_code is StatusCode.UNSET
    return sent


handlers = Handlers()
handlers("mail", queue="post")(lambda payload: None)
handlers("page", unique_key=lambda page: f"page {page}")(lambda page: None)
(mail,) = [handler for handler in handlers if handler.job_type == "mail"]
(page,) = [handler for handler in handlers if handler.job_type == "page"]

WAYS: dict[str, tuple[str, Callable[[Session], Any]]] = {
    "session": ("default", lambda session: enqueue(session, "mail")),
    "connection": ("default", lambda session: enqueue(session.connection(), "mail")),
    "queue": ("fast", lambda session: enqueue(session, "mail", queue="fast")),
    "handler": ("post", lambda session: mail.enqueue(session, None)),
    "handler-unique": ("default", lambda session: page.enqueue(session, 1)),
    "unique": ("default", lambda session: enqueue_unique(session, "mail", unique_key="k")),
    "unique-connection": (
        "default",
        lambda session: enqueue_unique(session.connection(), "mail", unique_key="k"),
    ),
    "object": ("fast", lambda session: enqueue(session, Job(job_type="mail", queue="fast"))),
    "object-connection": (
        "default",
        lambda session: enqueue(session.connection(), Job(job_type="mail")),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_enqueue(engine: Engine, seen: Seen, way: str) -> None:
    queue, call = WAYS[way]
    with Session(engine) as session, session.begin():
        call(session)
    check(seen, only_queued(engine), queue=queue)
    assert "messaging.batch.message_count" not in attributes(seen.sent[0])


def test_a_job_of_a_class_of_its_own(shop: Engine, seen: Seen) -> None:
    with Session(shop) as session, session.begin():
        enqueue(session, "mail", job_model=EmailJob, campaign="May")
    check(seen, only_queued(shop, EmailJob))


@pytest.mark.usefixtures("engine")
@in_a_loop
async def test_each_async_way_to_enqueue(loop_engine: AsyncEngine, seen: Seen) -> None:
    """The context of the task is that of the span also while a statement is awaited."""
    with seen.tracer.start_as_current_span("request") as request:
        async with AsyncSession(loop_engine) as session, session.begin():
            enqueue(session, "mail")
            await awaitable.enqueue_many(session, [("mail", 1), ("mail", 2)])
            await awaitable.enqueue_unique(session, "mail", unique_key="k")
        async with loop_engine.begin() as connection:
            await awaitable.enqueue(connection, "mail")
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(_enqueue_in_a_task(loop_engine))
    assert [parent_of(span) for span in seen.sent] == [request.get_span_context().span_id] * 9
    async with AsyncSession(loop_engine) as session:
        jobs = (await session.scalars(select(Job))).all()
    named = {span_in(job.headers) for job in jobs}
    assert named == {f"{id_of(span):016x}" for span in seen.sent}
    assert len(jobs) == 10


async def _enqueue_in_a_task(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await awaitable.enqueue(connection, "mail")


def test_changes_of_objects(shop: Engine, seen: Seen) -> None:
    """The span of the job is part of the trace in which the session flushes."""
    changed = Handlers()
    changed("welcome")(lambda payload: None)
    sessions = sessionmaker(shop, class_=type("Own", (Session,), {}))
    changed.on_insert(Customer, "welcome", payload=lambda customer: customer.id)
    changed.on_delete(Customer, "welcome", payload=lambda customer: customer.id)
    changed.listen(sessions)
    with seen.tracer.start_as_current_span("request") as request, sessions.begin() as session:
        customer = Customer(name="Ada")
        session.add(customer)
        session.flush()
        session.delete(customer)
    assert [parent_of(span) for span in seen.sent] == [request.get_span_context().span_id] * 2
    named = [span_in(job.headers) for job in queued(shop)]
    assert named == [f"{id_of(span):016x}" for span in seen.sent]


def test_enqueue_many_is_one_span(engine: Engine, seen: Seen) -> None:
    """All rows name it; they are still sent in one statement."""
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with seen.tracer.start_as_current_span("request") as request:
        with Session(engine) as session, session.begin():
            enqueue_many(session, [("mail", n) for n in range(3000)])
        with Session(engine) as session, session.begin():
            enqueue_many(session, [("mail", 1), {"job_type": "sms", "queue": "fast"}])
    first, second = seen.sent
    assert len([statement for statement in statements if "INSERT" in statement.upper()]) == 2
    assert {span_in(job.headers) for job in queued(engine)} == {
        f"{id_of(first):016x}",
        f"{id_of(second):016x}",
    }
    assert parent_of(first) == request.get_span_context().span_id
    assert first.name == "send default"
    assert attributes(first)["messaging.batch.message_count"] == 3000
    assert attributes(first)["proletarian.job.type"] == "mail"
    assert second.name == "send"  # to several queues
    assert attributes(second)["messaging.batch.message_count"] == 2
    assert "messaging.destination.name" not in attributes(second)
    assert seen.values(
        "messaging.client.sent.messages", "messaging.destination.name", "proletarian.job.type"
    ) == {("default", "mail"): 3001, ("fast", "sms"): 1}


def test_a_key_that_is_taken(engine: Engine, seen: Seen) -> None:
    """A job that is kept keeps its context; one that is replaced gets that of the call."""
    with Session(engine) as session, session.begin():
        assert enqueue_unique(session, "mail", unique_key="k").created
        assert not enqueue_unique(session, "mail", unique_key="k").created
        with pytest.raises(JobExistsError):
            enqueue_unique(session, "mail", unique_key="k", on_conflict="raise")
    first, kept, refused = seen.sent
    assert span_in(only_queued(engine).headers) == f"{id_of(first):016x}"
    assert "messaging.message.id" not in attributes(kept)
    assert refused.status.status_code is StatusCode.ERROR
    sent = seen.values("messaging.client.sent.messages", "error.type")
    assert sent == {(None,): 1, ("sqlalchemy_proletarian.errors.JobExistsError",): 1}

    with Session(engine) as session, session.begin():
        found = enqueue_unique(session, "mail", unique_key="k", on_conflict="replace")
        assert found.replaced
    *_, last = seen.sent
    assert span_in(only_queued(engine).headers) == f"{id_of(last):016x}"
    assert attributes(last)["messaging.message.id"] == str(only_queued(engine).job_id)


@pytest.mark.parametrize(
    "call",
    [
        lambda session: enqueue(session, "mail", object()),
        lambda session: enqueue(session.connection(), "mail", queue=7),
        lambda session: enqueue_many(session, [("mail", object())]),
        lambda session: enqueue_unique(session, "mail", unique_key=""),
    ],
    ids=["payload", "queue", "many", "key"],
)
def test_a_call_that_raises_is_an_error(engine: Engine, seen: Seen, call: Any) -> None:
    with Session(engine) as session, pytest.raises((PayloadError, TypeError, ValueError)):
        call(session)
    (sent,) = seen.sent
    assert sent.status.status_code is StatusCode.ERROR
    assert attributes(sent)["error.type"]
    assert queued(engine) == []


def test_the_tick_of_a_recurring_job_starts_a_trace(engine: Engine, kind: Kind, seen: Seen) -> None:
    """Whatever was going on where its worker was started."""
    recurring = Handlers()
    recurring.recurring("report", every=timedelta(hours=1))(lambda payload: None)
    token = context.attach(baggage.set_baggage("started", "by"))
    try:
        with seen.tracer.start_as_current_span("start"):
            kind.run_all(engine, recurring)
            with engine.begin() as connection:
                past = utcnow() - timedelta(seconds=1)
                connection.execute(update(RecurringJob).values(next_at=past))
            kind.run_all(engine, recurring)
    finally:
        context.detach(token)
    (sent,), (run,) = seen.sent, seen.processed
    assert parent_of(sent) is None
    assert attributes(sent)["proletarian.recurring.name"] == "report"
    assert attributes(sent)["messaging.message.id"] == attributes(run)["messaging.message.id"]
    assert parent_of(run) == id_of(sent)
    assert len(rows(engine, RecurringJob)) == 1
    with Session(engine) as session:
        assert manage.run_schedule(session, "report")
        session.commit()
    assert len(seen.sent) == 2
    assert trace_of(seen.sent[1]) != trace_of(sent)


def test_registering_a_recurring_job_enqueues_nothing(engine: Engine, seen: Seen) -> None:
    with Session(engine) as session, session.begin():
        manage.schedule(session, "report", "report", every=timedelta(hours=1))
    assert seen.sent == []


def test_a_rollback_leaves_no_run(engine: Engine, seen: Seen) -> None:
    with Session(engine) as session:
        enqueue(session, "mail")
        session.rollback()
    QueueWorker(engine, succeed).drain()
    assert len(seen.sent) == 1
    assert seen.processed == []


NOTHING = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy_proletarian import Handlers, QueueWorker, enqueue, enqueue_many

engine = create_engine(sys.argv[1])
with Session(engine) as session, session.begin():
    job = enqueue(session, "mail")
    enqueue_many(session, [("mail", 1)])
    assert job.headers is None
assert QueueWorker(engine, lambda job_type, payload: None).drain() == 2
print([name for name in sys.modules if "opentelemetry" in name])
"""


@pytest.mark.usefixtures("engine")
def test_without_instrument_nothing_of_it_is_imported(url: URL) -> None:
    program = [sys.executable, "-c", NOTHING, url.render_as_string(hide_password=False)]
    done = subprocess.run(program, capture_output=True, check=False, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


MISSING = """
import sys
sys.modules["opentelemetry"] = None
try:
    from sqlalchemy_proletarian import opentelemetry
except ImportError as error:
    print(error)
"""


def test_without_the_extra_the_error_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MISSING], check=False, capture_output=True, text=True
    )
    assert "pip install 'sqlalchemy-proletarian[otel]'" in done.stdout, done.stderr


def test_a_caller_in_no_trace_has_a_trace_for_each_call(engine: Engine, seen: Seen) -> None:
    put(engine, "mail")
    put(engine, "mail")
    assert len({trace_of(span) for span in seen.sent}) == 2
