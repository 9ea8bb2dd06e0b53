"""Metrics of what is enqueued and run, and the gauges of queues."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from time import sleep
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Discard,
    Handlers,
    QueueWorker,
    Snooze,
    enqueue,
    enqueue_many,
    opentelemetry,
)
from sqlalchemy_proletarian.opentelemetry import gauges
from sqlalchemy_proletarian.telemetry import ObservedRun
from sqlalchemy_proletarian.telemetry.limited import Limited

from .kinds import Kind
from .loops import in_a_loop
from .spans import Seen, instrumented, seen
from .support import ArchivedEmailJob, EmailJob, put, succeed

__all__ = ["seen"]

SENT = "messaging.client.sent.messages"
CONSUMED = "messaging.client.consumed.messages"
QUEUE = "messaging.destination.name"
JOB_TYPE = "proletarian.job.type"
OUTCOME = "proletarian.job.outcome"


def test_runs_are_counted_and_measured(engine: Engine, kind: Kind, seen: Seen) -> None:
    """By queue, job type and outcome; times are in seconds."""

    def handler(job_type: str, payload: Any) -> None:
        sleep(0.02)
        if job_type == "discard":
            raise Discard("never")
        if job_type == "retry":
            raise ValueError("not today")
        if job_type == "snooze":
            raise Snooze(timedelta(hours=1))

    for job_type in ("succeed", "succeed", "discard", "retry", "snooze"):
        put(engine, job_type)
    sleep(0.05)
    kind.run_all(engine, handler, retry_strategy={"retries": 1})

    assert seen.values(SENT, JOB_TYPE, QUEUE) == {
        ("succeed", "default"): 2,
        ("discard", "default"): 1,
        ("retry", "default"): 1,
        ("snooze", "default"): 1,
    }
    outcomes = {
        ("succeed", "success", None): 2,
        ("discard", "failure", "sqlalchemy_proletarian.retry.Discard"): 1,
        ("retry", "retried", "ValueError"): 1,
        ("retry", "failure", "ValueError"): 1,
        ("snooze", "snoozed", None): 1,
    }
    assert seen.values(CONSUMED, JOB_TYPE, OUTCOME, "error.type") == outcomes
    durations = {
        tuple(point.attributes.get(name) for name in (JOB_TYPE, OUTCOME, "error.type")): point
        for point in seen.points("messaging.process.duration")
    }
    assert {key: point.count for key, point in durations.items()} == outcomes
    for point in durations.values():
        assert 0.02 <= point.min <= point.max < 10
        assert point.explicit_bounds[0] == 0.005
    waits = {p.attributes[JOB_TYPE]: p for p in seen.points("proletarian.job.wait")}
    assert {key: point.count for key, point in waits.items()} == {
        "succeed": 2,
        "discard": 1,
        "retry": 2,
        "snooze": 1,
    }
    assert waits["succeed"].min >= 0.05


def test_a_call_of_a_batch_handler_is_measured_once(engine: Engine, seen: Seen) -> None:
    handlers = Handlers()
    handlers.batch("index", size=10)(lambda payloads: None)
    for _ in range(4):
        put(engine, "index")
    QueueWorker(engine, handlers, lease=timedelta(seconds=30)).drain()
    assert seen.values(CONSUMED, OUTCOME) == {("success",): 4}
    (point,) = seen.points("messaging.process.duration")
    assert point.count == len(seen.processed) < 4


def test_the_number_of_values_is_limited(engine: Engine, seen: Seen) -> None:
    """Beyond 100 job types or queues, the others are counted together."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [(f"type-{n}", None) for n in range(150)])
        for n in range(150):
            enqueue(session, "mail", queue=f"queue-{n}")
    counts = seen.values(SENT, QUEUE, JOB_TYPE)
    assert sum(counts.values()) == 300
    assert len({job_type for _, job_type in counts}) == 101
    assert len({queue for queue, _ in counts}) == 101
    assert counts["default", "(other)"] == 50
    assert {span.name for span in seen.sent} >= {"send (other)", "send queue-0"}


def test_limited_values_stay() -> None:
    limited = Limited()
    assert [limited(str(n)) for n in range(101)] == [*map(str, range(100)), "(other)"]
    assert limited("7") == "7"


