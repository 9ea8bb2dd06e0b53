"""Which jobs a worker claims, and in which order."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Job, enqueue_many

from .kinds import Kind
from .support import (
    FAST,
    MINUTE,
    SECOND,
    Log,
    ManualClock,
    eventually,
    only_archived,
    only_queued,
    put,
    rows,
    succeed,
    with_settings,
)


@pytest.mark.parametrize("indexes", ["on", "off"])
def test_the_oldest_job_runs_first(
    engine: Engine, kind: Kind, clock: ManualClock, indexes: str
) -> None:
    """Jobs run in the order of ``process_at``, whatever the insertion order and the query plan."""
    for age in (2, 5, 1, 4, 3):
        process_at = clock.now - age * MINUTE
        put(engine, "job", age, process_at=process_at, clock=lambda: clock.now - 9 * MINUTE)
    seen: list[int] = []
    planned_engine = with_settings(engine, enable_indexscan=indexes, enable_bitmapscan=indexes)
    assert kind.run_all(planned_engine, lambda _, age: seen.append(age)) == 5
    assert seen == [5, 4, 3, 2, 1]
    planned_engine.dispose()


def test_queues_and_priorities_are_served_in_order(engine: Engine, kind: Kind) -> None:
    """Jobs are ordered by the given order of queues, then by priority, then by age."""
    lanes = [("critical", 5), ("critical", 9), ("default", 0), ("default", 3), ("default", 9)]
    for queue, priority in sorted(lanes, key=str, reverse=True):
        for n in range(3):
            put(engine, "job", [queue, priority, n], queue=queue, priority=priority)
    put(engine, "job", "other", queue="other", priority=0)
    seen: list[Any] = []
    kind.run_all(engine, lambda _, lane: seen.append(lane), queues=["critical", "default"])
    assert seen == [[queue, priority, n] for queue, priority in lanes for n in range(3)]
    assert only_queued(engine).queue == "other"


def test_a_job_in_an_earlier_queue_runs_before_the_backlog(engine: Engine, kind: Kind) -> None:
    """The number of jobs in later queues does not matter."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("job", n) for n in range(50)], queue="later")
    seen: list[Any] = []

    def handler(_: str, payload: Any) -> None:
        seen.append(payload)
        if len(seen) == 1:
            put(engine, "job", "urgent", queue="first")

    kind.run_all(engine, handler, queues=["first", "later"], batch_size=1)
    assert seen[1] == "urgent"
    assert len(seen) == 51


def test_a_queue_named_twice_runs_each_job_once(engine: Engine, kind: Kind) -> None:
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("job", n) for n in range(2 * FAST)])
    seen: list[int] = []
    kind.run_all(engine, lambda _, payload: seen.append(payload), queues=["default", "default"])
    assert sorted(seen) == list(range(2 * FAST))


def test_a_job_does_not_run_before_process_at(
    engine: Engine, kind: Kind, clock: ManualClock
) -> None:
    """The job is due exactly at ``process_at``."""
    put(engine, "job", process_at=clock.now + MINUTE, clock=clock)
    assert kind.run_all(engine, succeed, clock=clock) == 0
    clock.advance(MINUTE - timedelta(microseconds=1))
    assert kind.run_all(engine, succeed, clock=clock) == 0
    clock.advance(timedelta(microseconds=1))
    assert kind.run_all(engine, succeed, clock=clock) == 1


def test_an_idle_worker_runs_a_scheduled_job_when_it_is_due(engine: Engine, kind: Kind) -> None:
    """The worker does not wait for its polling interval."""
    ran_at: list[datetime] = []
    log = Log()

    def handler(_: str, payload: Any) -> None:
        ran_at.append(datetime.now().astimezone())

    with kind.worker(engine, handler, polling_interval=MINUTE, log=log):
        eventually(lambda: "polling-for-jobs" in log.events())
        put(engine, "job", process_in=timedelta(milliseconds=300))
        due = only_queued(engine).process_at
        eventually(lambda: ran_at)
    assert timedelta(0) <= ran_at[0] - due < SECOND


def test_locked_jobs_are_skipped(engine: Engine, kind: Kind) -> None:
    """A worker does not wait for a job that another session has locked, and runs it later."""
    first, _ = put(engine, "job", 1), put(engine, "job", 2)
    seen: list[int] = []

    def handler(_: str, payload: Any) -> None:
        seen.append(payload)

    with Session(engine) as other_session:
        other_session.scalars(select(Job).where(Job.job_id == first).with_for_update()).one()
        timeout_engine = with_settings(engine, lock_timeout="3s")
        assert kind.run_all(timeout_engine, handler) == 1
        timeout_engine.dispose()
    assert kind.run_all(engine, handler) == 1
    assert seen == [2, 1]


def test_jobs_inserted_by_another_program_run(engine: Engine, kind: Kind) -> None:
    """A row with only the columns of the original Proletarian table is a complete job."""
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
    assert kind.run_all(engine, handler, queues=":proletarian/default") == 1
    assert seen == [(":mail", [1])]
    assert only_archived(engine).priority == 5


def test_deleted_and_rescheduled_jobs_do_not_run(engine: Engine, kind: Kind) -> None:
    """A job does not run if its row was deleted or its ``process_at`` was moved to the future."""
    put(engine, "deleted")
    moved = put(engine, "moved")
    with Session(engine) as session, session.begin():
        session.execute(
            update(Job).where(Job.job_id == moved).values(process_at=func.now() + MINUTE)
        )
        session.delete(session.scalars(select(Job).where(Job.job_type == "deleted")).one())
    assert kind.run_all(engine, succeed) == 0
    assert rows(engine, ArchivedJob) == []
