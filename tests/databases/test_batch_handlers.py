"""Batch handlers on every database."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import BatchFailed, Handlers, Job, RunningJob, enqueue_many
from tests.integration.support import MINUTE, archived, eventually, queued, rows

from .places import Note, Place


def put_all(engine: Engine, jobs: list[tuple[str, object]]) -> None:
    """Enqueue jobs in one transaction."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, jobs)


def test_calls_of_many_jobs(place: Place, engine: Engine) -> None:
    """Failures of single jobs, a call that raises, and jobs of another type between them."""
    handlers = Handlers()
    sizes: list[int] = []

    @handlers.batch("write", size=16)
    def write(payloads: list[int], session: Session, jobs: list[Job]) -> None:
        assert [job.payload for job in jobs] == [str(payload) for payload in payloads]
        sizes.append(len(payloads))
        session.execute(insert(Note), [{"text": str(n)} for n in payloads if n % 10])
        if 37 in payloads:
            raise ValueError(37)
        raise BatchFailed({i: ValueError(n) for i, n in enumerate(payloads) if n % 10 == 0})

    @handlers("single")
    def single(payload: int, session: Session) -> None:
        session.add(Note(text=f"single {payload}"))

    put_all(engine, [("write", n) for n in range(1, 60)])
    put_all(engine, [job for n in range(60, 80) for job in [("write", n), ("single", n)]])
    assert place.run_all(engine, handlers) == 99
    failed = {job.payload for job in archived(engine) if job.status == "failure"}
    assert failed == {"10", "20", "30", "37", "40", "50", "60", "70"}
    assert {job.attempts for job in archived(engine)} == {1}
    texts = [str(n) for n in range(1, 80) if n % 10 and n != 37]
    texts += [f"single {n}" for n in range(60, 80)]
    assert Counter(note.text for note in rows(engine, Note)) == Counter(texts)
    assert max(sizes) == 16
    assert queued(engine) == rows(engine, RunningJob) == []


def test_workers_share_the_jobs(place: Place, engine: Engine) -> None:
    handlers = Handlers()

    @handlers.batch("write", size=10)
    def write(payloads: list[int], session: Session) -> None:
        session.execute(insert(Note), [{"text": str(n)} for n in payloads])

    put_all(engine, [("write", n) for n in range(200)])
    workers = [place.worker(engine, handlers, polling_interval=MINUTE / 600) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        eventually(lambda: not queued(engine))
    finally:
        for worker in workers:
            worker.stop()
    assert Counter(note.text for note in rows(engine, Note)) == {str(n): 1 for n in range(200)}
    assert {(job.status, job.attempts) for job in archived(engine)} == {("success", 1)}
    assert rows(engine, RunningJob) == []