JOBS = "proletarian.queue.jobs"
OLDEST = "proletarian.queue.oldest_due"
STATE = "proletarian.job.state"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are read each time."""
    monkeypatch.setattr(gauges, "_FRESH", 0.0)


@pytest.mark.usefixtures("at_once")
def test_the_gauges_of_queues(engine: Engine) -> None:
    """A queue that has become empty is reported as such."""
    with instrumented(engine=engine) as seen:
        put(engine, "mail")
        put(engine, "sms", process_in=timedelta(hours=1))
        put(engine, "mail", queue="fast")
        sleep(0.1)
        found = {key: value for key, value in seen.values(JOBS, QUEUE, STATE).items() if value}
        assert found == {("default", "due"): 1, ("default", "scheduled"): 1, ("fast", "due"): 1}
        oldest = seen.values(OLDEST, QUEUE)
        assert oldest.keys() == {("default",), ("fast",)}
        assert all(0.1 <= seconds < 60 for seconds in oldest.values())
        QueueWorker(engine, succeed, queues="fast").drain()
        assert seen.values(JOBS, QUEUE, STATE)["fast", "due"] == 0
        assert seen.values(OLDEST, QUEUE)[("fast",)] == 0
        opentelemetry.uninstrument()
        assert seen.values(JOBS, QUEUE) == {}
        seen.instrument(engine=engine)
        assert seen.values(JOBS, QUEUE, STATE)["default", "due"] == 1


def test_one_collection_reads_the_statistics_once(engine: Engine) -> None:
    with instrumented(engine=engine) as seen:
        put(engine, "mail")
        gauges_ = opentelemetry.instrumentation._current[1]  # type: ignore[index]
        assert gauges_ is not None
        read, reads = gauges_.read, []

        def counted() -> Any:
            reads.append(1)
            return read and read()

        gauges_.read = counted
        assert seen.points(JOBS)
        assert len(reads) == 1


@pytest.mark.usefixtures("at_once")
def test_the_gauges_of_another_table(shop: Engine) -> None:
    models: dict[str, Any] = {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob}
    with instrumented(engine=shop, **models) as seen:
        put(shop, "mail", job_model=EmailJob)
        put(shop, "sms")
        assert seen.values(JOBS, QUEUE, STATE)["default", "due"] == 1


@pytest.mark.usefixtures("at_once", "engine")
@in_a_loop
async def test_the_gauges_of_an_async_engine(loop_engine: AsyncEngine, url: URL) -> None:
    """They are collected in another thread; in the event loop's own, the last values are shown."""
    with instrumented(engine=loop_engine) as seen:
        sync = create_engine(url)
        put(sync, "mail")
        assert seen.values(JOBS, QUEUE, STATE) == {}
        found = await asyncio.to_thread(seen.values, JOBS, QUEUE, STATE)
        assert found["default", "due"] == 1
        assert seen.values(JOBS, QUEUE, STATE) == found
        sync.dispose()


def test_after_the_end_of_the_event_loop_nothing_is_reported(engine: Engine, url: URL) -> None:
    pytest.importorskip("asyncpg")
    loop_engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    put(engine, "mail")
    seen = Seen()

    async def main() -> None:
        seen.instrument(engine=loop_engine)
        await loop_engine.dispose()

    try:
        asyncio.run(main())
        assert seen.points(JOBS) == []
    finally:
        opentelemetry.uninstrument()


def test_an_event_loop_that_does_not_answer_is_no_reason_to_wait(
    engine: Engine, url: URL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK logs the error, and the other metrics are exported."""
    pytest.importorskip("asyncpg")
    monkeypatch.setattr(gauges, "_TIMEOUT", 0.05)
    loop_engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    seen, loop = Seen(), asyncio.new_event_loop()

    async def main() -> None:
        seen.instrument(engine=loop_engine)

    try:
        loop.run_until_complete(main())
        put(engine, "mail")
        with ThreadPoolExecutor() as other:
            assert other.submit(seen.values, SENT).result() == {(): 1}
        assert "TimeoutError" in caplog.text
        assert "Callback failed" in caplog.text
    finally:
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.run_until_complete(loop_engine.dispose())
        loop.close()
        opentelemetry.uninstrument()


def test_a_job_that_ended_without_a_run_is_counted(seen: Seen) -> None:
    """For example because workers crashed while they ran it."""
    telemetry = opentelemetry.instrumentation._current[0]  # type: ignore[index]
    telemetry.ended([ObservedRun(1, "mail", None, 3, outcome="failure")])
    assert seen.values(CONSUMED, JOB_TYPE, OUTCOME, QUEUE) == {("mail", "failure", None): 1}
    assert seen.points("proletarian.job.wait") == []
    assert seen.processed == []


def test_what_is_no_engine_is_refused(url: URL) -> None:
    with pytest.raises(TypeError, match="must be an Engine or an AsyncEngine"):
        opentelemetry.instrument(engine=str(url))  # type: ignore[arg-type]
    pytest.importorskip("asyncpg")
    loop_engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    with pytest.raises(RuntimeError, match="call it in a coroutine, or pass an Engine"):
        opentelemetry.instrument(engine=loop_engine)
    opentelemetry.uninstrument()  # there is nothing to undo
