from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from threading import Event
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session

from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    Discard,
    Handlers,
    Job,
    JobMixin,
    LimitPlace,
    LimitPlaceMixin,
    QueueWorker,
    RetryStrategy,
    enqueue,
    enqueue_unique,
    manage,
    process_next_job,
)
from sqlalchemy_proletarian.limits import look, places

from .kinds import LEASE, Kind, transactions
from .support import archived, eventually, put, queued, rows

SHORT = timedelta(seconds=0.1)


class Gate:
    """Handlers of the type "sync" that wait until the test lets them go."""

    def __init__(self, **options: Any) -> None:
        self.began: list[Any] = []
        self.go = Event()
        self.handlers = Handlers()

        @self.handlers("sync", **options)
        def sync(payload: Any) -> None:
            self.began.append(payload)
            self.go.wait(20)

        @self.handlers("free")
        def free(payload: Any) -> None: ...


def waiting(engine: Engine) -> list[Job]:
    return [job for job in queued(engine) if job.waits_for is not None]


def test_a_job_that_waits_for_a_limit_uses_no_attempt_and_blocks_no_other(
    kind: Kind, engine: Engine
):
    gate = Gate(concurrency=1)
    with Session(engine) as session:
        for n in range(3):
            enqueue(session, "sync", n)
        enqueue(session, "free")
        session.commit()
    with kind.worker(engine, gate.handlers, threads=2, polling_interval=SHORT):
        eventually(lambda: len(waiting(engine)) == 2)
        eventually(lambda: [job.job_type for job in archived(engine)] == ["free"])
        assert len(gate.began) == 1
        assert [job.attempts for job in waiting(engine)] == [0, 0]
        with Session(engine) as session:
            assert manage.stats(session).queues["default"].waiting == 2
        gate.go.set()
        eventually(lambda: len(archived(engine)) == 4)
    assert sorted(gate.began) == [0, 1, 2]
    assert {job.attempts for job in archived(engine)} == {1}
    assert all(job.process_at.year < 9000 for job in archived(engine))


def test_jobs_wait_by_priority_and_due_time(kind: Kind, engine: Engine):
    gate = Gate(concurrency=1)
    put(engine, "sync", "first")
    with kind.worker(engine, gate.handlers, threads=2, polling_interval=SHORT):
        eventually(lambda: gate.began)
        for name, priority in (("later", 5), ("last", 5), ("urgent", 0)):
            put(engine, "sync", name, priority=priority)
        eventually(lambda: len(waiting(engine)) == 3)
        gate.go.set()
        eventually(lambda: len(archived(engine)) == 4)
    assert gate.began == ["first", "urgent", "later", "last"]


@pytest.mark.parametrize(
    "end",
    [ValueError("no"), Discard("no"), None],
    ids=["retry", "failure", "success"],
)
def test_a_place_is_free_however_the_job_ends(kind: Kind, engine: Engine, end: Exception | None):
    handlers = Handlers()

    @handlers("sync", concurrency=1, retry=RetryStrategy(retries=1, delays=[timedelta(hours=1)]))
    def sync(payload: int) -> None:
        if payload == 0 and end is not None:
            raise end

    for n in range(3):
        put(engine, "sync", n)
    with kind.worker(engine, handlers, threads=2, polling_interval=SHORT):
        eventually(lambda: sum(job.status == "success" for job in archived(engine)) >= 2)


def test_the_key_is_computed_when_the_job_is_claimed(kind: Kind, engine: Engine):
    """It does not matter who has enqueued the job, or how."""
    gate = Gate(concurrency_key=lambda payload: payload["customer"])
    for customer in (1, 2, 1, None):
        put(engine, "sync", {"customer": customer})
    with kind.worker(engine, gate.handlers, threads=4, polling_interval=SHORT):
        eventually(lambda: len(gate.began) == 3 and waiting(engine))
        assert [job.waits_for for job in waiting(engine)] == ["sync/1"]
        gate.go.set()
        eventually(lambda: len(archived(engine)) == 4)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (lambda payload: payload["customer"], "the concurrency_key of 'sync' raised TypeError"),
        (lambda payload: [payload], "must return a string, an integer, a UUID or None, not [1]"),
    ],
)
def test_an_error_of_the_key_is_a_failed_attempt(
    kind: Kind, engine: Engine, key: Callable[[Any], Any], message: str
):
    gate = Gate(concurrency_key=key)
    gate.go.set()
    put(engine, "sync", 1)
    put(engine, "free")
    with kind.worker(engine, gate.handlers, polling_interval=SHORT):
        eventually(lambda: len(archived(engine)) == 2)
    failed = next(job for job in archived(engine) if job.job_type == "sync")
    assert (failed.status, failed.attempts) == ("failure", 1)
    assert message in str(failed.error)
    assert gate.began == []


