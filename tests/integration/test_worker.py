"""The worker: what runs, in which order, how it ends, and what stays in the tables."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Barrier, Event, Thread
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, inspect, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import (
    ArchivedJob,
    Discard,
    Handlers,
    Job,
    JSONSerializer,
    QueueWorker,
    RetryAfter,
    RetryStrategy,
    RunningJob,
    Snooze,
    WorkerDiedError,
    enqueue,
    enqueue_many,
    utcnow,
)
from sqlalchemy_proletarian.perform import UNKNOWN_TYPE_DELAY

from .support import (
    MINUTE,
    SECOND,
    Log,
    ManualClock,
    Note,
    archived,
    at_most,
    eventually,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    run_all,
    shared_transactions,
    succeed,
)

FAST = 40
"""So many fast jobs first make a worker put the next ones of their type in one transaction."""


def fail(job_type: str, payload: Any) -> None:
    """Fail every job."""
    raise ValueError(f"no {job_type} today")


def with_settings(engine: Engine, **settings: str) -> Engine:
    """Return another engine on the database, whose connections have these settings."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return create_engine(engine.url, connect_args={"options": options})


def writers() -> Handlers:
    """Return handlers of "write", which runs what the payload says, and of notes written first."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: dict[str, Any], session: Session) -> None:
        session.add(Note(text=payload["text"], code=payload.get("code")))
        if "fail" in payload:
            session.flush()
            raise ValueError(payload["fail"])

    return handlers


def enqueue_batch(engine: Engine, payloads: list[dict[str, Any]]) -> None:
    """Enqueue "write" jobs that run in one transaction, after those that make it so."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("write", {"text": "warm"})] * FAST, priority=0)
        for payload in payloads:
            enqueue(session, "write", payload)


def run_batch(engine: Engine, handlers: Handlers, **options: Any) -> None:
    """Run them; a wide window keeps a slow machine from splitting the batch."""
    run_all(engine, handlers, batch_window=10 * MINUTE, **options)


# In which order.


@pytest.mark.parametrize("indexes", ["on", "off"])
def test_oldest_first(engine: Engine, clock: ManualClock, indexes: str) -> None:
    """Jobs run in the order of ``process_at``, whatever order and plan the table is read in."""
    for age in (2, 5, 1, 4, 3):
        process_at = clock.now - age * MINUTE
        put(engine, "job", age, process_at=process_at, clock=lambda: clock.now - 9 * MINUTE)
    seen: list[int] = []
    planned = with_settings(engine, enable_indexscan=indexes, enable_bitmapscan=indexes)
    assert run_all(planned, lambda _, age: seen.append(age)) == 5
    assert seen == [5, 4, 3, 2, 1]
    planned.dispose()


def test_queues_and_priorities(engine: Engine) -> None:
    """Queues are served strictly in the order given, priorities inside them, then the oldest."""
    lanes = [("critical", 5), ("critical", 9), ("default", 0), ("default", 3), ("default", 9)]
    for queue, priority in sorted(lanes, key=str, reverse=True):
        for n in range(3):
            put(engine, "job", [queue, priority, n], queue=queue, priority=priority)
    put(engine, "job", "other", queue="other", priority=0)
    seen: list[Any] = []
    run_all(engine, lambda _, lane: seen.append(lane), queues=["critical", "default"])
    assert seen == [[queue, priority, n] for queue, priority in lanes for n in range(3)]
    assert only_queued(engine).queue == "other"


def test_urgent_job_overtakes_the_backlog(engine: Engine) -> None:
    """A job in an earlier queue runs next, however much waits in the later one."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("job", n) for n in range(50)], queue="later")
    seen: list[Any] = []

    def handler(_: str, payload: Any) -> None:
        seen.append(payload)
        if len(seen) == 1:
            put(engine, "job", "urgent", queue="first")

    run_all(engine, handler, queues=["first", "later"], batch_size=1)
    assert seen[1] == "urgent"
    assert len(seen) == 51


def test_same_queue_named_twice(engine: Engine) -> None:
    """In a queue that is named twice each job runs once."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("job", n) for n in range(2 * FAST)])
    seen: list[int] = []
    run_all(engine, lambda _, payload: seen.append(payload), queues=["default", "default"])
    assert sorted(seen) == list(range(2 * FAST))


def test_not_before_its_time(engine: Engine, clock: ManualClock) -> None:
    """A job does not run before ``process_at``, and runs from that instant on."""
    put(engine, "job", process_at=clock.now + MINUTE, clock=clock)
    assert run_all(engine, succeed, clock=clock) == 0
    clock.advance(MINUTE - timedelta(microseconds=1))
    assert run_all(engine, succeed, clock=clock) == 0
    clock.advance(timedelta(microseconds=1))
    assert run_all(engine, succeed, clock=clock) == 1


def test_woken_when_due(engine: Engine) -> None:
    """An idle worker runs a scheduled job when it is due, long before it would poll again."""
    ran_at: list[datetime] = []
    log = Log()

    def handler(_: str, payload: Any) -> None:
        ran_at.append(datetime.now().astimezone())

    with QueueWorker(engine, handler, polling_interval=MINUTE, log=log):
        eventually(lambda: "polling-for-jobs" in log.events())
        put(engine, "job", process_in=timedelta(milliseconds=300))
        due = only_queued(engine).process_at
        eventually(lambda: ran_at, 5)
    assert timedelta(0) <= ran_at[0] - due < SECOND


def test_skips_locked_rows(engine: Engine) -> None:
    """A job that somebody else has locked is passed over, not waited for, and runs later."""
    first, _ = put(engine, "job", 1), put(engine, "job", 2)
    seen: list[int] = []

    def handler(_: str, payload: Any) -> None:
        seen.append(payload)

    with Session(engine) as other:
        other.scalars(select(Job).where(Job.job_id == first).with_for_update()).one()
        impatient = with_settings(engine, lock_timeout="3s")
        assert run_all(impatient, handler) == 1
        impatient.dispose()
    assert run_all(engine, handler) == 1
    assert seen == [2, 1]


