"""Which errors are retried, and what the next attempt knows of the last error."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, RetryAfter, RetryStrategy, enqueue
from sqlalchemy_proletarian.testing import drain

from .kinds import Kind, either_sort_of_handler, event_loops
from .support import (
    MINUTE,
    SECOND,
    Log,
    ManualClock,
    archived,
    eventually,
    only_archived,
    only_queued,
    put,
    queued,
)
from .test_process_next_job import RunNext, run_next  # noqa: F401 - the fixture


class PartnerError(Exception):
    """An error that may go away."""


def last_line(error: str | None) -> str | None:
    return error and error.splitlines()[-1]


def failing(seen: list[tuple[int, str | None]], times: int) -> Handlers:
    """Return a handler that fails some times, and notes what its job says of earlier attempts."""
    handlers = Handlers()

    @handlers("call", retry=RetryStrategy(retries=times))
    def call(payload: Any, job: Job) -> None:
        seen.append((job.attempts, last_line(job.error)))
        if job.attempts <= times:
            raise ValueError(f"attempt {job.attempts}")

    return handlers


EXPECTED = [(1, None), (2, "ValueError: attempt 1"), (3, "ValueError: attempt 2")]


@either_sort_of_handler
def test_the_next_attempt_sees_the_last_error(engine: Engine, kind: Kind) -> None:
    """``job.error`` is the traceback of the last attempt, in every mode."""
    put(engine, "call")
    seen: list[tuple[int, str | None]] = []
    handlers = failing(seen, 2)
    worker = kind.worker(engine, handlers, polling_interval=SECOND / 20)
    with worker:
        eventually(lambda: archived(engine))
    assert seen == EXPECTED
    assert only_archived(engine).status == "success"


def test_the_next_call_of_process_next_job_sees_the_last_error(
    session: Session,
    run_next: RunNext,  # noqa: F811
) -> None:
    seen: list[tuple[int, str | None]] = []
    handlers = failing(seen, 2)
    enqueue(session, "call")
    for _ in range(3):
        assert run_next(session, handlers) is True
    assert seen == EXPECTED


@either_sort_of_handler
def test_an_interrupted_attempt_keeps_the_last_error(engine: Engine, kind: Kind) -> None:
    """An attempt that ends because the worker stops does not change ``job.error``."""
    put(engine, "call")
    seen: list[tuple[int, str | None]] = []
    handlers = failing(seen, 2)
    interrupted = Handlers()

    @interrupted("call", retry=RetryStrategy(retries=2))
    def stopped(payload: Any, job: Job) -> None:
        seen.append((job.attempts, last_line(job.error)))
        if job.attempts == 2:
            worker.request_stop()
        raise ValueError(f"attempt {job.attempts}")

    worker = kind.worker(engine, interrupted, polling_interval=SECOND / 20)
    with worker:
        eventually(lambda: len(seen) == 2)
    assert only_queued(engine).attempts == 1
    kind.run_all(engine, handlers)
    kind.run_all(engine, handlers)
    assert seen == [EXPECTED[0], EXPECTED[1], *EXPECTED[1:]]


def main(url: str, lease: str) -> None:
    """Fail a job, and end the process with SIGKILL in the job's second attempt."""
    handlers = Handlers()

    @handlers("call", retry=RetryStrategy(retries=2))
    def call(payload: Any, job: Job) -> None:
        if job.attempts == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(f"attempt {job.attempts}")

    options: dict[str, Any] = {"lease": float(lease) * SECOND} if lease else {}
    QueueWorker(
        create_engine(make_url(url)), handlers, polling_interval=SECOND / 20, **options
    ).run()


@pytest.mark.parametrize("lease", ["", "1"], ids=["transaction", "lease"])
def test_an_attempt_of_a_killed_worker_keeps_the_last_error(
    engine: Engine, url: URL, lease: str
) -> None:
    """A worker that is killed changes neither ``job.error`` nor ``job.attempts``."""
    put(engine, "call")
    target = url.render_as_string(hide_password=False)
    process = subprocess.run([sys.executable, "-m", __name__, target, lease], check=False)
    assert process.returncode == -signal.SIGKILL
    seen: list[tuple[int, str | None]] = []
    options: dict[str, Any] = {"lease": MINUTE} if lease else {}
    worker = QueueWorker(engine, failing(seen, 2), polling_interval=SECOND / 20, **options)
    with worker:
        eventually(lambda: archived(engine))
    assert seen == EXPECTED[1:]


