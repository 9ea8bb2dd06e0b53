"""The life cycle of a job, with the same guarantees on every database."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any

from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    RetryStrategy,
    Snooze,
    enqueue,
    enqueue_many,
    manage,
    utcnow,
    uuid7,
)
from tests.integration.support import (
    archived,
    eventually,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    succeed,
)

from .places import Note, Place, is_one_writer, only


def writer() -> Handlers:
    """Return a handler that writes its payload as a note."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text=str(payload)))

    return handlers


def notes(engine: Engine) -> list[str]:
    return sorted(note.text for note in rows(engine, Note))


def test_success(place: Place, engine: Engine) -> None:
    """A handler's writes commit with the completion; the archive keeps the job's values."""
    due = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    before = utcnow()
    with Session(engine) as session, session.begin():
        enqueue(session, "write", "Grüße 😀", priority=2, clock=lambda: due, unique_key="k")
        enqueue_many(session, [("write", n) for n in range(5)])
    assert place.run_all(engine, writer(), threads=2) == 6
    assert notes(engine) == ["0", "1", "2", "3", "4", "Grüße 😀"]
    assert not queued(engine)
    first, *_ = archived(engine)
    assert (first.status, first.attempts, first.error) == ("success", 1, None)
    assert (first.payload, first.priority, first.unique_key) == ('"Grüße 😀"', 2, "k")
    assert (first.enqueued_at, first.process_at) == (due, due)
    assert first.enqueued_at.tzinfo is UTC
    assert before <= first.finished_at <= utcnow()


def test_failure(place: Place, engine: Engine) -> None:
    """A failed attempt leaves only its error; after the last attempt the job is archived."""
    seen: list[tuple[int, str | None]] = []
    handlers = Handlers()

    @handlers("write", retry=RetryStrategy(retries=2))
    def write(payload: Any, session: Session, job: Job) -> None:
        seen.append((job.attempts, job.error and job.error.splitlines()[-1]))
        session.add(Note(text="never"))
        session.flush()
        raise ValueError(f"no luck 😀 {job.attempts}")

    put(engine, "write")
    assert place.run_all(engine, handlers) == 3
    assert seen == [(1, None), (2, "ValueError: no luck 😀 1"), (3, "ValueError: no luck 😀 2")]
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("failure", 3)
    assert job.error.endswith("ValueError: no luck 😀 3")
    assert not notes(engine) and not queued(engine)


def test_a_failure_does_not_affect_the_rest_of_the_batch(place: Place, engine: Engine) -> None:
    """A job with an SQL error does not affect the other jobs of its batch or their writes."""
    handlers = writer()

    @handlers("break")
    def break_(payload: Any, session: Session) -> None:
        session.add(Note(text="never"))
        session.flush()
        session.execute(text("SELECT * FROM no_such_table"))

    with Session(engine) as session, session.begin():
        enqueue_many(session, [("write", "warm")] * 20, priority=0)
        enqueue_many(session, [("write", "a"), ("break", None), ("write", "b")])
    place.run_all(engine, handlers, batch_window=timedelta(minutes=1))
    assert notes(engine) == ["a", "b"] + ["warm"] * 20
    assert Counter(job.status for job in archived(engine)) == {"success": 22, "failure": 1}


def test_jobs_run_in_order(place: Place, engine: Engine) -> None:
    """Jobs run in the order of the worker's queues, then by priority, then by due time."""
    order: list[str] = []
    clock = utcnow() - timedelta(hours=1)

    def handler(job_type: str, payload: Any) -> None:
        order.append(job_type)

    for queue, priority, minutes, name in [
        ("slow", 0, 0, "e"),
        ("fast", 5, 2, "d"),
        ("fast", 5, 1, "c"),
        ("fast", 1, 9, "b"),
        ("fast", 0, 10, "a"),
        ("FAST", 0, 0, "in another queue"),
    ]:
        put(
            engine,
            name,
            queue=queue,
            priority=priority,
            process_at=clock + timedelta(minutes=minutes),
            clock=lambda: clock,
        )
    put(engine, "later", queue="fast", process_in=timedelta(hours=1))
    assert place.run_all(engine, handler, queues=["fast", "slow"], batch_size=1) == 5
    assert order == ["a", "b", "c", "d", "e"]
    assert {job.job_type for job in queued(engine)} == {"in another queue", "later"}


def test_two_workers(place: Place, engine: Engine) -> None:
    """Parallel workers share the jobs, and no job runs twice."""
    runs: Counter[int] = Counter()
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        runs[payload] += 1
        session.add(Note(text=f"{payload}"))

    jobs = 60
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("write", n) for n in range(jobs)])
    workers = [place.worker(engine, handlers, threads=2, batch_size=5) for _ in range(2)]
    drains = [Thread(target=worker.drain) for worker in workers]
    for drain in drains:
        drain.start()
    for drain in drains:
        drain.join()
    assert runs == dict.fromkeys(range(jobs), 1)
    assert len(notes(engine)) == jobs == len(archived(engine))
    assert not queued(engine)


def test_an_idle_worker_finds_new_jobs(place: Place, engine: Engine) -> None:
    """An idle worker finds jobs that are committed later and jobs that become due."""
    interval = timedelta(seconds=0.2)
    with place.worker(engine, writer(), polling_interval=interval) as worker:
        assert not worker.stopping
        put(engine, "write", "now")
        put(engine, "write", "soon", process_in=timedelta(seconds=0.5))
        eventually(lambda: len(archived(engine)) == 2)
    assert notes(engine) == ["now", "soon"]