# How a job ends.


def test_success(engine: Engine, clock: ManualClock) -> None:
    """A finished job stands in the archive with every column it had, and no longer in the queue."""
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
    assert run_all(engine, succeed, queues="mails", clock=clock) == 1
    assert queued(engine) == []
    after = only_archived(engine)
    for column in inspect(Job).columns.keys():  # noqa: SIM118 - not a dict
        if column != "attempts":
            assert getattr(after, column) == getattr(before, column), column
    assert after.attempts == 1
    assert after.status == "success"
    assert after.finished_at == clock.now
    assert rows(engine, RunningJob) == []


def test_failure_without_a_strategy(engine: Engine) -> None:
    """Without a retry strategy a job that raises is archived as a failure with its traceback."""
    put(engine, "mail")
    assert run_all(engine, fail) == 1
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("failure", 1)
    assert "in fail" in job.error
    assert job.error.endswith("ValueError: no mail today")
    assert queued(engine) == []


def test_retries_and_delays(engine: Engine, clock: ManualClock) -> None:
    """The nth delay precedes the nth retry, the last repeats, then the job has failed."""
    handlers = Handlers()
    seen: list[int] = []

    @handlers("mail", retry=RetryStrategy(4, [SECOND, 5000]))
    def mail(payload: Any, job: Job) -> None:
        seen.append(job.attempts)
        raise ValueError(f"attempt {job.attempts}")

    put(engine, "mail", clock=clock)
    enqueued_at = clock.now
    for attempt, delay in enumerate((1, 5, 5, 5), start=1):
        assert run_all(engine, handlers, clock=clock) == 1
        job = only_queued(engine)
        assert job.attempts == attempt
        assert job.process_at == clock.now + delay * SECOND
        assert job.error.endswith(f"attempt {attempt}")
        assert job.enqueued_at == enqueued_at
        clock.advance(delay * SECOND - timedelta(milliseconds=1))
        assert run_all(engine, handlers, clock=clock) == 0
        clock.advance(timedelta(milliseconds=1))
    assert run_all(engine, handlers, clock=clock) == 1
    assert seen == [1, 2, 3, 4, 5]
    failed = only_archived(engine)
    assert (failed.status, failed.attempts) == ("failure", 5)
    assert failed.error.endswith("attempt 5")
    assert queued(engine) == []


def test_no_delays_retry_at_once(engine: Engine) -> None:
    """Without delays the retries follow at once."""
    put(engine, "mail")
    assert run_all(engine, fail, retry_strategy={"retries": 2, "delays": []}) == 3
    assert only_archived(engine).attempts == 3


def test_success_after_a_retry_keeps_the_last_error(engine: Engine) -> None:
    """A job that succeeds in the end is a success, and its archive tells what went wrong before."""
    handlers = Handlers(retry=RetryStrategy(3))

    @handlers("flaky")
    def flaky(payload: Any, job: Job) -> None:
        if job.attempts < 3:
            raise ValueError(f"attempt {job.attempts}")

    put(engine, "flaky")
    run_all(engine, handlers)
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("success", 3)
    assert job.error.endswith("ValueError: attempt 2")


def test_retry_function_of_a_type(engine: Engine, clock: ManualClock) -> None:
    """A strategy function sees the job and the exception, and wins over every other strategy."""
    handlers = Handlers(retry={"retries": 9})
    seen: list[tuple[str, Any, int, str]] = []
    handlers("mail", retry={"retries": 8})(lambda payload: fail("mail", payload))

    @handlers.retry_strategy("mail")
    def strategy(job: Job, exception: Exception) -> Any:
        seen.append((job.job_type, job.payload, job.attempts, str(exception)))
        return {"retries": 1, "delays": [1000]} if job.priority == 5 else None

    put(engine, "mail", 1, clock=clock)
    put(engine, "mail", 2, clock=clock, priority=6)
    run_all(engine, handlers, clock=clock, retry_strategy={"retries": 7})
    assert only_queued(engine).process_at == clock.now + SECOND
    assert only_archived(engine).payload == "2"
    clock.advance(SECOND)
    run_all(engine, handlers, clock=clock)
    assert {job.payload: job.attempts for job in archived(engine)} == {"1": 2, "2": 1}
    assert seen == [
        ("mail", "1", 1, "no mail today"),
        ("mail", "2", 1, "no mail today"),
        ("mail", "1", 2, "no mail today"),
    ]


def test_which_strategy_counts(engine: Engine) -> None:
    """A type's own strategy comes first, then that of the handlers, then the worker's."""
    own = Handlers(retry={"retries": 2})
    own("own", retry={"retries": 1})(lambda payload: fail("own", payload))
    own("shared")(lambda payload: fail("shared", payload))
    none = Handlers()
    none("worker's")(lambda payload: fail("worker's", payload))
    for job_type in ("own", "shared"):
        put(engine, job_type)
    run_all(engine, own, retry_strategy={"retries": 3})
    put(engine, "worker's")
    run_all(engine, none, retry_strategy=lambda job, error: RetryStrategy(3))
    attempts = {job.job_type: job.attempts for job in archived(engine)}
    assert attempts == {"own": 2, "shared": 3, "worker's": 4}


@pytest.mark.parametrize("returned", ["often", {"retries": -1}, {"retry": 1}, ZeroDivisionError])
def test_bad_retry_function(
    engine: Engine, caplog: pytest.LogCaptureFixture, returned: Any
) -> None:
    """A strategy function that raises or returns nonsense fails its job, which tells of both."""
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
    run_all(engine, handlers)
    failed, fine = archived(engine)
    assert (failed.status, fine.status) == ("failure", "success")
    assert "no mail today" in failed.error
    assert "retry-strategy-error" in caplog.text