def test_a_payload_that_cannot_be_decoded_fails_as_without_a_limit(kind: Kind, engine: Engine):
    gate = Gate(concurrency_key=str)
    put(engine, "sync", 1)
    with engine.begin() as connection:
        connection.execute(text("UPDATE proletarian.job SET payload = 'no JSON'"))
    with kind.worker(engine, gate.handlers, polling_interval=SHORT):
        eventually(lambda: archived(engine))
    assert archived(engine)[0].status == "failure"


def test_jobs_of_a_killed_release_find_the_places_of_the_next_one(kind: Kind, engine: Engine):
    """The limit is raised from 1 to 3 while jobs wait; surplus places are not taken later."""
    first = Gate(concurrency=1)
    for n in range(4):
        put(engine, "sync", n)
    with kind.worker(engine, first.handlers, threads=4, polling_interval=SHORT):
        eventually(lambda: len(waiting(engine)) == 3)
        second = Gate(concurrency=3)
        with kind.worker(engine, second.handlers, threads=4, polling_interval=SHORT):
            eventually(lambda: len(second.began) == 2)
            first.go.set()
            second.go.set()
            eventually(lambda: len(archived(engine)) == 4)
    assert len(rows(engine, LimitPlace)) == 3
    third = Gate(concurrency=2)
    for n in range(4):
        put(engine, "sync", n)
    with kind.worker(engine, third.handlers, threads=4, polling_interval=SHORT):
        eventually(lambda: len(third.began) == 2 and len(waiting(engine)) == 2)
        third.go.set()
        eventually(lambda: len(archived(engine)) == 8)


@pytest.mark.parametrize("lost", ["limit", "key"])
def test_jobs_wait_no_longer_for_a_limit_that_a_deploy_has_removed(
    kind: Kind, engine: Engine, lost: str
):
    with Session(engine) as session:
        job = enqueue(session, "sync", 1)
        session.flush()
        job.waits_for, job.due_at = "sync/1", job.process_at
        job.process_at = job.process_at.replace(year=9000, month=1, day=1, hour=0, minute=0)
        job.process_at = job.process_at.replace(second=0, microsecond=0)
        session.commit()
    gate = Gate() if lost == "limit" else Gate(concurrency=1)
    gate.go.set()
    with kind.worker(engine, gate.handlers, polling_interval=SHORT):
        eventually(lambda: archived(engine))


def test_a_worker_that_does_not_know_a_type_leaves_its_waiting_jobs(kind: Kind, engine: Engine):
    gate = Gate(concurrency=1)
    put(engine, "sync", 1)
    put(engine, "sync", 2)
    handlers = Handlers()

    @handlers("other", concurrency=1)
    def other(payload: Any) -> None: ...

    with kind.worker(engine, gate.handlers, threads=2, polling_interval=SHORT):
        eventually(lambda: waiting(engine))
        assert kind.run_all(engine, handlers) == 0
        assert len(waiting(engine)) == 1
        gate.go.set()