def test_a_job_with_an_expired_lease_runs_again(place: Place, engine: Engine) -> None:
    """A job that a crashed worker leased runs again, and no attempt is counted."""
    job_id = put(engine, "write", "again")
    with engine.begin() as connection:
        expired = utcnow() - timedelta(seconds=1)
        values = {"lease_id": uuid7(), "process_at": expired}
        connection.execute(update(Job.__table__).values(values))
    assert place.run_all(engine, writer()) == 1
    job = only_archived(engine)
    assert (job.job_id, job.attempts, job.status) == (job_id, 1, "success")
    assert notes(engine) == ["again"]


@only(lambda place: place.leased and not is_one_writer(place))
def test_a_worker_that_lost_its_lease_does_not_complete_the_job(
    place: Place, engine: Engine
) -> None:
    """The writes of a handler roll back when its worker has lost the lease."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: str, session: Session) -> None:
        with engine.begin() as other:  # another worker claims it
            later = utcnow() + timedelta(hours=1)
            values = {"lease_id": uuid7(), "process_at": later}
            other.execute(update(Job.__table__).values(values))
        session.add(Note(text=payload))

    put(engine, "write", "never")
    place.run_all(engine, handlers)
    assert not notes(engine) and not archived(engine)
    assert only_queued(engine).attempts == 0


@only(lambda place: place.server != "sqlite")
def test_a_job_that_loses_its_connection_runs_again(place: Place, engine: Engine) -> None:
    """When a handler's connection is lost, the job runs again and its writes commit once."""
    runs: list[int] = []
    handlers = Handlers()

    @handlers("write", retry=RetryStrategy(retries=1))
    def write(payload: str, session: Session) -> None:
        session.add(Note(text=payload))
        session.flush()
        runs.append(1)
        if len(runs) == 1:
            kill(engine, session)
            session.scalar(select(func.count()).select_from(Note))

    put(engine, "write", "once")
    interval = timedelta(seconds=0.2)
    with place.worker(engine, handlers, polling_interval=interval, running_job_model=None):
        eventually(lambda: archived(engine))
    assert notes(engine) == ["once"]
    assert len(runs) == 2
    job = only_archived(engine)
    assert (job.status, job.attempts) == ("success", 1)


@only(lambda place: place.leased and place.server != "sqlite")
def test_a_snooze_on_a_lost_connection(place: Place, engine: Engine) -> None:
    """A job is snoozed as its handler requested although the rollback of its session fails."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: str, session: Session) -> None:
        session.add(Note(text=payload))
        session.flush()
        kill(engine, session)
        raise Snooze(timedelta(hours=1))

    put(engine, "write", "never")
    place.run_all(engine, handlers)
    job = only_queued(engine)
    assert (job.attempts, job.error) == (0, None)
    assert job.process_at > utcnow() + timedelta(minutes=50)
    assert not notes(engine)


def kill(engine: Engine, session: Session) -> None:
    """End a session's connection at the server."""
    if engine.dialect.name == "postgresql":
        select_id, end = "SELECT pg_backend_pid()", "SELECT pg_terminate_backend(:id)"
    else:
        select_id, end = "SELECT CONNECTION_ID()", "KILL :id"
    with engine.connect() as other:
        other.execute(text(end), {"id": session.scalar(text(select_id))})


def test_cancel_a_waiting_job(place: Place, engine: Engine) -> None:
    """A waiting job can be cancelled once, and it does not run."""
    waiting = put(engine, "write", "never", process_in=timedelta(hours=1))
    with Session(engine) as session, session.begin():
        assert manage.cancel(session, waiting, reason="not needed") == "cancelled"
    with Session(engine) as session, session.begin():
        assert manage.cancel(session, waiting) is None
    job = only_archived(engine)
    assert (job.status, job.error, job.attempts) == ("cancelled", "not needed", 0)


@only(lambda place: not is_one_writer(place))
def test_cancel_a_running_job(place: Place, engine: Engine) -> None:
    """A running job is cancelled and its writes roll back in lease mode; else it completes."""
    answers: list[Any] = []
    handlers = Handlers()

    @handlers("write")
    def write(payload: str, session: Session, job: Job) -> None:
        with Session(engine) as other, other.begin():
            answers.append(manage.cancel(other, job.job_id))
        session.add(Note(text=payload))

    put(engine, "write", "held")
    place.run_all(engine, handlers)
    assert answers == ["cancelled" if place.leased else "requested"]
    assert notes(engine) == ([] if place.leased else ["held"])


def test_a_job_of_an_unknown_type_stays_queued(place: Place, engine: Engine) -> None:
    """A job of an unknown type stays queued, and the jobs behind it run."""
    put(engine, "unknown")
    put(engine, "write", "known")
    logged: list[tuple[str, int]] = []

    def log(event: str, data: Any) -> None:
        if event == "job-type-unknown":
            logged.append((data["job_type"], data["jobs"]))

    assert place.run_all(engine, writer(), log=log) == 1
    job = only_queued(engine)
    assert (job.job_type, job.attempts) == ("unknown", 0)
    assert job.process_at <= utcnow()
    assert logged == [("unknown", 1)]


def test_a_worker_that_stops_releases_its_jobs(place: Place, engine: Engine) -> None:
    """An unfinished job of a worker that stops is due again at once; no attempt is counted."""
    handlers = Handlers()
    begun: list[int] = []

    @handlers("wait")
    def wait(payload: Any) -> None:
        begun.append(1)
        eventually(lambda: worker.stopping)
        raise RuntimeError("the worker stops")

    put(engine, "wait")
    with place.worker(engine, handlers, polling_interval=timedelta(seconds=0.2)) as worker:
        eventually(lambda: begun)
    job = only_queued(engine)
    assert (job.attempts, job.error) == (0, None)
    assert job.process_at <= utcnow()
    assert place.run_all(engine, succeed) == 1
    assert rows(engine, ArchivedJob)[0].attempts == 1