def test_retry_after(engine: Engine, clock: ManualClock) -> None:
    """RetryAfter moves the next run; the attempt counts and the strategy limits how often."""
    handlers = Handlers()

    @handlers("mail", retry=RetryStrategy(1, [SECOND]))
    def mail(payload: Any) -> None:
        raise RetryAfter(MINUTE, "rate limit")

    put(engine, "mail", clock=clock)
    run_all(engine, handlers, clock=clock)
    job = only_queued(engine)
    assert (job.process_at, job.attempts) == (clock.now + MINUTE, 1)
    assert job.error.endswith("RetryAfter: rate limit")
    clock.advance(MINUTE)
    run_all(engine, handlers, clock=clock)
    assert (only_archived(engine).status, only_archived(engine).attempts) == ("failure", 2)


def test_retry_after_without_a_strategy(engine: Engine, clock: ManualClock) -> None:
    """Where nobody gave a strategy, the handler alone decides how often."""
    handlers = Handlers()

    @handlers("mail")
    def mail(payload: Any, job: Job) -> None:
        if job.attempts < 4:
            raise RetryAfter(1000)

    put(engine, "mail", clock=clock)
    for _ in range(4):
        assert run_all(engine, handlers, clock=clock) == 1
        clock.advance(SECOND)
    assert (only_archived(engine).status, only_archived(engine).attempts) == ("success", 4)


def test_snooze(engine: Engine, clock: ManualClock) -> None:
    """A snoozed job is put off, its attempt not counted, and nobody calls it a failure."""
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
        run_all(engine, handlers, clock=clock, log=log, on_failed=failures.append)
        clock.advance(MINUTE)
    job = only_queued(engine)
    assert (job.process_at, job.attempts, job.error) == (clock.now, 0, None)
    assert log.events().count("job-snoozed") == 3
    assert not {"handle-job-exception", "retrying", "not-retrying"} & set(log.events())
    assert (failures, archived(engine)) == ([], [])


def test_discard(engine: Engine) -> None:
    """A discarded job fails at once although retries are left."""
    handlers = Handlers(retry=RetryStrategy(5))

    @handlers("mail")
    def mail(payload: Any) -> None:
        raise Discard("no such user")

    put(engine, "mail")
    assert run_all(engine, handlers) == 1
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("failure", 1)
    assert job.error.endswith("Discard: no such user")


def test_exit_in_a_handler(engine: Engine) -> None:
    """``sys.exit`` in a handler ends neither the worker nor the queue: its job has failed."""
    handlers = Handlers()

    @handlers("exit")
    def leave(payload: Any) -> None:
        sys.exit("enough")

    handlers("fine")(lambda payload: None)
    put(engine, "exit")
    put(engine, "fine", priority=9)
    with QueueWorker(engine, handlers, threads=2):
        eventually(lambda: len(archived(engine)) == 2)
    failed, fine = archived(engine)
    assert (failed.job_type, failed.status, failed.attempts) == ("exit", "failure", 1)
    assert "SystemExit('enough')" in failed.error
    assert fine.status == "success"


def test_payload_that_cannot_be_decoded(engine: Engine) -> None:
    """A job whose payload cannot be read fails alone, with what is wrong with it."""
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
    assert run_all(engine, handlers) == 5
    assert sorted(mail.to for mail in seen) == ["a", "b", "c"]
    errors = {job.payload: job.error for job in archived(engine) if job.status == "failure"}
    assert "the payload is not JSON" in errors["not json"]
    assert "does not fit" in errors['{"from":"d"}']
    assert len(errors) == 2