def test_a_job_is_found_whose_place_became_free_without_a_hand_over(
    kind: Kind, engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    """As if the worker had been killed between its commit and the next one."""
    monkeypatch.setattr(look.Look, "hand_over", lambda *_, **__: False)
    gate = Gate(concurrency=1)
    gate.go.set()
    for n in range(3):
        put(engine, "sync", n)
    with kind.worker(engine, gate.handlers, threads=3, polling_interval=SHORT):
        eventually(lambda: len(archived(engine)) == 3)


def test_a_waiting_job_can_be_cancelled_discarded_and_rescheduled(kind: Kind, engine: Engine):
    gate = Gate(concurrency=1)
    for n in range(4):
        put(engine, "sync", n)
    with kind.worker(engine, gate.handlers, threads=2, polling_interval=SHORT):
        eventually(lambda: len(waiting(engine)) == 3)
        first, second, third = (job.job_id for job in waiting(engine))
        with Session(engine) as session:
            assert manage.cancel(session, first) == "cancelled"
            assert manage.discard(session, second) == "discarded"
            assert manage.reschedule(session, third, process_in=timedelta(0)) == "rescheduled"
            session.commit()
        gate.go.set()
        eventually(lambda: len(archived(engine)) == 4)
    assert all(job.process_at.year < 9000 for job in archived(engine))
    assert sorted(job.status for job in archived(engine)) == [
        "cancelled",
        "failure",
        "success",
        "success",
    ]


def test_a_limited_handler_that_rolls_back_keeps_its_place(engine: Engine):
    """A failed job rolls back to a SAVEPOINT; the jobs behind it in the batch keep the place."""
    handlers, held = Handlers(), []

    @handlers("warm")
    def warm(payload: Any, session: Session) -> None:
        session.execute(select(1))

    @handlers("sync", concurrency=1)
    def sync(payload: int, session: Session) -> None:
        session.execute(text("SELECT 1"))
        if payload == 0:
            raise ValueError
        with engine.connect() as other:
            free = text("SELECT 1 FROM proletarian.limit_place FOR UPDATE SKIP LOCKED")
            held.append(other.scalar(free) is None)

    worker = QueueWorker(engine, handlers, batch_window=timedelta(seconds=20))
    for _ in range(2):
        for n in range(3):
            put(engine, "warm", n)
        for n in range(3):
            put(engine, "sync", n)
        worker.drain()
    assert held == [True] * 4


def test_a_rate_is_shared_by_all_workers(kind: Kind, engine: Engine):
    handlers, began = Handlers(), []

    @handlers("rated", rate="5/second")
    def rated(payload: Any) -> None:
        began.append(monotonic())

    for n in range(12):
        put(engine, "rated", n)
    with (
        kind.worker(engine, handlers, threads=3, polling_interval=SHORT),
        kind.worker(engine, handlers, threads=3, polling_interval=SHORT),
    ):
        eventually(lambda: len(archived(engine)) == 12)
    began.sort()
    assert max(sum(first <= at < first + 1 for at in began) for first in began) <= 5
    assert began[-1] - began[0] < 8


def test_a_start_that_was_rolled_back_counts(kind: Kind, engine: Engine):
    handlers, began = Handlers(), []

    @handlers("rated", rate="2/hour", retry=RetryStrategy(retries=5, delays=[timedelta(0)]))
    def rated(payload: Any) -> None:
        began.append(payload)
        raise ValueError

    put(engine, "rated", 1)
    with kind.worker(engine, handlers, polling_interval=SHORT):
        eventually(lambda: waiting(engine))
    assert began == [1, 1]
    assert [job.attempts for job in waiting(engine)] == [2]


def test_a_type_can_have_a_key_and_a_rate(kind: Kind, engine: Engine):
    gate = Gate(concurrency_key=lambda payload: payload, rate="3/hour")
    gate.go.set()
    for n in (1, 1, 2, 2):
        put(engine, "sync", n)
    with kind.worker(engine, gate.handlers, threads=3, polling_interval=SHORT):
        eventually(lambda: len(archived(engine)) == 3 and waiting(engine))
    assert len(gate.began) == 3


class Own(DeclarativeBase):
    pass


class OwnJob(JobMixin, Own):
    __tablename__ = "own_limited_job"
    __mapper_args__ = {"polymorphic_on": "job_type"}  # noqa: RUF012

    customer_id: Mapped[int | None]


class Invoice(OwnJob):
    __mapper_args__ = {"polymorphic_identity": "invoice"}  # noqa: RUF012


class ArchivedOwnJob(ArchivedJobMixin, Own):
    __tablename__ = "archived_own_limited_job"

    customer_id: Mapped[int | None]


class OwnPlace(LimitPlaceMixin, Own):
    __tablename__ = "own_limit_place"


def test_the_key_of_a_job_class_is_computed_from_the_object(kind: Kind, engine: Engine):
    """On tables of the application, with a table of places of its own."""
    Own.metadata.create_all(engine)
    handlers, began, go = Handlers(), [], Event()

    @handlers(Invoice, concurrency_key=lambda job: job.customer_id)
    def send(job: Invoice) -> None:
        began.append(job.customer_id)
        go.wait(20)

    models = {"job_model": OwnJob, "archived_job_model": ArchivedOwnJob}
    with pytest.raises(ValueError, match="map one with LimitPlaceMixin and pass it as"):
        kind.worker(engine, handlers, **models)
    try:
        with Session(engine) as session:
            session.add_all([Invoice(customer_id=n) for n in (1, 1, 2)])
            session.commit()
        models["limit_place_model"] = OwnPlace
        with kind.worker(engine, handlers, threads=3, polling_interval=SHORT, **models):
            eventually(lambda: len(began) == 2)
            assert sorted(began) == [1, 2]
            go.set()
            eventually(lambda: len(rows(engine, ArchivedOwnJob)) == 3)
    finally:
        Own.metadata.drop_all(engine)


def test_free_places_are_deleted_after_some_time(kind: Kind, engine: Engine):
    """A customer may never come again. A place that is held stays."""
    gate = Gate(concurrency_key=lambda payload: payload)
    put(engine, "sync", "held")
    with kind.worker(engine, gate.handlers, threads=2, polling_interval=SHORT) as worker:
        eventually(lambda: gate.began)
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO proletarian.limit_place (name, number, created_at) "
                    "VALUES ('sync/gone', 1, now())"
                )
            )
        with engine.connect() as connection:
            pool = worker._core.pool if hasattr(worker, "_core") else None
            assert pool is not None
            _delete_old(pool, engine)
        assert [place.name for place in rows(engine, LimitPlace)] == ["sync/held"]
        gate.go.set()


