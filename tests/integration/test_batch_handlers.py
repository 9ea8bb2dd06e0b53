"""Batch handlers: one call of a function for many jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from threading import Barrier, Event
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, insert, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    BatchFailed,
    Discard,
    Handlers,
    Job,
    QueueWorker,
    RecurringJob,
    RetryAfter,
    RunningJob,
    Snooze,
    enqueue,
    enqueue_many,
    process_next_job,
    testing,
    utcnow,
)
from sqlalchemy_proletarian.testing import asyncio as awaitable_kit

from .kinds import COROUTINES, KINDS, Kind, either_sort_of_handler, only, transactions
from .loops import in_a_loop
from .orders import ArchivedShopJob, Order, SendInvoice, ShopJob
from .support import (
    FAST,
    MINUTE,
    SECOND,
    Log,
    ManualClock,
    Note,
    archived,
    eventually,
    notes,
    only_archived,
    queued,
    rows,
    shared_transactions,
)


def put_all(engine: Engine, payloads: Sequence[Any], job_type: str = "write") -> None:
    """Enqueue one job for each payload."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [(job_type, payload) for payload in payloads])


class Writer:
    """A batch handler that writes a note for each payload, and records its calls."""

    def __init__(self, size: int = 10, **options: Any) -> None:
        self.handlers = Handlers()
        self.calls: list[list[Any]] = []
        self.handlers.batch("write", size=size, **options)(self.write)

    def write(self, payloads: list[Any], session: Session) -> Any:
        self.calls.append(payloads)
        session.execute(insert(Note), [{"text": str(payload)} for payload in payloads])
        return self.then(payloads)

    def then(self, payloads: list[Any]) -> Any:
        """Do more; tests override it."""


def outcomes(engine: Engine) -> dict[str, str]:
    """Return the status of each archived job, by its payload."""
    return {job.payload: str(job.status) for job in archived(engine)}


@either_sort_of_handler
def test_one_call_runs_many_jobs(shop: Engine, kind: Kind) -> None:
    """Each job runs once, and what a call writes commits with its jobs."""
    writer = Writer(size=10)
    put_all(shop, range(45))
    assert kind.run_all(shop, writer.handlers) == 45
    assert sorted(payload for call in writer.calls for payload in call) == list(range(45))
    assert max(map(len, writer.calls)) == 10
    assert len(writer.calls) <= 7  # the first calls are of one, two, four and eight jobs
    assert Counter(notes(shop)) == Counter(map(str, range(45)))
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert rows(shop, RunningJob) == []
    assert shared_transactions(shop, notes(shop)) <= len(writer.calls)


@either_sort_of_handler
def test_the_jobs_of_the_payloads_are_passed_in_the_same_order(shop: Engine, kind: Kind) -> None:
    handlers = Handlers()
    seen: list[tuple[list[int], list[Any]]] = []

    @handlers.batch("write", size=7)
    def write(payloads: Sequence[int], *, jobs: list[Job], session: Session) -> None:
        assert all(job in session for job in jobs)
        seen.append((list(payloads), [(job.payload, job.attempts) for job in jobs]))

    put_all(shop, range(20))
    assert kind.run_all(shop, handlers) == 20
    for payloads, jobs in seen:
        assert jobs == [(str(payload), 1) for payload in payloads]


@either_sort_of_handler
def test_a_handler_without_a_session(shop: Engine, kind: Kind) -> None:
    handlers = Handlers()
    calls: list[list[str]] = []

    @handlers.batch("write", size=10)
    def write(payloads: list[str]) -> None:
        calls.append(payloads)

    put_all(shop, ["a"] * 30)
    assert kind.run_all(shop, handlers) == 30
    assert sum(map(len, calls)) == 30
    assert len(calls) <= 6


@either_sort_of_handler
def test_failures_of_single_jobs(shop: Engine, kind: Kind) -> None:
    """The others succeed, and what the function wrote for them stays."""
    handlers = Handlers()
    errors = {
        1: ValueError("one"),
        2: Discard("two"),
        3: Snooze(MINUTE),
        4: RetryAfter(MINUTE),
        5: KeyError("five"),
    }

    @handlers.batch("write", size=10, retry={"retries": 1, "delays": [60_000]})
    def write(payloads: list[int], session: Session) -> None:
        session.add_all(Note(text=str(n)) for n in payloads if n not in errors)
        raise BatchFailed({i: errors[n] for i, n in enumerate(payloads) if n in errors})

    put_all(shop, range(10))
    kind.run_all(shop, handlers)
    assert sorted(notes(shop)) == ["0", "6", "7", "8", "9"]
    assert outcomes(shop) == {**dict.fromkeys("06789", "success"), "2": "failure"}
    waiting = {job.payload: (job.attempts, job.error) for job in queued(shop)}
    assert waiting.keys() == {"1", "3", "4", "5"}
    assert waiting["1"][0] == 1 and "ValueError: one" in (waiting["1"][1] or "")
    assert waiting["3"] == (0, None)
    assert waiting["4"][0] == 1 and "RetryAfter" in (waiting["4"][1] or "")
    assert all(job.process_at > utcnow() for job in queued(shop))
    assert rows(shop, RunningJob) == []


