"""Outcomes of jobs, and the rows that remain in the tables."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, inspect
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Discard,
    Handlers,
    Job,
    RetryAfter,
    RetryStrategy,
    RunningJob,
    Snooze,
    enqueue,
)

from .kinds import Kind, either_sort_of_handler
from .support import (
    MINUTE,
    SECOND,
    Log,
    ManualClock,
    Note,
    archived,
    eventually,
    fail,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    succeed,
)


@either_sort_of_handler
def test_a_finished_job_is_archived_with_all_columns(
    engine: Engine, kind: Kind, clock: ManualClock
) -> None:
    """A finished job is moved to the archive with all of its columns."""
    put(
        engine,
        "mail",
        {"to": "ä"},
        queue="mails",
        priority=2,
        unique_key="once",
        process_at=clock.now + MINUTE,
        clock=clock,
    )
    before = only_queued(engine)
    clock.advance(5 * MINUTE)
    assert kind.run_all(engine, succeed, queues="mails", clock=clock) == 1
    assert queued(engine) == []
    after = only_archived(engine)
    common = set(inspect(ArchivedJob).columns.keys())
    for column in common.intersection(inspect(Job).columns.keys()):
        if column != "attempts":
            assert getattr(after, column) == getattr(before, column), column
    assert after.attempts == 1
    assert after.status == "success"
    assert after.finished_at == clock.now
    assert rows(engine, RunningJob) == []


@either_sort_of_handler
def test_a_job_without_retry_strategy_fails(engine: Engine, kind: Kind) -> None:
    """Without a retry strategy, a job that raises is archived as a failure with its traceback."""
    put(engine, "mail")
    assert kind.run_all(engine, fail) == 1
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("failure", 1)
    assert "in fail" in job.error
    assert job.error.endswith("ValueError: no mail today")
    assert queued(engine) == []


@either_sort_of_handler
def test_retries_follow_the_delays(engine: Engine, kind: Kind, clock: ManualClock) -> None:
    """The nth delay precedes the nth retry and the last one repeats; then the job fails."""
    handlers = Handlers()
    seen: list[int] = []

    @handlers("mail", retry=RetryStrategy(4, [SECOND, 5000]))
    def mail(payload: Any, job: Job) -> None:
        seen.append(job.attempts)
        raise ValueError(f"attempt {job.attempts}")

    put(engine, "mail", clock=clock)
    enqueued_at = clock.now
    for attempt, delay in enumerate((1, 5, 5, 5), start=1):
        assert kind.run_all(engine, handlers, clock=clock) == 1
        job = only_queued(engine)
        assert job.attempts == attempt
        assert job.process_at == clock.now + delay * SECOND
        assert job.error.endswith(f"attempt {attempt}")
        assert job.enqueued_at == enqueued_at
        clock.advance(delay * SECOND - timedelta(milliseconds=1))
        assert kind.run_all(engine, handlers, clock=clock) == 0
        clock.advance(timedelta(milliseconds=1))
    assert kind.run_all(engine, handlers, clock=clock) == 1
    assert seen == [1, 2, 3, 4, 5]
    failed = only_archived(engine)
    assert (failed.status, failed.attempts) == ("failure", 5)
    assert failed.error.endswith("attempt 5")
    assert queued(engine) == []


def test_retries_without_delays_run_at_once(engine: Engine, kind: Kind) -> None:
    """Without delays, retries run immediately."""
    put(engine, "mail")
    assert kind.run_all(engine, fail, retry_strategy={"retries": 2, "delays": []}) == 3
    assert only_archived(engine).attempts == 3


@either_sort_of_handler
def test_success_after_a_retry_keeps_the_last_error(engine: Engine, kind: Kind) -> None:
    """A job that succeeds after retries keeps the error of its last failed attempt."""
    handlers = Handlers(retry=RetryStrategy(3))

    @handlers("flaky")
    def flaky(payload: Any, job: Job) -> None:
        if job.attempts < 3:
            raise ValueError(f"attempt {job.attempts}")

    put(engine, "flaky")
    kind.run_all(engine, handlers)
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("success", 3)
    assert job.error.endswith("ValueError: attempt 2")


def test_a_retry_function_overrides_other_strategies(
    engine: Engine, kind: Kind, clock: ManualClock
) -> None:
    """A retry function receives the job and the exception, and overrides other strategies."""
    handlers = Handlers(retry={"retries": 9})
    seen: list[tuple[str, Any, int, str]] = []
    handlers("mail", retry={"retries": 8})(lambda payload: fail("mail", payload))

    @handlers.retry_strategy("mail")
    def strategy(job: Job, exception: Exception) -> Any:
        seen.append((job.job_type, job.payload, job.attempts, str(exception)))
        return {"retries": 1, "delays": [1000]} if job.priority == 5 else None

    put(engine, "mail", 1, clock=clock)
    put(engine, "mail", 2, clock=clock, priority=6)
    kind.run_all(engine, handlers, clock=clock, retry_strategy={"retries": 7})
    assert only_queued(engine).process_at == clock.now + SECOND
    assert only_archived(engine).payload == "2"
    clock.advance(SECOND)
    kind.run_all(engine, handlers, clock=clock)
    assert {job.payload: job.attempts for job in archived(engine)} == {"1": 2, "2": 1}
    assert seen == [
        ("mail", "1", 1, "no mail today"),
        ("mail", "2", 1, "no mail today"),
        ("mail", "1", 2, "no mail today"),
    ]


def test_precedence_of_retry_strategies(engine: Engine, kind: Kind) -> None:
    """The strategy of the job type is used first, then the registry's, then the worker's."""
    own = Handlers(retry={"retries": 2})
    own("own", retry={"retries": 1})(lambda payload: fail("own", payload))
    own("shared")(lambda payload: fail("shared", payload))
    none = Handlers()
    none("worker's")(lambda payload: fail("worker's", payload))
    for job_type in ("own", "shared"):
        put(engine, job_type)
    kind.run_all(engine, own, retry_strategy={"retries": 3})
    put(engine, "worker's")
    kind.run_all(engine, none, retry_strategy=lambda job, error: RetryStrategy(3))
    attempts = {job.job_type: job.attempts for job in archived(engine)}
    assert attempts == {"own": 2, "shared": 3, "worker's": 4}


@pytest.mark.parametrize("returned", ["often", {"retries": -1}, {"retry": 1}, ZeroDivisionError])
def test_an_invalid_retry_function_fails_the_job(
    engine: Engine, kind: Kind, caplog: pytest.LogCaptureFixture, returned: Any
) -> None:
    """A retry function that raises or returns an invalid value fails the job and is logged."""
    handlers = Handlers()
    handlers("mail")(lambda payload: fail("mail", payload))
    handlers("fine")(lambda payload: None)

    @handlers.retry_strategy("mail")
    def strategy(job: Job, exception: Exception) -> Any:
        if returned is ZeroDivisionError:
            raise ZeroDivisionError
        return returned

    put(engine, "mail")
    put(engine, "fine")
    kind.run_all(engine, handlers)
    failed, fine = archived(engine)
    assert (failed.status, fine.status) == ("failure", "success")
    assert "no mail today" in failed.error
    assert "retry-strategy-error" in caplog.text


@either_sort_of_handler
def test_retry_after_reschedules_the_job(engine: Engine, kind: Kind, clock: ManualClock) -> None:
    """RetryAfter sets the time of the next run; the strategy still limits the attempts."""
    handlers = Handlers()

    @handlers("mail", retry=RetryStrategy(1, [SECOND]))
    def mail(payload: Any) -> None:
        raise RetryAfter(MINUTE, "rate limit")

    put(engine, "mail", clock=clock)
    kind.run_all(engine, handlers, clock=clock)
    job = only_queued(engine)
    assert (job.process_at, job.attempts) == (clock.now + MINUTE, 1)
    assert job.error.endswith("RetryAfter: rate limit")
    clock.advance(MINUTE)
    kind.run_all(engine, handlers, clock=clock)
    assert (only_archived(engine).status, only_archived(engine).attempts) == ("failure", 2)


def test_retry_after_without_a_strategy_has_no_limit(
    engine: Engine, kind: Kind, clock: ManualClock
) -> None:
    """Without a retry strategy, RetryAfter has no limit."""
    handlers = Handlers()

    @handlers("mail")
    def mail(payload: Any, job: Job) -> None:
        if job.attempts < 4:
            raise RetryAfter(1000)

    put(engine, "mail", clock=clock)
    for _ in range(4):
        assert kind.run_all(engine, handlers, clock=clock) == 1
        clock.advance(SECOND)
    assert (only_archived(engine).status, only_archived(engine).attempts) == ("success", 4)


@either_sort_of_handler
def test_a_snoozed_job_is_rescheduled(engine: Engine, kind: Kind, clock: ManualClock) -> None:
    """A snoozed job is rescheduled; no attempt and no failure is counted."""
    handlers = Handlers()
    log, failures = Log(), []
    runs: list[int] = []

    @handlers("mail")
    def mail(payload: Any, session: Session) -> None:
        runs.append(1)
        session.add(Note(text="too early"))
        raise Snooze(MINUTE) if len(runs) < 20 else Discard

    put(engine, "mail", clock=clock)
    for _ in range(3):
        kind.run_all(engine, handlers, clock=clock, log=log, on_failed=failures.append)
        clock.advance(MINUTE)
    job = only_queued(engine)
    assert (job.process_at, job.attempts, job.error) == (clock.now, 0, None)
    assert log.events().count("job-snoozed") == 3
    assert not {"handle-job-exception", "retrying", "not-retrying"} & set(log.events())
    assert (failures, archived(engine)) == ([], [])


@either_sort_of_handler
def test_a_discarded_job_fails_at_once(engine: Engine, kind: Kind) -> None:
    """A discarded job fails immediately, even if retries are left."""
    handlers = Handlers(retry=RetryStrategy(5))

    @handlers("mail")
    def mail(payload: Any) -> None:
        raise Discard("no such user")

    put(engine, "mail")
    assert kind.run_all(engine, handlers) == 1
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("failure", 1)
    assert job.error.endswith("Discard: no such user")


@either_sort_of_handler
def test_sys_exit_in_a_handler_fails_its_job(engine: Engine, kind: Kind) -> None:
    """``sys.exit`` in a handler fails its job and does not stop the worker."""
    handlers = Handlers()

    @handlers("exit")
    def leave(payload: Any) -> None:
        sys.exit("enough")

    handlers("fine")(lambda payload: None)
    put(engine, "exit")
    put(engine, "fine", priority=9)
    with kind.worker(engine, handlers, threads=2):
        eventually(lambda: len(archived(engine)) == 2)
    failed, fine = archived(engine)
    assert (failed.job_type, failed.status, failed.attempts) == ("exit", "failure", 1)
    assert "SystemExit('enough')" in failed.error
    assert fine.status == "success"


@either_sort_of_handler
def test_an_invalid_payload_fails_its_job(engine: Engine, kind: Kind) -> None:
    """A job whose payload cannot be decoded fails with the reason; other jobs succeed."""
    handlers = Handlers()

    @dataclass
    class Mail:
        to: str

    seen: list[Mail] = []

    @handlers("mail")
    def mail(payload: Mail) -> None:
        seen.append(payload)

    with Session(engine) as session, session.begin():
        for to in ("a", "b", "c"):
            enqueue(session, "mail", {"to": to})
        session.flush()
        session.add(Job(job_type="mail", payload="not json", priority=0))
        enqueue(session, "mail", {"from": "d"}, priority=1)
    assert kind.run_all(engine, handlers) == 5
    assert sorted(mail.to for mail in seen) == ["a", "b", "c"]
    errors = {job.payload: job.error for job in archived(engine) if job.status == "failure"}
    assert "the payload is not JSON" in errors["not json"]
    assert "does not fit" in errors['{"from":"d"}']
    assert len(errors) == 2


@either_sort_of_handler
def test_jobs_of_unregistered_types_wait(
    engine: Engine, kind: Kind, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs of a type without a handler are not changed; their number is logged once."""
    for n in range(3):
        put(engine, "newer", n, clock=clock)
    put(engine, "known", clock=clock)
    before = {job.job_id: job.process_at for job in queued(engine)}
    handlers = Handlers(retry=RetryStrategy(0))
    handlers("known")(lambda payload: None)
    failures: list[Any] = []
    kind.run_all(engine, handlers, clock=clock, on_failed=lambda *args: failures.append(args))
    for job in queued(engine):
        assert (job.job_type, job.attempts, job.error) == ("newer", 0, None)
        assert job.process_at == before[job.job_id]
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert (record.event, record.job_type, record.jobs) == (  # type: ignore[attr-defined]
        "job-type-unknown",
        "newer",
        3,
    )
    assert only_archived(engine).job_type == "known"
    assert failures == []
    handlers("newer")(lambda payload: None)
    assert kind.run_all(engine, handlers, clock=clock) == 3
    assert {job.status for job in archived(engine)} == {"success"}


