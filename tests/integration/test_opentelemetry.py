"""Traces: a job belongs to the trace in which it was enqueued, however it is enqueued and run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from threading import Event
from time import sleep
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.textmap import (
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode
from sqlalchemy import URL, Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Discard,
    Handlers,
    Job,
    JobCancelledError,
    QueueWorker,
    Snooze,
    enqueue,
    opentelemetry,
    process_next_job,
)
from sqlalchemy_proletarian.testing import drain

from .kinds import Kind, either_sort_of_handler, leases
from .spans import (
    Seen,
    attributes,
    errors,
    id_of,
    instrumented,
    linked,
    parent_of,
    seen,
    trace_of,
)
from .support import (
    FAST,
    MINUTE,
    SECOND,
    Note,
    archived,
    eventually,
    only_archived,
    only_queued,
    put,
    queued,
    succeed,
)

__all__ = ["seen"]


def put_in_span(seen: Seen, engine: Engine, *arguments: Any, **options: Any) -> Any:
    """Enqueue a job inside a span with the name "request"."""
    with seen.tracer.start_as_current_span("request"):
        return put(engine, *arguments, **options)


@either_sort_of_handler
def test_a_job_belongs_to_the_trace_that_enqueued_it(
    engine: Engine, kind: Kind, seen: Seen
) -> None:
    job_id = put_in_span(seen, engine, "mail", queue="post")
    kind.run_all(engine, succeed, queues="post")

    request, sent, run = seen.spans()
    assert [span.name for span in (request, sent, run)] == ["request", "send post", "process post"]
    assert len({trace_of(span) for span in (request, sent, run)}) == 1
    assert parent_of(sent) == id_of(request)
    assert parent_of(run) == id_of(sent)
    assert linked(run) == {id_of(sent)}
    assert attributes(sent) == {
        "messaging.system": "proletarian",
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "messaging.destination.name": "post",
        "messaging.message.id": str(job_id),
        "proletarian.job.type": "mail",
    }
    own = dict(attributes(run))
    assert 0 <= own.pop("proletarian.job.wait") < 60
    assert own == {
        "messaging.system": "proletarian",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "post",
        "messaging.message.id": str(job_id),
        "proletarian.job.type": "mail",
        "proletarian.job.attempt": 1,
        "proletarian.job.outcome": "success",
    }
    assert run.status.status_code is StatusCode.UNSET
    assert set(only_archived(engine).headers) == {"traceparent"}


@either_sort_of_handler
@pytest.mark.parametrize("takes_session", [False, True], ids=["plain", "session"])
def test_a_handler_runs_in_its_span(
    shop: Engine, kind: Kind, seen: Seen, *, takes_session: bool
) -> None:
    """It sees the span and the baggage of its job; what it enqueues continues the trace."""
    handlers = Handlers()
    found: list[Any] = []

    def look() -> None:
        found.append((baggage.get_baggage("tenant"), trace.get_current_span()))

    if takes_session:

        @handlers("first")
        def first(payload: None, session: Session) -> None:
            look()
            session.execute(text("SELECT 1"))
            enqueue(session, "second")
            look()

    else:

        @handlers("first")
        def first_without(payload: None) -> None:
            look()
            put(shop, "second")
            look()

    handlers("second")(lambda payload: look())
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    put_in_span(seen, shop, "first")
    context.detach(token)
    kind.run_all(shop, handlers)

    first_run, second_run = seen.processed
    _, sent = seen.sent
    assert [tenant for tenant, _ in found] == ["acme"] * 3
    assert [span.get_span_context().span_id for _, span in found] == [
        id_of(first_run),
        id_of(first_run),
        id_of(second_run),
    ]
    assert parent_of(sent) == id_of(first_run)
    assert parent_of(second_run) == id_of(sent)
    assert len({trace_of(span) for span in seen.spans()}) == 1


@either_sort_of_handler
def test_nothing_leaks_to_the_next_job(engine: Engine, kind: Kind, seen: Seen) -> None:
    """Also if a handler attaches a context and does not detach it."""
    handlers = Handlers()
    found: dict[str, Any] = {}

    @handlers("careless")
    def careless(payload: None) -> None:
        context.attach(baggage.set_baggage("leaked", "yes"))

    @handlers("next")
    def next_(payload: None) -> None:
        found.update(baggage.get_all())

    put_in_span(seen, engine, "careless", priority=0)
    opentelemetry.uninstrument()  # the next jobs have no headers
    for _ in range(3):
        put(engine, "next")
    seen.instrument()
    kind.run_batch(engine, handlers)
    assert found == {}
    _, *others = seen.processed
    assert [parent_of(span) for span in others] == [None] * 3
    assert len({trace_of(span) for span in seen.processed}) == 4
    assert not trace.get_current_span().get_span_context().is_valid


def raising(error: Exception) -> Callable[[str, Any], None]:
    def handler(job_type: str, payload: Any) -> None:
        raise error

    return handler


@pytest.mark.parametrize(
    ("error", "outcomes"),
    [
        (ValueError("not today"), ["retried", "failure"]),
        (Discard("never"), ["failure"]),
        (Snooze(timedelta(hours=1)), ["snoozed"]),
        (JobCancelledError(), ["cancelled"]),
    ],
    ids=["retried", "failure", "snoozed", "cancelled"],
)
def test_only_an_attempt_that_failed_is_an_error(
    engine: Engine, kind: Kind, seen: Seen, error: Exception, outcomes: list[str]
) -> None:
    names = {ValueError: ["ValueError"], Discard: ["sqlalchemy_proletarian.retry.Discard"]}
    failed = names.get(type(error), [])
    put(engine, "mail")
    kind.run_all(engine, raising(error), retry_strategy={"retries": 1})
    runs = seen.processed
    assert [attributes(run)["proletarian.job.outcome"] for run in runs] == outcomes
    assert [attributes(run)["proletarian.job.attempt"] for run in runs] == [
        *range(1, len(runs) + 1)
    ]
    for run in runs:
        assert errors(run) == failed
        assert attributes(run).get("error.type") == (failed[0] if failed else None)
        expected = StatusCode.ERROR if failed else StatusCode.UNSET
        assert run.status.status_code is expected
        if failed:
            assert str(error) in (run.status.description or "")
    assert len({trace_of(span) for span in seen.spans()}) == 1  # of all attempts


def test_an_error_of_a_flush_after_the_handler_is_one_of_its_attempt(
    shop: Engine, kind: Kind, seen: Seen
) -> None:
    """The handler has returned, and its span is an error because its job has failed."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: None, session: Session) -> None:
        session.add(Note(id=1, text="one"))

    with Session(shop) as session, session.begin():
        session.add(Note(id=1, text="there"))
    put(shop, "write")
    kind.run_all(shop, handlers)
    (run,) = seen.processed
    assert attributes(run)["proletarian.job.outcome"] == "failure"
    assert run.status.status_code is StatusCode.ERROR
    assert errors(run) == ["sqlalchemy.exc.IntegrityError"]