@either_sort_of_handler
def test_returned_outcomes_are_like_errors_that_are_raised(shop: Engine, kind: Kind) -> None:
    handlers = Handlers()

    @handlers.batch("write", size=10)
    def write(payloads: list[int], session: Session) -> list[Exception | None]:
        session.add_all(Note(text=str(n)) for n in payloads if n % 3)
        return [None if n % 3 else ValueError(n) for n in payloads]

    put_all(shop, range(10))
    assert kind.run_all(shop, handlers) == 10
    assert Counter(outcomes(shop).values()) == {"success": 6, "failure": 4}
    assert len(notes(shop)) == 6


@either_sort_of_handler
def test_if_every_job_has_failed_nothing_is_committed(shop: Engine, kind: Kind) -> None:
    writer = Writer()
    writer.then = lambda payloads: [ValueError(n) for n in payloads]  # type: ignore[method-assign]
    put_all(shop, range(10))
    assert kind.run_all(shop, writer.handlers) == 10
    assert notes(shop) == []
    assert {job.status for job in archived(shop)} == {"failure"}


def failing(*guilty: int) -> Any:
    """Return a function that raises if one of these payloads is in a call."""

    def then(payloads: list[int]) -> None:
        if found := set(guilty) & set(payloads):
            raise ValueError(found)

    return then


@either_sort_of_handler
@pytest.mark.parametrize("guilty", [(37,), (2, 3, 61)])
def test_only_the_job_to_blame_fails(shop: Engine, kind: Kind, guilty: tuple[int, ...]) -> None:
    """The jobs of a call that raises run again in calls of half as many, down to one."""
    writer, log = Writer(size=64), Log()
    writer.then = failing(*guilty)
    put_all(shop, range(64))
    kind.run_all(shop, writer.handlers, log=log)
    failed = {job.payload for job in archived(shop) if job.status == "failure"}
    assert failed == set(map(str, guilty))
    assert {job.attempts for job in archived(shop)} == {1}
    assert sorted(map(int, notes(shop))) == [n for n in range(64) if n not in guilty]
    assert len(writer.calls) <= 7 + 14 * len(guilty)
    split = log.data("batch-split")
    assert split and split[0]["job_type"] == "write" and isinstance(split[0]["error"], ValueError)
    assert rows(shop, RunningJob) == []


@either_sort_of_handler
def test_slow_calls_that_fail_make_progress(shop: Engine, kind: Kind) -> None:
    """Calls that take longer than the batch window run again after the next claim."""
    writer = Writer(size=16)
    writer.then = failing(5)
    put_all(shop, range(16))
    kind.run_all(shop, writer.handlers, batch_window=MINUTE / 1_000_000)
    assert Counter(outcomes(shop).values()) == {"success": 15, "failure": 1}
    assert sorted(map(int, notes(shop))) == [n for n in range(16) if n != 5]
    assert len(writer.calls) <= 2 * 16 + 4


@either_sort_of_handler
def test_if_all_jobs_fail_the_number_of_calls_is_bounded(shop: Engine, kind: Kind) -> None:
    writer = Writer(size=16)
    writer.then = failing(*range(16))
    put_all(shop, range(16))
    assert kind.run_all(shop, writer.handlers) == 16
    assert {job.status for job in archived(shop)} == {"failure"}
    assert len(writer.calls) <= 2 * 16 + 4
    assert notes(shop) == []


@either_sort_of_handler
def test_an_object_that_the_database_rejects_fails_only_its_job(shop: Engine, kind: Kind) -> None:
    """The objects of a call are flushed before its jobs complete."""
    handlers = Handlers()

    @handlers.batch("write", size=20)
    def write(payloads: list[Any], session: Session) -> None:
        session.add_all(Note(text=payload) for payload in payloads)

    put_all(shop, ["a"] * 10 + [None] + ["b"] * 9)
    assert kind.run_all(shop, handlers) == 20
    (failed,) = [job for job in archived(shop) if job.status == "failure"]
    assert failed.payload == "null" and "not-null constraint" in failed.error
    assert len(notes(shop)) == 19