def test_unregistered_type(
    engine: Engine, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A job of a type that nobody registered is put off and reported; neither failed nor lost."""
    put(engine, "newer", clock=clock)
    put(engine, "known", clock=clock)
    handlers = Handlers(retry=RetryStrategy(0))
    handlers("known")(lambda payload: None)
    failures: list[Any] = []
    run_all(engine, handlers, clock=clock, on_failed=lambda *args: failures.append(args))
    job = only_queued(engine)
    assert (job.job_type, job.attempts, job.error) == ("newer", 0, None)
    assert job.process_at == clock.now + UNKNOWN_TYPE_DELAY
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert (record.event, record.job_type, record.job_id) == (  # type: ignore[attr-defined]
        "job-type-unknown",
        "newer",
        job.job_id,
    )
    assert only_archived(engine).job_type == "known"
    assert failures == []
    handlers("newer")(lambda payload: None)
    clock.advance(UNKNOWN_TYPE_DELAY)
    assert run_all(engine, handlers, clock=clock) == 1
    assert [job.status for job in archived(engine)] == ["success", "success"]


# What a handler is.


def test_plain_callable(engine: Engine) -> None:
    """A plain callable of (type, payload) runs jobs of every type."""
    put(engine, "a", {"x": [1, None]})
    put(engine, "b")
    seen: list[tuple[str, Any]] = []
    assert run_all(engine, lambda job_type, payload: seen.append((job_type, payload))) == 2
    assert seen == [("a", {"x": [1, None]}), ("b", None)]


def test_serializer_of_the_worker(engine: Engine) -> None:
    """Worker and producer may agree on another serializer."""

    class Plain(JSONSerializer):
        def encode(self, payload: Any, annotation: Any = None) -> str:
            return str(payload) if annotation is None else ""

        def decode(self, text: str, annotation: Any = None) -> Any:
            return text if annotation is None else None

    put(engine, "a", "no json", serializer=Plain())
    seen: list[Any] = []
    run_all(engine, lambda _, payload: seen.append(payload), serializer=Plain())
    assert seen == ["no json"]


def test_the_job_that_a_handler_is_handed(engine: Engine) -> None:
    """The job in the handler's hands has all its columns, and ``attempts`` counts this run."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("mail")
    def mail(payload: Any, job: Job) -> None:
        seen.append((job.job_id, job.queue, job.priority, job.attempts, job.payload))

    @handlers("both")
    def both(payload: Any, job: Job, session: Session) -> None:
        assert job in session
        assert session.get(Job, job.job_id) is job
        seen.append((job.job_id, job.queue, job.priority, job.attempts, job.payload))

    first = put(engine, "mail", 1, priority=3)
    second = put(engine, "both", 2)
    run_all(engine, handlers)
    assert seen == [(first, "default", 3, 1, "1"), (second, "default", 5, 1, "2")]
    assert [job.attempts for job in archived(engine)] == [1, 1]


def test_sessions_of_a_sessionmaker(shop: Engine) -> None:
    """A worker that is given a sessionmaker hands out its sessions, in the job's transaction."""

    class TenantSession(Session):
        pass

    maker = sessionmaker(shop, class_=TenantSession, info={"tenant": 7}, expire_on_commit=False)
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("mail")
    def mail(payload: Any, session: TenantSession) -> None:
        seen.append((isinstance(session, TenantSession), session.info["tenant"]))
        session.add(Note(text="kept"))

    put(shop, "mail")
    run_all(maker, handlers)
    assert seen == [(True, 7)]
    assert notes(shop) == ["kept"]


def test_handlers_may_enqueue(engine: Engine) -> None:
    """A job that a handler enqueues in its session exists if its own job completes, or not."""
    handlers = Handlers()

    @handlers("parent")
    def parent(payload: Any, session: Session) -> None:
        enqueue(session, "child", payload)
        if payload == "fails":
            raise ValueError

    handlers("child")(lambda payload: None)
    put(engine, "parent", "works")
    put(engine, "parent", "fails")
    assert run_all(engine, handlers) == 3
    assert [(job.job_type, job.payload, job.status) for job in archived(engine)] == [
        ("parent", '"works"', "success"),
        ("parent", '"fails"', "failure"),
        ("child", '"works"', "success"),
    ]


def test_async_handlers_are_refused(engine: Engine) -> None:
    """An async handler would never run in threads: it is refused, and the right worker named."""
    handlers = Handlers()

    @handlers("mail")
    async def mail(payload: Any) -> None: ...

    with pytest.raises(TypeError, match=r"'mail' is async: run it with .*AsyncQueueWorker"):
        QueueWorker(engine, handlers)


def test_async_plain_callables_are_refused(engine: Engine) -> None:
    """An async callable is refused too: its jobs would be archived without having run."""

    async def handler(job_type: str, payload: Any) -> None: ...

    with pytest.raises(TypeError, match="async"):
        QueueWorker(engine, handler)


# What one job does to the others of its transaction.


def test_fast_jobs_share_a_transaction(shop: Engine) -> None:
    """Fast jobs share a transaction, and with ``batch_size=1`` each has its own."""
    texts = [f"note {n}" for n in range(10)]
    enqueue_batch(shop, [{"text": text} for text in texts])
    run_batch(shop, writers())
    assert shared_transactions(shop, texts) == 1
    enqueue_batch(shop, [{"text": f"strict {text}"} for text in texts])
    run_batch(shop, writers(), batch_size=1)
    assert shared_transactions(shop, [f"strict {text}" for text in texts]) == 10


@pytest.mark.parametrize("retry", [None, {"retries": 1, "delays": [60_000]}])
def test_failing_job_costs_only_itself(shop: Engine, retry: Any) -> None:
    """Of a batch with one failing job all others are written; of the failing one nothing is."""
    enqueue_batch(
        shop, [{"text": f"note {n}"} | ({"fail": "no"} if n == 4 else {}) for n in range(10)]
    )
    run_batch(shop, writers(), retry_strategy=retry)
    expected = [f"note {n}" for n in range(10) if n != 4]
    assert [note for note in notes(shop) if note != "warm"] == expected
    assert shared_transactions(shop, expected) == 1
    done = archived(shop)
    assert Counter(job.status for job in done)["success"] == FAST + 9
    if retry is None:
        (failed,) = [job for job in done if job.status == "failure"]
        assert failed.error.endswith("ValueError: no")
    else:
        assert only_queued(shop).attempts == 1


def test_later_jobs_see_what_earlier_ones_wrote(shop: Engine) -> None:
    """In a batch as one by one: a job finds in the database what the jobs before it wrote."""
    handlers = writers()
    seen: list[int] = []

    @handlers("look")
    def look(payload: Any, session: Session) -> None:
        statement = select(func.count()).where(Note.text.startswith("note"))
        seen.append(session.scalars(statement).one())

    with Session(shop) as session, session.begin():
        enqueue_many(session, [("write", {"text": "warm"}), ("look", 0)] * FAST, priority=0)
        for n in range(5):
            enqueue(session, "write", {"text": f"note {n}"})
            enqueue(session, "look")
    run_batch(shop, handlers)
    assert seen[FAST:] == [1, 2, 3, 4, 5]


def test_database_error_in_a_handler(shop: Engine) -> None:
    """A handler whose SQL fails costs its own job only."""
    handlers = writers()

    @handlers("sql")
    def sql(payload: Any, session: Session) -> None:
        session.add(Note(text="lost"))
        session.execute(text("SELECT 1/0"))

    enqueue_batch(shop, [{"text": "kept"}])
    put(shop, "sql")
    run_batch(shop, handlers)
    assert set(notes(shop)) == {"warm", "kept"}
    assert Counter(job.status for job in archived(shop)) == {"success": FAST + 1, "failure": 1}


def test_swallowed_database_error(shop: Engine) -> None:
    """A handler that hides a database error has written nothing, so its job is no success."""
    handlers = Handlers()

    @handlers("sql")
    def sql(payload: Any, session: Session) -> None:
        session.add(Note(text="lost"))
        session.flush()
        with suppress(Exception):
            session.execute(text("SELECT 1/0"))

    put(shop, "sql")
    run_all(shop, handlers)
    assert notes(shop) == []
    assert only_archived(shop).status == "failure"


def test_savepoints_in_a_handler(shop: Engine) -> None:
    """A handler may undo a part of its work with a SAVEPOINT of its own."""
    handlers = Handlers()

    @handlers("mail")
    def mail(payload: Any, session: Session) -> None:
        session.add(Note(text="kept"))
        savepoint = session.begin_nested()
        session.add(Note(text="undone"))
        savepoint.rollback()
        with session.begin_nested():
            session.add(Note(text="kept too"))

    put(shop, "mail")
    run_all(shop, handlers)
    assert only_archived(shop).status == "success"
    assert notes(shop) == ["kept", "kept too"]


def end_twice(session: Session) -> None:
    """Commit inside a SAVEPOINT of the handler's own."""
    session.begin_nested()
    session.commit()


def write_after_rollback(session: Session) -> None:
    """Start over after a rollback."""
    session.rollback()
    session.add(Note(text="after"))
    session.flush()


@pytest.mark.parametrize(
    "end", [Session.commit, Session.rollback, Session.close, end_twice, write_after_rollback]
)
@pytest.mark.parametrize("used", [True, False])
def test_handler_that_ends_the_transaction(
    shop: Engine, end: Callable[[Session], None], used: bool
) -> None:
    """A handler that commits, rolls back or closes its session has failed and leaves nothing."""
    handlers = writers()

    @handlers("ends")
    def ends(payload: Any, session: Session) -> None:
        if used:
            session.add(Note(text="lost"))
            session.flush()
        end(session)

    enqueue_batch(shop, [{"text": "kept"}])
    put(shop, "ends")
    run_batch(shop, handlers)
    assert set(notes(shop)) == {"warm", "kept"}
    (failed,) = [job for job in archived(shop) if job.job_type == "ends"]
    assert failed.status == "failure"
    assert "the handler ended the transaction of the session it was handed" in failed.error
    assert all(job.status == "success" for job in archived(shop) if job.job_type != "ends")


def test_commit_that_fails(shop: Engine) -> None:
    """When a job's commit fails the job has failed: retried by its strategy, then archived."""
    with Session(shop) as session, session.begin():
        session.add(Note(text="first", code=1))
    put(shop, "write", {"text": "second", "code": 1})
    failures: list[Any] = []
    run_all(
        shop,
        writers(),
        retry_strategy={"retries": 1},
        on_failed=lambda job, error: failures.append((job.attempts, type(error))),
    )
    assert notes(shop) == ["first"]
    job = only_archived(shop)
    assert (job.status, job.attempts) == ("failure", 2)
    assert "UniqueViolation" in job.error
    assert failures == [(2, IntegrityError)]


def test_commit_that_fails_while_another_worker_waits(shop: Engine) -> None:
    """A job whose commit failed may be another worker's by then: it is not settled twice."""
    with Session(shop) as session, session.begin():
        session.add(Note(text="first", code=1))
    handlers = Handlers()
    locked, release = Event(), Event()

    def wait_for_the_job() -> None:
        with Session(shop) as other, other.begin():
            other.scalars(select(Job).with_for_update()).one()
            locked.set()
            assert release.wait(10)

    thread = Thread(target=wait_for_the_job, daemon=True)

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="second", code=1))
        session.flush()
        thread.start()
        # Not pg_stat_activity, which looks the same all through a transaction.
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        with shop.connect() as connection:
            eventually(lambda: connection.scalar(waiting))

    put(shop, "write")
    try:
        assert run_all(shop, handlers) == 0
        assert locked.wait(10)
        assert only_queued(shop).attempts == 0
        assert archived(shop) == []
    finally:
        release.set()
        thread.join()