def test_a_call_of_a_batch_handler_is_one_span_with_links(
    engine: Engine, kind: Kind, seen: Seen
) -> None:
    handlers = Handlers()
    handlers.batch("index", size=10)(lambda payloads: None)
    ids = {put_in_span(seen, engine, "index") for _ in range(4)}
    kind.run_all(engine, handlers)
    runs = seen.processed
    links = [link for run in runs for link in run.links]
    assert len(runs) < 4
    assert {link.context.span_id for link in links} == {id_of(span) for span in seen.sent}
    assert {(link.attributes or {})["messaging.message.id"] for link in links} == set(map(str, ids))
    counts = [attributes(run).get("messaging.batch.message_count", 1) for run in runs]
    assert sum(counts) == 4
    (several,) = [run for run in runs if len(run.links) > 1]
    assert parent_of(several) is None
    assert attributes(several)["proletarian.job.outcome"] == "success"


def test_a_call_with_jobs_of_several_queues_names_none(engine: Engine, seen: Seen) -> None:
    handlers = Handlers()
    handlers.batch("index", size=10)(lambda payloads: None)
    for queue in ("a", "a", "b"):  # a worker begins with a call of one job
        put(engine, "index", queue=queue)
    QueueWorker(engine, handlers, queues=["a", "b"]).drain()
    first, second = seen.processed
    assert first.name == "process a"
    assert second.name == "process"
    assert attributes(second)["messaging.batch.message_count"] == 2
    assert "messaging.destination.name" not in attributes(second)