@either_sort_of_handler
def test_a_payload_that_cannot_be_decoded_fails_only_its_job(shop: Engine, kind: Kind) -> None:
    handlers = Handlers()
    calls: list[list[int]] = []

    @handlers.batch("write", size=20)
    def write(payloads: list[int], session: Session) -> None:
        calls.append(payloads)
        session.add_all(Note(text=str(payload)) for payload in payloads)

    put_all(shop, [1, 2, "three", 4])
    assert kind.run_all(shop, handlers) == 4
    assert outcomes(shop) == {"1": "success", "2": "success", '"three"': "failure", "4": "success"}
    assert sorted(notes(shop)) == ["1", "2", "4"]
    assert len(calls) <= 3


@either_sort_of_handler
def test_outcomes_that_do_not_fit_the_payloads_are_an_error(shop: Engine, kind: Kind) -> None:
    """The error says what is wrong, and what the function wrote is rolled back."""
    for then, message in [
        (lambda payloads: [None, *payloads], "returned 2 outcomes for 1 payloads"),
        (lambda payloads: 7, "returned 7: return None, or a list"),
        (lambda payloads: ["bad"] * len(payloads), "'bad' as the outcome of the payload 0"),
    ]:
        writer = Writer()
        writer.then = then  # type: ignore[method-assign]
        put_all(shop, [0])
        assert kind.run_all(shop, writer.handlers) == 1
        error = archived(shop)[-1].error
        assert "HandlerError" in error and message in error
    assert notes(shop) == []


@either_sort_of_handler
def test_an_index_that_is_none_of_a_payload_is_an_error(shop: Engine, kind: Kind) -> None:
    writer = Writer()

    def then(payloads: list[Any]) -> None:
        raise BatchFailed({len(payloads): ValueError()})

    writer.then = then  # type: ignore[method-assign]
    put_all(shop, [0])
    kind.run_all(shop, writer.handlers)
    assert "BatchFailed for the payload 1, but the last of its 1 payloads" in (
        only_archived(shop).error
    )


@either_sort_of_handler
@pytest.mark.parametrize(
    ("error", "attempts"), [(Snooze(MINUTE), 0), (RetryAfter(MINUTE), 1)], ids=["snooze", "retry"]
)
def test_a_call_can_reschedule_all_of_its_jobs(
    shop: Engine, kind: Kind, error: Exception, attempts: int
) -> None:
    """It is not called again for each of them."""
    writer = Writer(size=20)

    def then(payloads: list[Any]) -> None:
        raise error

    writer.then = then  # type: ignore[method-assign]
    put_all(shop, range(20))
    kind.run_all(shop, writer.handlers)
    assert len(writer.calls) <= 5
    assert notes(shop) == []
    assert [job.attempts for job in queued(shop)] == [attempts] * 20
    assert all(job.process_at > utcnow() for job in queued(shop))


@only(*KINDS, *COROUTINES)
def test_jobs_of_a_job_class(shop: Engine, kind: Kind) -> None:
    handlers = Handlers()
    calls: list[int] = []

    @handlers.batch(SendInvoice, size=10)
    def invoice(jobs: list[SendInvoice], session: Session) -> None:
        calls.append(len(jobs))
        ids = [job.order_id for job in jobs]
        session.execute(update(Order).where(Order.id.in_(ids)).values(invoiced=Order.invoiced + 1))

    with Session(shop) as session, session.begin():
        session.add_all(SendInvoice(order=Order()) for _ in range(20))
    ran = kind.run_all(
        shop,
        handlers,
        job_model=ShopJob,
        archived_job_model=ArchivedShopJob,
        running_job_model=None,
    )
    assert ran == 20
    assert len(calls) <= 5
    assert [order.invoiced for order in rows(shop, Order)] == [1] * 20


@either_sort_of_handler
def test_jobs_of_other_handlers_beside_them(shop: Engine, kind: Kind) -> None:
    """Two batch handlers and a handler of single jobs, in one queue."""
    writer, log = Writer(size=10), Log()
    sizes: list[int] = []

    @writer.handlers.batch("count", size=5)
    def count(payloads: list[int]) -> None:
        sizes.append(len(payloads))

    @writer.handlers("single")
    def single(payload: int, session: Session) -> None:
        session.add(Note(text=f"single {payload}"))

    with Session(shop) as session, session.begin():
        for n in range(30):
            enqueue_many(session, [("write", n), ("single", n), ("count", n)])
    assert kind.run_all(shop, writer.handlers, log=log) == 90
    assert len(notes(shop)) == 60
    assert sum(sizes) == 30 and 3 <= max(sizes) <= 5
    assert 4 <= max(map(len, writer.calls)) <= 10
    assert len(writer.calls) <= 12
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert Counter(log.events())["job-finished"] == 90
    assert Counter(log.events())["handling-job"] == 90
    assert rows(shop, RunningJob) == []