@either_sort_of_handler
def test_only_the_named_exceptions_are_retried(
    engine: Engine, kind: Kind, clock: ManualClock
) -> None:
    """A job with another exception is archived at once; ``RetryAfter`` is always retried."""
    handlers = Handlers(
        retry=RetryStrategy.exponential(3, first=SECOND, jitter=False, on=PartnerError)
    )
    raised: dict[str, Exception] = {
        "partner": PartnerError("no answer"),
        "own": ValueError("a bug"),
        "group": ExceptionGroup("both", [PartnerError(), PartnerError()]),
        "mixed": ExceptionGroup("both", [PartnerError(), ValueError()]),
        "after": RetryAfter(MINUTE),
    }

    @handlers("call")
    def call(payload: str) -> None:
        raise raised[payload]

    ids = {put(engine, "call", payload, clock=clock): payload for payload in raised}
    log = Log()
    assert kind.run_all(engine, handlers, clock=clock, log=log) == len(raised)
    due = {ids[job.job_id]: job.process_at - clock.now for job in queued(engine)}
    assert due == {"partner": SECOND, "group": SECOND, "after": MINUTE}
    failed = {ids[job.job_id]: job for job in archived(engine)}
    assert failed.keys() == {"own", "mixed"}
    assert {(job.status, job.attempts) for job in failed.values()} == {("failure", 1)}
    assert log.events().count("not-retrying") == 2
    clock.advance(2 * MINUTE)
    assert kind.run_all(engine, handlers, clock=clock) == 3
    assert {ids[job.job_id]: job.process_at - clock.now for job in queued(engine)} == {
        "partner": 2 * SECOND,
        "group": 2 * SECOND,
        "after": MINUTE,
    }


def test_retry_after_is_limited_by_the_number_of_retries(
    engine: Engine, kind: Kind, clock: ManualClock
) -> None:
    """``RetryAfter`` wins over delays and exception types; the strategy limits its number."""
    handlers = Handlers()

    @handlers("call", retry=RetryStrategy(2, [MINUTE], on=PartnerError, never_on=RetryAfter))
    def call(payload: Any) -> None:
        raise RetryAfter(SECOND)

    put(engine, "call", clock=clock)
    for _ in range(3):
        assert kind.run_all(engine, handlers, clock=clock) == 1
        clock.advance(SECOND)
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("failure", 3)


@event_loops
@pytest.mark.parametrize(("on", "left"), [(TimeoutError, 1), (PartnerError, 0)])
def test_a_timeout_is_a_timeout_error(
    engine: Engine, kind: Kind, on: type[Exception], left: int
) -> None:
    """An ``async`` handler that exceeds its timeout is retried by a strategy for TimeoutError."""
    handlers = Handlers()

    @handlers("slow", timeout=SECOND / 20, retry=RetryStrategy(1, [MINUTE], on=on))
    async def slow(payload: Any) -> None:
        await asyncio.sleep(60)

    put(engine, "slow")
    kind.run_all(engine, handlers)
    assert len(queued(engine)) == left


def test_a_retry_function_may_return_a_strategy_for_some_exceptions(
    engine: Engine, kind: Kind
) -> None:
    """The strategy that a function returns is compared with the exception, too."""
    handlers = Handlers()

    @handlers("call")
    def call(payload: str) -> None:
        raise PartnerError if payload == "partner" else ValueError

    @handlers.retry_strategy("call")
    def strategy(job: Job, exception: Exception) -> dict[str, Any]:
        return {"retries": 1, "delays": [timedelta(days=1)], "on": [PartnerError]}

    put(engine, "call", "partner")
    put(engine, "call", "bug")
    kind.run_all(engine, handlers)
    assert only_queued(engine).payload == '"partner"'
    assert only_archived(engine).payload == '"bug"'


def test_the_test_kit_decides_as_a_worker(session: Session) -> None:
    """Drain shows that a job is retried only after the named exception."""
    handlers = Handlers()

    @handlers("call", retry=RetryStrategy(1, [MINUTE], on=PartnerError))
    def call(payload: str) -> None:
        raise PartnerError if payload == "partner" else ValueError

    enqueue(session, "call", "partner")
    enqueue(session, "call", "bug")
    runs = drain(session, handlers)
    assert [run.outcome for run in runs] == ["retried", "failure"]


if __name__ == "__main__":
    main(*sys.argv[1:])