def _delete_old(pool: Any, engine: Engine) -> None:
    """Delete places as a worker does, an hour from now."""
    found = pool._loop._before_poll.__self__._look
    with engine.begin() as connection:
        now = found._now()
        later = now + timedelta(hours=1)
        found._table.delete_old(connection, later, now)


@transactions
def test_process_next_job_applies_no_limits(kind: Kind, engine: Engine):
    """It runs one job at a time, for tests and the REPL."""
    gate = Gate(concurrency=1, rate="1/hour")
    gate.go.set()
    for n in range(3):
        put(engine, "sync", n)
    with Session(engine) as session:
        while process_next_job(session, gate.handlers):
            pass
    assert gate.began == [0, 1, 2]


def test_a_place_is_not_taken_by_the_lease_as_it_was_before_the_lock(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    """Between the look for places and the lock, another worker takes the place by a lease."""
    first, second = Gate(concurrency=1), Gate(concurrency=1)
    put(engine, "sync", 1)
    QueueWorker(engine, Gate(concurrency=1).handlers, queues="none").drain()
    with Session(engine) as session:
        session.add(LimitPlace(name="sync", number=1))
        session.commit()
    leased = QueueWorker(engine, first.handlers, lease=LEASE, polling_interval=SHORT)
    lock = places.Places._lock
    raced: list[bool] = []

    def lock_late(self: Any, *args: Any) -> Any:
        if not self._leased and not raced:
            raced.append(True)
            leased.start()
            eventually(lambda: first.began)
        return lock(self, *args)

    monkeypatch.setattr(places.Places, "_lock", lock_late)
    put(engine, "sync", 2)
    try:
        with QueueWorker(engine, second.handlers, batch_size=1, polling_interval=SHORT):
            eventually(lambda: waiting(engine))
            assert raced
            assert len(first.began) + len(second.began) == 1
            first.go.set()
            second.go.set()
            eventually(lambda: len(archived(engine)) == 2)
    finally:
        leased.stop()


@pytest.mark.parametrize("on_conflict", ["ignore", "replace"])
def test_a_unique_job_that_waits_for_a_limit_has_its_key(
    kind: Kind, engine: Engine, on_conflict: Any
):
    """It is one job, which runs once, with the payload of the last call if that replaces it."""
    gate = Gate(concurrency=1)
    put(engine, "sync", "first")
    with kind.worker(engine, gate.handlers, threads=2, polling_interval=SHORT):
        eventually(lambda: gate.began)
        with Session(engine) as session, session.begin():
            enqueue_unique(session, "sync", "old", unique_key="k", unique_while="queued")
        eventually(lambda: len(waiting(engine)) == 1)
        with Session(engine) as session, session.begin():
            again = enqueue_unique(
                session,
                "sync",
                "new",
                unique_key="k",
                unique_while="queued",
                on_conflict=on_conflict,
            )
            assert (again.created, again.replaced) == (False, on_conflict == "replace")
        eventually(lambda: len(waiting(engine)) == 1)
        assert gate.began == ["first"]
        gate.go.set()
        eventually(lambda: len(archived(engine)) == 2)
        with Session(engine) as session, session.begin():
            assert enqueue_unique(session, "sync", "next", unique_key="k").created
        eventually(lambda: len(archived(engine)) == 3)
    assert gate.began == ["first", "new" if on_conflict == "replace" else "old", "next"]