def test_calls_of_a_batch_handler_that_are_repeated_have_spans(
    engine: Engine, kind: Kind, seen: Seen
) -> None:
    """A call that raised has an error, and its jobs were undone in it."""
    handlers, calls = Handlers(), []

    @handlers.batch("index", size=4)
    def index(payloads: list[int]) -> None:
        calls.append(len(payloads))
        if 9 in payloads:
            raise ValueError("nine")

    for number in range(12):  # a worker begins with calls of one job
        put(engine, "index", number)
    kind.run_all(engine, handlers)
    seen_outcomes = {}
    for run in seen.processed:
        jobs = attributes(run).get("messaging.batch.message_count", 1)
        outcome = attributes(run)["proletarian.job.outcome"]
        seen_outcomes.setdefault(outcome, []).append(jobs)
        assert (run.status.status_code is StatusCode.ERROR) is (outcome != "success")
    assert sum(seen_outcomes["success"]) == 11
    assert seen_outcomes["failure"] == [1]
    assert set(seen_outcomes) == {"success", "failure", "undone"}
    assert [attributes(run).get("messaging.batch.message_count", 1) for run in seen.processed] == (
        calls
    )
    assert sorted(job.status for job in archived(engine)) == ["failure", *["success"] * 11]


def test_a_call_that_is_repeated_after_the_next_claim_has_a_span(
    engine: Engine, kind: Kind, seen: Seen
) -> None:
    """A call that takes longer than the batch window leaves its jobs to the next transaction."""
    handlers, calls = Handlers(), []

    @handlers.batch("index", size=4)
    def index(payloads: list[int]) -> None:
        calls.append(len(payloads))
        if 9 in payloads:
            sleep(0.1)
            raise ValueError("nine")

    for number in range(12):
        put(engine, "index", number)
    kind.run_all(engine, handlers, batch_window=timedelta(milliseconds=20))
    assert sorted(job.status for job in archived(engine)) == ["failure", *["success"] * 11]
    assert len(seen.processed) == len(calls)