@transactions
def test_other_workers_run_the_jobs_that_a_call_leaves(shop: Engine, kind: Kind) -> None:
    """While a call takes its time, no other job that was claimed with it stays locked."""
    writer = Writer(size=10)
    begun, release = Event(), Event()
    singles: list[int] = []

    def then(payloads: list[int]) -> None:
        if len(payloads) > 1:
            begun.set()
            assert release.wait(25)

    writer.then = then  # type: ignore[method-assign]
    writer.handlers("single")(singles.append)
    put_all(shop, [0], "write")
    put_all(shop, range(FAST), "single")
    with kind.worker(shop, writer.handlers, batch_window=10 * MINUTE):
        eventually(lambda: len(archived(shop)) == FAST + 1)
        with Session(shop) as session, session.begin():
            for n in range(1, 9):
                enqueue_many(session, [("write", n), ("single", n)])
        try:
            assert begun.wait(25)
            kind.run_all(shop, lambda job_type, payload: None)
            assert all(job.job_type == "write" for job in queued(shop))
            assert 1 < len(queued(shop)) <= 8
        finally:
            release.set()
        eventually(lambda: not queued(shop))
    assert len(notes(shop)) == len(set(notes(shop)))


@either_sort_of_handler
def test_a_batch_handler_of_any_size_exceeds_the_batch_size(shop: Engine, kind: Kind) -> None:
    """The size of its calls is not limited by the options of the worker."""
    writer = Writer(size=40)
    put_all(shop, range(81))
    assert kind.run_all(shop, writer.handlers, batch_size=2, batch_window=MINUTE / 1000) == 81
    sizes = [len(call) for call in writer.calls]
    assert sizes == ([1, 40, 40] if kind.leased else [1, 2, 4, 8, 16, 32, 18])


@only(*KINDS)
def test_calls_take_one_place_each(shop: Engine, kind: Kind) -> None:
    """With two threads or tasks, two calls run at the same time."""
    handlers = Handlers()
    together = Barrier(2, timeout=25)
    calls: list[list[int]] = []

    @handlers.batch("write", size=10)
    def write(payloads: list[int]) -> None:
        calls.append(payloads)
        if len(payloads) == 10 and min(payloads) >= 0:
            together.wait()

    put_all(shop, [-1] * 60)
    # With a longer window, one transaction may have two calls.
    with kind.worker(shop, handlers, threads=2, batch_window=MINUTE / 60_000):
        eventually(lambda: len(archived(shop)) == 60)
        calls.clear()
        put_all(shop, range(20))
        eventually(lambda: not queued(shop))
    assert [len(call) for call in calls] == [10, 10]


def test_process_next_job_runs_one_job(session: Session, shop: Engine) -> None:
    writer = Writer()
    writer.then = failing(1)
    put_all(shop, [0, 1, 2])
    assert [process_next_job(session, writer.handlers) for _ in range(4)] == [True] * 3 + [None]
    assert writer.calls == [[0], [1], [2]]
    assert notes(shop) == ["0", "2"]
    assert outcomes(shop) == {"0": "success", "1": "failure", "2": "success"}


def test_the_testing_kit_calls_it_with_one_payload(session: Session, shop: Engine) -> None:
    writer = Writer()

    def then(payloads: list[Any]) -> None:
        raise BatchFailed({i: ValueError(n) for i, n in enumerate(payloads) if n == "bad"})

    writer.then = then  # type: ignore[method-assign]
    handler = writer.handlers.find("write")
    assert handler is not None
    handler.enqueue(session, "good")
    handler.enqueue(session, "bad")
    runs = testing.drain(session, writer.handlers)
    assert [(run.payload, str(run.outcome)) for run in runs] == [
        ("good", "success"),
        ("bad", "failure"),
    ]
    assert isinstance(runs[1].error, ValueError)
    testing.perform(handler, "good", session=session)
    with pytest.raises(ValueError, match="bad"):
        testing.perform(handler, "bad", session=session)
    session.commit()
    assert notes(shop) == ["good", "good"]
    assert writer.calls == [["good"], ["bad"], ["good"], ["bad"]]