def check_commit_failure_in_a_batch(shop: Engine) -> None:
    """Check that only the job that broke the commit has failed."""
    texts = [note for note in notes(shop) if note != "warm"]
    assert sorted(texts) == ["a", "b", "c", "first"]
    failed = [job for job in archived(shop) if job.status == "failure"]
    assert [job.payload for job in failed] == ['{"text":"broken","code":1}']
    assert len(archived(shop)) == FAST + 4
    assert queued(shop) == []


@pytest.fixture
def broken_batch(shop: Engine) -> Engine:
    """A batch whose commit fails because of one of its jobs."""
    with Session(shop) as session, session.begin():
        session.add(Note(text="first", code=1))
    enqueue_batch(
        shop, [{"text": "a"}, {"text": "b"}, {"text": "broken", "code": 1}, {"text": "c"}]
    )
    return shop


def test_commit_that_fails_in_a_batch(broken_batch: Engine) -> None:
    """A job that breaks the commit of its batch fails alone; the others are written once."""
    with QueueWorker(broken_batch, writers(), batch_window=10 * MINUTE):
        eventually(lambda: not queued(broken_batch))
    check_commit_failure_in_a_batch(broken_batch)


def test_drain_when_a_commit_fails_in_a_batch(broken_batch: Engine) -> None:
    """``drain`` runs everything that is due, a batch that had to be taken apart included."""
    run_batch(broken_batch, writers())
    check_commit_failure_in_a_batch(broken_batch)


