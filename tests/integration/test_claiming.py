"""What is claimed, and in which order."""

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
def test_oldest_first(engine: Engine, kind: Kind, clock: ManualClock, indexes: str) -> None:
    """Jobs run in the order of ``process_at``, whatever order and plan the table is read in."""
    for age in (2, 5, 1, 4, 3):
        process_at = clock.now - age * MINUTE
        put(engine, "job", age, process_at=process_at, clock=lambda: clock.now - 9 * MINUTE)
    seen: list[int] = []
    planned = with_settings(engine, enable_indexscan=indexes, enable_bitmapscan=indexes)
    assert kind.run_all(planned, lambda _, age: seen.append(age)) == 5
    assert seen == [5, 4, 3, 2, 1]
    planned.dispose()


def test_queues_and_priorities(engine: Engine, kind: Kind) -> None:
    """Queues are served strictly in the order given, priorities inside them, then the oldest."""
    lanes = [("critical", 5), ("critical", 9), ("default", 0), ("default", 3), ("default", 9)]
    for queue, priority in sorted(lanes, key=str, reverse=True):
        for n in range(3):
            put(engine, "job", [queue, priority, n], queue=queue, priority=priority)
    put(engine, "job", "other", queue="other", priority=0)
    seen: list[Any] = []
    kind.run_all(engine, lambda _, lane: seen.append(lane), queues=["critical", "default"])
    assert seen == [[queue, priority, n] for queue, priority in lanes for n in range(3)]
    assert only_queued(engine).queue == "other"


def test_urgent_job_overtakes_the_backlog(engine: Engine, kind: Kind) -> None:
    """A job in an earlier queue runs next, however much waits in the later one."""
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


def test_same_queue_named_twice(engine: Engine, kind: Kind) -> None:
    """In a queue that is named twice each job runs once."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("job", n) for n in range(2 * FAST)])
    seen: list[int] = []
    kind.run_all(engine, lambda _, payload: seen.append(payload), queues=["default", "default"])
    assert sorted(seen) == list(range(2 * FAST))


def test_not_before_its_time(engine: Engine, kind: Kind, clock: ManualClock) -> None:
    """A job does not run before ``process_at``, and runs from that instant on."""
    put(engine, "job", process_at=clock.now + MINUTE, clock=clock)
    assert kind.run_all(engine, succeed, clock=clock) == 0
    clock.advance(MINUTE - timedelta(microseconds=1))
    assert kind.run_all(engine, succeed, clock=clock) == 0
    clock.advance(timedelta(microseconds=1))
    assert kind.run_all(engine, succeed, clock=clock) == 1


def test_woken_when_due(engine: Engine, kind: Kind) -> None:
    """An idle worker runs a scheduled job when it is due, long before it would poll again."""
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


def test_skips_locked_rows(engine: Engine, kind: Kind) -> None:
    """A job that somebody else has locked is passed over, not waited for, and runs later."""
    first, _ = put(engine, "job", 1), put(engine, "job", 2)
    seen: list[int] = []

    def handler(_: str, payload: Any) -> None:
        seen.append(payload)

    with Session(engine) as other:
        other.scalars(select(Job).where(Job.job_id == first).with_for_update()).one()
        impatient = with_settings(engine, lock_timeout="3s")
        assert kind.run_all(impatient, handler) == 1
        impatient.dispose()
    assert kind.run_all(engine, handler) == 1
    assert seen == [2, 1]


def test_rows_written_by_others(engine: Engine, kind: Kind) -> None:
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
    assert kind.run_all(engine, handler, queues=":proletarian/default") == 1
    assert seen == [(":mail", [1])]
    assert only_archived(engine).priority == 5


def test_job_removed_while_it_waited(engine: Engine, kind: Kind) -> None:
    """A job that was deleted, or moved to another time by hand, does not run."""
    put(engine, "deleted")
    moved = put(engine, "moved")
    with Session(engine) as session, session.begin():
        session.execute(
            update(Job).where(Job.job_id == moved).values(process_at=func.now() + MINUTE)
        )
        session.delete(session.scalars(select(Job).where(Job.job_type == "deleted")).one())
    assert kind.run_all(engine, succeed) == 0
    assert rows(engine, ArchivedJob) == []