@in_a_loop
async def test_the_testing_kit_in_a_loop(shop: Engine, loop_engine: AsyncEngine) -> None:
    handlers = Handlers()

    @handlers.batch("write")
    async def write(payloads: list[str], session: AsyncSession, jobs: list[Job]) -> None:
        assert [job.attempts for job in jobs] == [1]
        session.add_all(Note(text=payload) for payload in payloads)
        if payloads == ["bad"]:
            raise BatchFailed({0: ValueError("bad")})

    async with AsyncSession(loop_engine) as session:
        write.enqueue(session, "good")
        write.enqueue(session, "bad")
        assert [str(run.outcome) for run in await awaitable_kit.drain(session, handlers)] == [
            "success",
            "failure",
        ]
        await awaitable_kit.perform(write, "good", session=session)
        with pytest.raises(ValueError, match="bad"):
            await awaitable_kit.perform(write, "bad", session=session)
        await session.commit()
    assert notes(shop) == ["good", "good"]


def test_recurring_jobs_of_a_batch_handler(shop: Engine) -> None:
    """The payload is that of one job."""
    writer = Writer()
    handler = writer.handlers.find("write")
    writer.handlers.recurring("often", every=MINUTE, payload="tick", catch_up="all")(handler)
    clock = ManualClock()
    with QueueWorker(shop, writer.handlers, clock=clock, polling_interval=SECOND / 50):
        eventually(lambda: rows(shop, RecurringJob))
        clock.advance(5 * MINUTE)
        eventually(lambda: len(archived(shop)) == 5)
    assert notes(shop) == ["tick"] * 5


@either_sort_of_handler
def test_jobs_during_which_a_worker_crashed_run_alone(shop: Engine, kind: Kind) -> None:
    """A call that kills its worker is not repeated as it was."""
    writer = Writer(size=20)
    put_all(shop, ["warm"] * 31)
    with kind.worker(shop, writer.handlers):
        eventually(lambda: len(archived(shop)) == 31)
        writer.calls.clear()
        with Session(shop) as session, session.begin():
            lease = {"lease_id": uuid4(), "process_at": utcnow() - MINUTE} if kind.leased else {}
            jobs = [enqueue(session, "write", n) for n in range(20)]
            for n, job in enumerate(jobs):
                for name, value in lease.items():
                    setattr(job, name, value)
                if kind.leased or n == 0:
                    session.add(
                        RunningJob(
                            job_id=job.job_id, worker="gone", batch_size=20, started_at=utcnow()
                        )
                    )
        eventually(lambda: not queued(shop))
    assert max(map(len, writer.calls)) <= (2 if kind.leased else 1)
    assert {(job.status, job.attempts, job.deaths) for job in archived(shop)} == {("success", 1, 0)}
    assert sorted(map(int, notes(shop)[31:])) == list(range(20))
    assert rows(shop, RunningJob) == []


@either_sort_of_handler
def test_middleware_wraps_a_call(shop: Engine, kind: Kind) -> None:
    """It gets a list of the jobs, of other handlers too, and its exception is that of the call."""
    writer = Writer(size=10)
    around: list[int] = []
    errors: list[Exception] = []

    @writer.handlers.middleware
    def counts(jobs: list[Job], session: Session) -> Iterator[None]:
        around.append(len(jobs))
        session.add(Note(text="around"))
        try:
            yield
        except Exception as error:
            errors.append(error)
            raise

    def then(payloads: list[Any]) -> list[Any]:
        return [ValueError() if payload == 3 else None for payload in payloads]

    writer.then = then  # type: ignore[method-assign]
    writer.handlers("single")(lambda payload: None)
    put_all(shop, range(20))
    put_all(shop, ["single"], "single")
    assert kind.run_all(shop, writer.handlers) == 21
    assert sum(around) == 21
    assert notes(shop).count("around") == len(around)
    assert [type(error) for error in errors] == [BatchFailed]
    assert Counter(outcomes(shop).values()) == {"success": 20, "failure": 1}


@transactions
def test_keys_and_weights(shop: Engine, kind: Kind) -> None:
    """Keys that are free while a job runs, and queues that share the worker by weight."""
    writer = Writer(size=4)
    handler = writer.handlers.find("write")
    assert handler is not None
    with Session(shop) as session, session.begin():
        for n in range(10):
            for queue in ("a", "b"):
                options: dict[str, Any] = {"unique_key": f"key {n}", "unique_while": "queued"}
                handler.enqueue_unique(session, n, queue=queue, **options)
            enqueue(session, "single", n, queue="a")
    writer.handlers("single")(lambda payload: None)
    assert kind.run_all(shop, writer.handlers, queues={"a": 2, "b": 1}) == 30
    assert Counter(notes(shop)) == {str(n): 2 for n in range(10)}
    assert max(map(len, writer.calls)) > 1
    assert queued(shop) == []