def test_commit_failure_in_a_batch_is_no_polling_error(broken_batch: Engine) -> None:
    """A job that breaks a commit is a failing job, not a reason to stop the worker."""
    stopped: list[BaseException] = []
    worker = QueueWorker(
        broken_batch,
        writers(),
        batch_window=10 * MINUTE,
        on_polling_error=lambda error: stopped.append(error) or True,
    )
    with worker:
        eventually(lambda: not queued(broken_batch) or worker.stopping)
    assert stopped == []
    check_commit_failure_in_a_batch(broken_batch)


def leave_marker(engine: Engine, payload: str, batch_size: int) -> None:
    """Leave what a worker leaves that died while it ran a job, with others or alone."""
    with Session(engine) as session, session.begin():
        (job,) = [job for job in session.scalars(select(Job)) if payload in job.payload]
        session.add(
            RunningJob(job_id=job.job_id, worker="gone", batch_size=batch_size, started_at=utcnow())
        )


def test_jobs_of_a_dead_batch_run_one_by_one(shop: Engine) -> None:
    """Jobs in whose midst a worker died run one by one: uncounted, each in its transaction."""
    texts = [f"note {n}" for n in range(10)]
    enqueue_batch(shop, [])
    with QueueWorker(shop, writers(), batch_window=10 * MINUTE):
        eventually(lambda: len(archived(shop)) == FAST)
        with Session(shop) as session, session.begin():
            first, *_ = [enqueue(session, "write", {"text": text}) for text in texts]
            session.add(
                RunningJob(job_id=first.job_id, worker="gone", batch_size=10, started_at=utcnow())
            )
        eventually(lambda: not queued(shop))
    assert shared_transactions(shop, texts) == 10
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert rows(shop, RunningJob) == []


def test_jobs_of_a_dead_batch_behind_urgent_ones(shop: Engine) -> None:
    """More urgent jobs in front of them do not bring those jobs together again."""
    texts = [f"note {n}" for n in range(10)]
    enqueue_batch(shop, [{"text": text} for text in texts])
    leave_marker(shop, "note 0", batch_size=10)
    run_batch(shop, writers())
    assert shared_transactions(shop, texts) == 10
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert rows(shop, RunningJob) == []


def test_job_that_killed_its_worker(shop: Engine) -> None:
    """The death of a worker that ran one job alone is a failed attempt of that job only."""
    enqueue_batch(shop, [{"text": f"note {n}"} for n in range(10)])
    leave_marker(shop, "note 4", batch_size=1)
    failures: list[Any] = []
    run_batch(shop, writers(), on_failed=lambda job, error: failures.append((job.attempts, error)))
    (failed,) = [job for job in archived(shop) if job.status == "failure"]
    assert "the worker gone died while it ran attempt 1 of this job" in failed.error
    ((attempts, error),) = failures
    assert (attempts, type(error)) == (1, WorkerDiedError)
    assert len([note for note in notes(shop) if note != "warm"]) == 9
    assert rows(shop, RunningJob) == []


# Interruption.


def test_interrupted_job_is_not_counted(shop: Engine) -> None:
    """A job that gives up because the worker stops is as it was: not counted, due at once."""
    handlers = Handlers()
    started, log, failures = Event(), Log(), []

    @handlers("long")
    def long(payload: Any, session: Session) -> None:
        session.add(Note(text="half done"))
        session.flush()
        started.set()
        while not worker.stopping:
            started.wait()
        raise TimeoutError("gave up")

    worker = QueueWorker(shop, handlers, log=log, on_failed=lambda *args: failures.append(args))
    put(shop, "long")
    before = only_queued(shop)
    worker.start()
    assert started.wait(10)
    worker.stop()
    after = only_queued(shop)
    for column in inspect(Job).columns.keys():  # noqa: SIM118 - not a dict
        assert getattr(after, column) == getattr(before, column), column
    assert (notes(shop), archived(shop), failures) == ([], [], [])
    assert "job-interrupted" in log.events()
    assert "handle-job-exception" not in log.events()
    assert rows(shop, RunningJob) == []


def test_job_that_finishes_while_stopping(shop: Engine) -> None:
    """A handler that ends in time while the worker stops is a success; the rest waits."""
    handlers = Handlers()
    started = Event()

    @handlers("long")
    def long(payload: Any, session: Session) -> None:
        started.set()
        while not worker.stopping:
            started.wait()
        session.add(Note(text="done"))

    worker = QueueWorker(shop, handlers)
    put(shop, "long")
    put(shop, "long")
    with worker:
        assert started.wait(10)
    assert notes(shop) == ["done"]
    assert only_archived(shop).status == "success"
    assert only_queued(shop).attempts == 0


# Callbacks.


def test_on_failed(engine: Engine) -> None:
    """``on_failed`` gets the job and the exception once, after the archive shows the failure."""
    seen: list[Any] = []

    def on_failed(job: Job, error: Exception) -> None:
        seen.append((job.job_id, job.job_type, job.payload, job.attempts, str(error)))
        assert only_archived(engine).status == "failure"

    job_id = put(engine, "mail", [1])
    run_all(engine, fail, on_failed=on_failed, retry_strategy={"retries": 2})
    assert seen == [(job_id, "mail", "[1]", 3, "no mail today")]