def test_runs_of_a_transaction_that_failed_were_undone(shop: Engine, seen: Seen) -> None:
    """Their spans end, and their jobs run again in spans of their own."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: str, session: Session) -> None:
        # The unique code is checked when the transaction commits.
        session.add(Note(text=payload, code=1 if payload == "bad" else None))

    with Session(shop) as session, session.begin():
        session.add(Note(text="there", code=1))
    for _ in range(30):
        put(shop, "write", "warm")
    QueueWorker(shop, handlers).drain()  # from now on, jobs share transactions
    seen.clear()
    worker = QueueWorker(shop, handlers, batch_window=10 * MINUTE)
    for _ in range(30):
        put(shop, "write", "warm", priority=0)
    for payload in ("good", "bad", "fine"):
        put(shop, "write", payload)
    worker.drain()
    outcomes = [attributes(run)["proletarian.job.outcome"] for run in seen.processed]
    assert outcomes.count("success") == 32
    assert outcomes.count("undone") >= 1
    assert len(seen.processed) == len(outcomes)
    assert sorted(job.status for job in archived(shop)) == ["failure", *["success"] * 62]


def test_a_span_ends_when_its_handler_has_ended(engine: Engine, kind: Kind, seen: Seen) -> None:
    """It is exported when the outcome is committed, which may be later."""
    for seconds in [0] * (FAST + 5) + [0.5]:
        put(engine, "sleep", seconds)
    kind.run_batch(engine, lambda _, seconds: sleep(seconds))
    *fast, slow = seen.processed
    assert slow.end_time
    assert slow.start_time
    assert (slow.end_time - slow.start_time) / 1e9 > 0.49
    assert max(span.end_time or 0 for span in fast) <= slow.start_time


def test_a_span_that_is_current_around_a_worker_is_no_parent(
    engine: Engine, kind: Kind, seen: Seen
) -> None:
    """The traces of jobs without a context have nothing to do with each other."""
    handlers = Handlers()
    handlers("mail")(lambda payload: None)
    handlers.batch("index", size=10)(lambda payloads: None)
    opentelemetry.uninstrument()
    for job_type in ("mail", "mail", "index", "index"):
        put(engine, job_type)
    seen.instrument()
    with seen.tracer.start_as_current_span("start"):
        kind.run_all(engine, handlers)
    assert len(seen.processed) >= 3
    assert {parent_of(run) for run in seen.processed} == {None}
    assert len({trace_of(run) for run in seen.processed}) == len(seen.processed)


@leases
def test_a_run_that_lost_its_lease_was_undone(engine: Engine, kind: Kind, seen: Seen) -> None:
    handlers = Handlers()
    runs = []

    @handlers("mail")
    def mail(payload: None) -> None:
        runs.append(1)
        if len(runs) == 1:
            with engine.begin() as connection:  # as if another worker had claimed it
                connection.execute(text("UPDATE proletarian.job SET lease_id = NULL"))

    put(engine, "mail")
    kind.run_all(engine, handlers)
    first = seen.processed[0]
    assert attributes(first)["proletarian.job.outcome"] == "undone"
    assert first.status.status_code is StatusCode.UNSET


def test_with_use_links_each_run_is_a_trace_of_its_own(engine: Engine, kind: Kind) -> None:
    with instrumented(use_links=True) as seen:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        put_in_span(seen, engine, "mail")
        context.detach(token)
        found = []
        kind.run_all(engine, lambda *_: found.append(baggage.get_baggage("tenant")))
        (sent,), (run,) = seen.sent, seen.processed
        assert parent_of(run) is None
        assert trace_of(run) != trace_of(sent)
        assert linked(run) == {id_of(sent)}
        assert found == ["acme"]


def test_headers_of_the_caller_win(engine: Engine, seen: Seen) -> None:
    """No half of another context is added to them, and what is no context does no harm."""
    own = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "tenant": 7}
    token = context.attach(baggage.set_baggage("a", "b"))
    put_in_span(seen, engine, "mail", headers=own)
    context.detach(token)
    assert only_queued(engine).headers == {**own, "baggage": "a=b"}
    QueueWorker(engine, succeed).drain()
    (run,) = seen.processed
    assert f"{trace_of(run):x}" == "1" * 32

    seen.clear()
    put(engine, "mail", headers={"traceparent": 7, "tracestate": None, "baggage": ["x"]})
    QueueWorker(engine, succeed).drain()
    (run,) = seen.processed
    assert parent_of(run) is None
    assert attributes(run)["proletarian.job.outcome"] == "success"


def test_without_an_sdk_headers_are_not_touched(engine: Engine) -> None:
    """With the API alone, nothing is recorded, and rows stay as they are."""
    opentelemetry.instrument(tracer_provider=trace.NoOpTracerProvider())
    try:
        put(engine, "mail")
        put(engine, "mail", headers={"tenant": 7})
        assert [job.headers for job in queued(engine)] == [None, {"tenant": 7}]
        QueueWorker(engine, succeed).drain()
    finally:
        opentelemetry.uninstrument()
    assert [job.status for job in archived(engine)] == ["success"] * 2


def test_instrument_and_uninstrument_can_be_repeated(engine: Engine, seen: Seen) -> None:
    seen.instrument()
    seen.instrument()
    put(engine, "mail")
    assert len(seen.sent) == 1
    opentelemetry.uninstrument()
    opentelemetry.uninstrument()
    put(engine, "mail")
    assert len(seen.sent) == 1
    seen.instrument()
    put(engine, "mail")
    assert len(seen.sent) == 2
    assert seen.values("messaging.client.sent.messages") == {(): 2}


def test_a_worker_that_runs_makes_no_more_spans_after_uninstrument(
    engine: Engine, kind: Kind, seen: Seen
) -> None:
    """A handler that is running then still ends its span."""
    started, release = Event(), Event()
    handlers = Handlers()

    @handlers("slow")
    def slow(payload: None) -> None:
        started.set()
        release.wait(20)

    handlers("mail")(lambda payload: None)
    put(engine, "slow")
    with kind.worker(engine, handlers):
        assert started.wait(20)
        opentelemetry.uninstrument()
        release.set()
        put(engine, "mail")
        eventually(lambda: len(archived(engine)) == 2)
    assert [attributes(run)["proletarian.job.type"] for run in seen.processed] == ["slow"]


def test_what_is_not_sampled_is_not_sampled_in_the_run(engine: Engine, kind: Kind) -> None:
    """The decision travels with the job, also to a process that would sample it."""
    dropped = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    opentelemetry.instrument(tracer_provider=dropped)
    put(engine, "mail")
    opentelemetry.uninstrument()
    assert int(only_queued(engine).headers["traceparent"][-2:], 16) & 1 == 0
    with instrumented() as seen:
        kind.run_all(engine, succeed)
        assert seen.processed == []
    assert [job.status for job in archived(engine)] == ["success"]


class Own(TextMapPropagator):
    """A propagator of the user's own, which looks at all headers."""

    @property
    def fields(self) -> set[str]:
        return {"own-span"}

    def inject(
        self, carrier: Any, context: Any = None, setter: Setter[Any] = default_setter
    ) -> None:
        now = trace.get_current_span(context).get_span_context()
        setter.set(carrier, "own-span", f"{now.trace_id:x} {now.span_id:x}")

    def extract(
        self, carrier: Any, context: Any = None, getter: Getter[Any] = default_getter
    ) -> context.Context:
        found = [getter.get(carrier, key) for key in getter.keys(carrier) if key == "own-span"]
        numbers = [int(number, 16) for value in found for number in (value or [""])[0].split()]
        origin = trace.SpanContext(*numbers, is_remote=True, trace_flags=trace.TraceFlags(1))
        return trace.set_span_in_context(trace.NonRecordingSpan(origin), context)