@either_sort_of_handler
def test_on_failed_is_called_once(engine: Engine, kind: Kind) -> None:
    """``on_failed`` is called once, with the job and the exception, after the job is archived."""
    seen: list[Any] = []

    def on_failed(job: Job, error: Exception) -> None:
        seen.append((job.job_id, job.job_type, job.payload, job.attempts, str(error)))
        assert only_archived(engine).status == "failure"

    job_id = put(engine, "mail", [1])
    kind.run_all(engine, fail, on_failed=on_failed, retry_strategy={"retries": 2})
    assert seen == [(job_id, "mail", "[1]", 3, "no mail today")]


def test_an_error_in_on_failed_is_logged(
    engine: Engine, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in ``on_failed`` is logged with the job; the job stays archived."""
    calls: list[Any] = []

    def on_failed(job: Job, error: Exception) -> None:
        calls.append(job.job_id)
        raise RuntimeError("pager is down")

    ids = [put(engine, "mail"), put(engine, "mail")]
    assert kind.run_all(engine, fail, on_failed=on_failed) == 2
    assert calls == ids
    assert [job.status for job in archived(engine)] == ["failure", "failure"]
    errors = [r for r in caplog.records if getattr(r, "event", "") == "failed-job-callback-error"]
    assert [r.job_id for r in errors] == ids  # type: ignore[attr-defined]
    assert "pager is down" in caplog.text


def test_a_stored_traceback_begins_with_the_handler(engine: Engine, kind: Kind) -> None:
    """The functions of the library that called it say nothing about the error."""
    put(engine, "mail")
    kind.run_all(engine, fail)
    error = only_archived(engine).error
    assert error is not None
    first = error.splitlines()[1]
    assert first.strip().startswith("File ")
    assert first.endswith("in fail")
    assert "execution" not in error
