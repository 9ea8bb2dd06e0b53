"""Fast jobs that share a transaction, and how one of them affects the others."""

from __future__ import annotations

from threading import Event, Thread
from typing import Any

from sqlalchemy import Engine, event, func, select, text, update
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    RunningJob,
    WorkerDiedError,
    enqueue,
    enqueue_many,
    utcnow,
)

from .kinds import Kind, transactions
from .support import (
    FAST,
    MINUTE,
    Note,
    archived,
    enqueue_batch,
    eventually,
    notes,
    only_queued,
    put,
    queued,
    rows,
    shared_transactions,
    succeed,
    writers,
)


@transactions
def test_fast_jobs_share_a_transaction(shop: Engine, kind: Kind) -> None:
    """With ``batch_size=1`` each job has its own transaction."""
    texts = [f"note {n}" for n in range(10)]
    enqueue_batch(shop, [{"text": text} for text in texts])
    kind.run_batch(shop, writers())
    assert shared_transactions(shop, texts) == 1
    enqueue_batch(shop, [{"text": f"strict {text}"} for text in texts])
    kind.run_batch(shop, writers(), batch_size=1)
    assert shared_transactions(shop, [f"strict {text}" for text in texts]) == 10


@transactions
def test_jobs_see_the_writes_of_earlier_jobs_in_the_batch(shop: Engine, kind: Kind) -> None:
    handlers = writers()
    counts: list[int] = []

    @handlers("count_notes")
    def count_notes(payload: Any, session: Session) -> None:
        statement = select(func.count()).where(Note.text.startswith("note"))
        counts.append(session.scalars(statement).one())

    with Session(shop) as session, session.begin():
        enqueue_many(session, [("write", {"text": "warm"}), ("count_notes", 0)] * FAST, priority=0)
        for n in range(5):
            enqueue(session, "write", {"text": f"note {n}"})
            enqueue(session, "count_notes")
    kind.run_batch(shop, handlers)
    assert counts[FAST:] == [1, 2, 3, 4, 5]


@transactions
def test_a_slow_job_releases_the_rest_of_its_batch(engine: Engine, kind: Kind) -> None:
    """Other workers may run the jobs that were claimed together with a slow one."""
    release, running = Event(), Event()

    def handler(job_type: str, payload: Any) -> None:
        if job_type == "slow":
            running.set()
            assert release.wait(25)

    with Session(engine) as session, session.begin():
        enqueue_many(session, [("fast", None)] * FAST)
    with kind.worker(engine, handler):
        eventually(lambda: len(archived(engine)) == FAST)
        with Session(engine) as session, session.begin():
            enqueue(session, "slow", priority=0)
            enqueue_many(session, [("fast", n) for n in range(10)])
        try:
            assert running.wait(25)
            assert kind.run_all(engine, succeed) == 10
        finally:
            release.set()


@transactions
def test_a_failed_commit_does_not_settle_a_job_that_was_claimed_elsewhere(
    shop: Engine, kind: Kind
) -> None:
    """A job whose commit failed may have been claimed by another worker in the meantime."""
    with Session(shop) as session, session.begin():
        session.add(Note(text="first", code=1))
    handlers = Handlers()
    locked, release = Event(), Event()

    def lock_the_job() -> None:
        with Session(shop) as other, other.begin():
            other.scalars(select(Job).with_for_update()).one()
            locked.set()
            assert release.wait(25)

    thread = Thread(target=lock_the_job, daemon=True)

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="second", code=1))
        session.flush()
        thread.start()
        # Not pg_stat_activity: its contents do not change during a transaction.
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        with shop.connect() as connection:
            eventually(lambda: connection.scalar(waiting))

    def wait_until_locked(_context: object) -> None:
        locked.wait(25)  # otherwise the worker may claim the job again before the other locks it

    put(shop, "write")
    event.listen(Engine, "handle_error", wait_until_locked)
    try:
        assert kind.run_all(shop, handlers) == 0
        assert locked.wait(25)
        assert only_queued(shop).attempts == 0
        assert archived(shop) == []
    finally:
        event.remove(Engine, "handle_error", wait_until_locked)
        release.set()
        thread.join()


def add_running_marker(engine: Engine, payload: str, batch_size: int) -> None:
    """Add the marker of a worker that crashed while it ran a job, in a batch or alone."""
    with Session(engine) as session, session.begin():
        (job,) = [job for job in session.scalars(select(Job)) if payload in job.payload]
        session.add(
            RunningJob(job_id=job.job_id, worker="gone", batch_size=batch_size, started_at=utcnow())
        )


@transactions
def test_jobs_of_a_crashed_batch_run_one_by_one(shop: Engine, kind: Kind) -> None:
    """Each job runs in its own transaction, and the crash does not count as an attempt."""
    texts = [f"note {n}" for n in range(10)]
    enqueue_batch(shop, [])
    with kind.worker(shop, writers(), batch_window=10 * MINUTE):
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


@transactions
def test_jobs_of_a_crashed_batch_run_one_by_one_after_urgent_jobs(shop: Engine, kind: Kind) -> None:
    """More urgent jobs ahead of them do not put these jobs in one batch again."""
    texts = [f"note {n}" for n in range(10)]
    enqueue_batch(shop, [{"text": text} for text in texts])
    add_running_marker(shop, "note 0", batch_size=10)
    kind.run_batch(shop, writers())
    assert shared_transactions(shop, texts) == 10
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert rows(shop, RunningJob) == []


@transactions
def test_a_job_that_crashed_its_worker_runs_alone(shop: Engine, kind: Kind) -> None:
    """The job fails when the third worker in a row crashes."""
    enqueue_batch(shop, [{"text": f"note {n}"} for n in range(10)])
    add_running_marker(shop, "note 3", batch_size=1)
    add_running_marker(shop, "note 4", batch_size=1)
    with shop.begin() as connection:
        make_poison = update(Job).where(Job.payload.contains("note 4"))
        connection.execute(make_poison.values(deaths=2, attempts=1))
    failures: list[Any] = []
    retried_errors: list[Any] = []
    kind.run_batch(
        shop,
        writers(),
        retry_strategy=lambda job, error: retried_errors.append(error),
        on_failed=lambda job, error: failures.append((job.attempts, job.deaths, error)),
    )
    (failed,) = [job for job in archived(shop) if job.status == "failure"]
    assert "note 4" in failed.payload
    assert "3 workers in a row died or lost the lease" in failed.error
    assert "attempt 2 of this job; the last one (gone) ran no other job" in failed.error
    ((attempts, deaths, error),) = failures
    assert (attempts, deaths, type(error)) == (2, 3, WorkerDiedError)
    assert not retried_errors
    (retried,) = [job for job in archived(shop) if "note 3" in job.payload]
    assert (retried.status, retried.attempts, retried.deaths) == ("success", 1, 1)
    assert len([note for note in notes(shop) if note != "warm"]) == 9
    assert rows(shop, RunningJob) == []