def test_on_failed_that_throws(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """An error in ``on_failed`` is logged with the job, and neither undoes nor stops anything."""
    calls: list[Any] = []

    def on_failed(job: Job, error: Exception) -> None:
        calls.append(job.job_id)
        raise RuntimeError("pager is down")

    ids = [put(engine, "mail"), put(engine, "mail")]
    assert run_all(engine, fail, on_failed=on_failed) == 2
    assert calls == ids
    assert [job.status for job in archived(engine)] == ["failure", "failure"]
    errors = [r for r in caplog.records if getattr(r, "event", "") == "failed-job-callback-error"]
    assert [r.job_id for r in errors] == ids  # type: ignore[attr-defined]
    assert "pager is down" in caplog.text


def disconnect(engine: Engine, name: str) -> None:
    """Cut a worker's connections, as a restart of the database does."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE :name || '%'"
            ),
            {"name": name},
        )


def test_survives_lost_connections(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose connections are cut says so, and goes on with new ones."""
    errors: list[BaseException] = []
    log = Log()
    worker = QueueWorker(
        engine,
        succeed,
        name="survivor",
        polling_interval=SECOND / 10,
        on_polling_error=errors.append,  # returns None: go on
        log=log,
    )
    with worker:
        put(engine, "before")
        eventually(lambda: len(archived(engine)) == 1)
        disconnect(engine, "survivor")
        eventually(lambda: errors)
        put(engine, "after")
        eventually(lambda: len(archived(engine)) == 2)
    assert "polling-error" in log.events()
    assert "polling-error" in caplog.text


def test_connection_lost_during_a_job(shop: Engine) -> None:
    """When the connection dies under a job its writes are gone, and it runs again."""
    handlers = Handlers()
    runs: list[int] = []

    @handlers("mail")
    def mail(payload: Any, session: Session) -> None:
        runs.append(1)
        session.add(Note(text=f"run {len(runs)}"))
        session.flush()
        if len(runs) == 1:
            disconnect(shop, "cut")

    put(shop, "mail")
    with QueueWorker(shop, handlers, name="cut", polling_interval=SECOND / 10):
        eventually(lambda: archived(shop))
    assert notes(shop) == ["run 2"]
    assert only_archived(shop).status == "success"
    assert queued(shop) == []


def test_on_polling_error_stops_the_worker(engine: Engine) -> None:
    """When ``on_polling_error`` returns a true value the worker stops by itself."""
    errors: list[BaseException] = []

    def on_polling_error(error: BaseException) -> bool:
        errors.append(error)
        return True

    def broken_clock() -> datetime:
        raise OSError("no clock")

    worker = QueueWorker(engine, succeed, clock=broken_clock, on_polling_error=on_polling_error)
    with at_most(10, worker.request_stop):
        worker.run()
    assert [str(error) for error in errors] == ["no clock"]


def test_on_polling_error_that_throws(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """An error in ``on_polling_error`` is logged, and the worker goes on."""
    clock = ManualClock()
    calls: list[int] = []

    def flaky_clock() -> datetime:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no clock")
        return clock.now

    def on_polling_error(error: BaseException) -> bool:
        raise RuntimeError("pager is down")

    put(engine, "job", clock=clock)
    with QueueWorker(engine, succeed, clock=flaky_clock, on_polling_error=on_polling_error):
        eventually(lambda: archived(engine))
    assert "pager is down" in caplog.text
    assert "callback-error" in caplog.text


def test_log(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Every event goes to ``log`` with the worker's name, and to ``logging`` with its data."""
    caplog.set_level(logging.DEBUG, "sqlalchemy_proletarian")
    log = Log()
    job_id = put(engine, "fine")
    put(engine, "broken", priority=9)

    def handler(job_type: str, payload: Any) -> None:
        if job_type == "broken":
            fail(job_type, payload)

    run_all(engine, handler, log=log, name="w1", retry_strategy={"retries": 1})
    assert log.events() == [
        "handling-job",
        "job-finished",
        "handling-job",
        "handle-job-exception",
        "retrying",
        "handling-job",
        "handle-job-exception",
        "not-retrying",
    ]
    assert log.data("job-finished") == [
        {"worker": "w1", "job_id": job_id, "job_type": "fine", "attempt": 1}
    ]
    assert isinstance(log.data("handle-job-exception")[0]["error"], ValueError)
    assert [data["attempt"] for data in log.data("handle-job-exception")] == [1, 2]
    finished = [r for r in caplog.records if getattr(r, "event", "") == "job-finished"]
    assert [(r.worker, r.job_id) for r in finished] == [("w1", job_id)]  # type: ignore[attr-defined]


def test_log_that_throws(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A ``log`` callable that raises disturbs nobody."""

    def log(event: str, data: Any) -> None:
        raise RuntimeError("disk full")

    put(engine, "mail")
    assert run_all(engine, succeed, log=log) == 1
    assert only_archived(engine).status == "success"
    assert "disk full" in caplog.text


# Many at once.


def test_thousand_jobs_by_four_threads(shop: Engine) -> None:
    """A thousand jobs by four threads: each runs once, and what it writes is there once."""
    handlers = Handlers()
    runs: Counter[int] = Counter()

    @handlers("count")
    def count(payload: int, session: Session) -> None:
        runs[payload] += 1
        session.add(Note(text=str(payload)))

    with Session(shop) as session, session.begin():
        enqueue_many(session, [("count", n) for n in range(1000)])
    assert run_all(shop, handlers, threads=4) == 1000
    assert runs == Counter(range(1000))
    assert Counter(notes(shop)) == Counter(str(n) for n in range(1000))
    assert queued(shop) == []
    done = archived(shop)
    assert len(done) == 1000
    assert {(job.status, job.attempts) for job in done} == {("success", 1)}
    assert rows(shop, RunningJob) == []


def test_two_workers_side_by_side(shop: Engine) -> None:
    """Two workers on one queue share the jobs, and each job runs once."""
    runs: Counter[int] = Counter()
    by_worker: Counter[str] = Counter()

    def log(event: str, data: Any) -> None:
        if event == "job-finished":
            by_worker[data["worker"]] += 1

    def handler(_: str, payload: int) -> None:
        runs[payload] += 1
        Event().wait(0.002)

    with (
        QueueWorker(shop, handler, threads=2, name="left", log=log, batch_size=1),
        QueueWorker(shop, handler, threads=2, name="right", log=log, batch_size=1),
    ):
        with Session(shop) as session, session.begin():
            enqueue_many(session, [("count", n) for n in range(300)])
        eventually(lambda: sum(by_worker.values()) == 300, 20)
    assert runs == Counter(range(300))
    assert min(by_worker["left"], by_worker["right"]) > 0
    assert len(archived(shop)) == 300
    assert queued(shop) == []


def test_threads_work_at_the_same_time(engine: Engine) -> None:
    """With n threads, n long jobs run at the same time."""
    together = Barrier(3, timeout=10)
    for _ in range(3):
        put(engine, "meet")
    with QueueWorker(engine, lambda *_: together.wait(), threads=3):
        eventually(lambda: len(archived(engine)) == 3)
    assert {job.status for job in archived(engine)} == {"success"}


def test_slow_job_does_not_hold_fast_ones(engine: Engine) -> None:
    """While one thread is busy with a slow job, the others run what comes in."""
    release, seen = Event(), []

    def handler(job_type: str, payload: Any) -> None:
        if job_type == "slow":
            assert release.wait(10)
        else:
            seen.append(payload)

    with QueueWorker(engine, handler, threads=2):
        put(engine, "slow", priority=0)
        for n in range(20):
            put(engine, "fast", n)
        eventually(lambda: [job.job_type for job in queued(engine)] == ["slow"])
        assert sorted(seen) == list(range(20))
        release.set()
    assert len(archived(engine)) == 21


def test_slow_first_job_lets_go_of_its_batch(engine: Engine) -> None:
    """Jobs claimed together with one that turns out slow are free for other workers meanwhile."""
    release, running = Event(), Event()

    def handler(job_type: str, payload: Any) -> None:
        if job_type == "slow":
            running.set()
            assert release.wait(10)

    with Session(engine) as session, session.begin():
        enqueue_many(session, [("fast", None)] * FAST)
    with QueueWorker(engine, handler):
        eventually(lambda: len(archived(engine)) == FAST)
        with Session(engine) as session, session.begin():
            enqueue(session, "slow", priority=0)
            enqueue_many(session, [("fast", n) for n in range(10)])
        try:
            assert running.wait(10)
            assert run_all(engine, succeed) == 10
        finally:
            release.set()


# Construction.


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"queues": []}, ValueError, "queues must name at least one queue"),
        ({"queues": ""}, ValueError, "queues must have 1 to 255 characters"),
        ({"queues": ["a", 1]}, TypeError, "queues must be a string, not 1"),
        ({"threads": 0}, ValueError, "threads must be at least 1, not 0"),
        ({"threads": 1.5}, TypeError, "threads must be an int, not 1.5"),
        ({"threads": True}, TypeError, "threads must be an int, not True"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, not 0"),
        ({"batch_window": timedelta(0)}, ValueError, "batch_window must be positive"),
        ({"polling_interval": 0}, ValueError, "polling_interval must be positive, not 0"),
        ({"polling_interval": 0.5}, TypeError, "polling_interval must be a timedelta or whole"),
        ({"shutdown_timeout": -SECOND}, ValueError, "shutdown_timeout must not be negative"),
        ({"retry_strategy": 3}, TypeError, "a retry strategy must be a RetryStrategy"),
        ({"retry_strategy": {"retries": -1}}, ValueError, "retries must not be negative"),
    ],
)
def test_bad_options(
    engine: Engine, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """An option that makes no sense is refused when the worker is made, with the reason."""
    with pytest.raises(error, match=reason):
        QueueWorker(engine, succeed, **options)


def test_bad_binds(engine: Engine) -> None:
    """A worker needs an engine of its own: a connection or a session is refused."""
    with engine.connect() as connection, Session(engine) as session:
        for bind in (connection, session, sessionmaker(connection), "postgresql://", None):
            with pytest.raises(TypeError, match="needs an Engine, or a sessionmaker bound to one"):
                QueueWorker(bind, succeed)  # type: ignore[arg-type]


def test_unbound_sessionmaker() -> None:
    """A sessionmaker without an engine is refused as what is no bind at all."""
    with pytest.raises(TypeError, match="bound to one"):
        QueueWorker(sessionmaker(), succeed)


def test_bad_handlers(engine: Engine) -> None:
    """What is neither Handlers nor callable is refused."""
    with pytest.raises(TypeError, match="must be Handlers or a callable"):
        QueueWorker(engine, {"mail": succeed})  # type: ignore[arg-type]


def test_other_databases_are_refused() -> None:
    """On a database that it does not support the worker does not even start."""
    engine = create_engine("sqlite://")
    with pytest.raises(NotImplementedError, match="sqlite is not supported"):
        QueueWorker(engine, succeed).start()
    engine.dispose()


def test_rows_written_by_others(engine: Engine) -> None:
    """A row that another program inserted with the original columns only runs as any other."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO proletarian.job (job_id, queue, job_type, payload, attempts,"
                " enqueued_at, process_at) VALUES (gen_random_uuid(), :queue, :type, '[1]', 0,"
                " now(), now())"
            ),
            {"queue": ":proletarian/default", "type": ":mail"},
        )
    seen: list[Any] = []
    handler = lambda *args: seen.append(args)  # noqa: E731
    assert run_all(engine, handler, queues=":proletarian/default") == 1
    assert seen == [(":mail", [1])]
    assert only_archived(engine).priority == 5


def test_job_removed_while_it_waited(engine: Engine) -> None:
    """A job that was deleted, or moved to another time by hand, does not run."""
    put(engine, "deleted")
    moved = put(engine, "moved")
    with Session(engine) as session, session.begin():
        session.execute(
            update(Job).where(Job.job_id == moved).values(process_at=func.now() + MINUTE)
        )
        session.delete(session.scalars(select(Job).where(Job.job_type == "deleted")).one())
    assert run_all(engine, succeed) == 0
    assert rows(engine, ArchivedJob) == []