def test_the_configured_propagator_is_used(engine: Engine, seen: Seen) -> None:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(Own())
    try:
        put(engine, "mail", headers={"tenant": 7})
        assert set(only_queued(engine).headers) == {"own-span", "tenant"}
        QueueWorker(engine, succeed).drain()
    finally:
        propagate.set_global_textmap(before)
    (sent,), (run,) = seen.sent, seen.processed
    assert parent_of(run) == id_of(sent)


KILLED = """
import os, signal, sys
from datetime import timedelta
from sqlalchemy import create_engine
from sqlalchemy_proletarian import QueueWorker
from sqlalchemy_proletarian.opentelemetry import instrument

def handler(job_type, payload):
    os.kill(os.getpid(), signal.SIGKILL)

instrument()
lease = {"lease": timedelta(seconds=1)} if sys.argv[2] else {}
QueueWorker(create_engine(sys.argv[1]), handler, **lease).drain()
"""


@pytest.mark.parametrize("lease", ["", "lease"], ids=["transaction", "lease"])
def test_the_next_run_belongs_to_the_trace_after_a_worker_was_killed(
    engine: Engine, url: URL, seen: Seen, lease: str
) -> None:
    put_in_span(seen, engine, "mail")
    program = [sys.executable, "-c", KILLED, url.render_as_string(hide_password=False), lease]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL
    with QueueWorker(engine, succeed, lease=MINUTE if lease else None, polling_interval=SECOND / 5):
        eventually(lambda: archived(engine))
    (sent,), (run,) = seen.sent, seen.processed
    assert parent_of(run) == id_of(sent)
    assert attributes(run)["proletarian.job.outcome"] == "success"


def test_process_next_job_and_the_test_kit_make_spans(engine: Engine, seen: Seen) -> None:
    put_in_span(seen, engine, "mail")
    put_in_span(seen, engine, "mail")
    with Session(engine) as session:
        assert process_next_job(session, succeed)
        drain(session, _mail())
    assert [parent_of(run) for run in seen.processed] == [id_of(span) for span in seen.sent]


def test_a_transaction_that_cannot_commit_in_process_next_job_was_undone(
    shop: Engine, seen: Seen
) -> None:
    handlers = Handlers()

    @handlers("write")
    def write(payload: None, session: Session) -> None:
        session.add(Note(text="again", code=1))

    with Session(shop) as session, session.begin():
        session.add(Note(text="there", code=1))
    put(shop, "write")
    with Session(shop) as session, pytest.raises(Exception, match="note_code_key"):
        process_next_job(session, handlers)
    (run,) = seen.processed
    assert attributes(run)["proletarian.job.outcome"] == "undone"
    assert errors(run) == ["sqlalchemy.exc.IntegrityError"]


def _mail() -> Handlers:
    handlers = Handlers()
    handlers("mail")(lambda payload: None)
    return handlers


def test_an_interrupted_run_is_no_error(engine: Engine, seen: Seen) -> None:
    """Its worker stops before the handler ends; the span ends with the outcome."""
    started, release = Event(), Event()
    handlers = Handlers()

    @handlers("slow")
    def slow(payload: None) -> None:
        started.set()
        release.wait(20)

    put(engine, "slow")
    worker = QueueWorker(
        engine, handlers, lease=MINUTE, shutdown_timeout=timedelta(milliseconds=100)
    )
    worker.start()
    assert started.wait(20)
    with pytest.raises(Exception, match="handler"):
        worker.stop()
    (run,) = seen.processed
    assert attributes(run)["proletarian.job.outcome"] == "interrupted"
    assert run.status.status_code is StatusCode.UNSET
    release.set()
    assert [job.job_type for job in queued(engine, Job)] == ["slow"]
