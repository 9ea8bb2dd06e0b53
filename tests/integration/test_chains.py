"""With psycopg, one message archives a fast job, commits, and claims the next one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, enqueue

from .support import (
    MINUTE,
    Log,
    Note,
    archived,
    listening,
    notes,
    queued,
    rows,
    run_all,
    writers,
)

JOBS = 6

PREPARED = text("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'proletarian_%'")


def fill(engine: Engine, payloads: Iterable[Any], job_type: str = "job") -> None:
    """Enqueue jobs that come due one after the other."""
    with Session(engine) as session, session.begin():
        for payload in payloads:
            enqueue(session, job_type, payload)


def strict(engine: Engine, handlers: Handlers, **options: Any) -> int:
    """Run due jobs, each in a transaction of its own, all of them in one chain."""
    return run_all(engine, handlers, batch_size=1, batch_window=MINUTE, **options)


def test_each_job_has_its_own_transaction(shop: Engine) -> None:
    fill(shop, [{"text": str(n)} for n in range(JOBS)], "write")
    assert strict(shop, writers()) == JOBS
    assert len({note.transaction for note in rows(shop, Note)}) == JOBS
    assert [job.attempts for job in archived(shop)] == [1] * JOBS


def test_the_statements_are_prepared_once(shop: Engine) -> None:
    """Shows that the jobs of this module run in a chain."""
    fill(shop, range(JOBS))
    seen: list[Any] = []
    handlers = Handlers()

    @handlers("job")
    def job(payload: int, session: Session) -> None:
        seen.append(session.scalar(PREPARED))

    strict(shop, handlers)
    assert seen == [0] + [2] * (JOBS - 1)


@pytest.mark.parametrize("hidden", [False, True], ids=["by the session", "by the driver"])
def test_a_handler_deallocates_the_statements(shop: Engine, hidden: bool) -> None:
    """No job fails. The job runs again if the worker could not notice it."""
    fill(shop, range(JOBS))
    ran: list[int] = []
    handlers = Handlers()

    @handlers("job")
    def job(payload: int, session: Session) -> None:
        ran.append(payload)
        session.add(Note(text=str(payload)))
        if payload == 2 and ran.count(2) == 1:
            if hidden:
                session.connection().connection.cursor().execute("DEALLOCATE ALL")
            else:
                session.execute(text("DEALLOCATE ALL"))

    strict(shop, handlers)
    assert [(job.status, job.attempts) for job in archived(shop)] == [("success", 1)] * JOBS
    assert sorted(notes(shop)) == [str(n) for n in range(JOBS)]
    assert sorted(ran) == sorted([*range(JOBS), 2] if hidden else range(JOBS))


def test_only_the_job_fails_whose_flush_fails(shop: Engine) -> None:
    """The SAVEPOINT that was set with the claim undoes its writes."""
    fill(shop, range(JOBS))
    handlers = Handlers()

    @handlers("job")
    def job(payload: int, session: Session) -> None:
        session.add(Note(text=f"first {payload}"))
        session.add(Note(text=None if payload == 3 else f"second {payload}"))

    strict(shop, handlers)
    statuses = {job.payload: (job.status, job.attempts) for job in archived(shop)}
    assert statuses.pop("3") == ("failure", 1)
    assert set(statuses.values()) == {("success", 1)}
    assert len(notes(shop)) == 2 * (JOBS - 1)


def test_only_the_job_fails_whose_commit_fails(shop: Engine) -> None:
    """The constraint on ``code`` is checked by the COMMIT."""
    fill(shop, [{"text": str(n), "code": 0 if n in (1, 3) else n} for n in range(1, JOBS)], "write")
    log = Log()
    strict(shop, writers(), log=log)
    done = archived(shop)
    assert [(job.status, job.attempts) for job in done] == [
        ("failure" if n == 3 else "success", 1) for n in range(1, JOBS)
    ]
    assert notes(shop) == ["1", "2", "4", "5"]
    assert len(log.data("job-finished")) == JOBS - 1


def test_a_handler_deletes_its_own_job(shop: Engine) -> None:
    """It fails as it would outside of a chain, and the others do not."""
    fill(shop, range(JOBS))
    handlers = Handlers()

    @handlers("job")
    def job(payload: int, session: Session, job: Job) -> None:
        session.add(Note(text=str(payload)))
        if payload == 3:
            session.execute(delete(Job).where(Job.job_id == job.job_id))

    strict(shop, handlers)
    done = {job.payload: job for job in archived(shop)}
    assert done["3"].status == "failure"
    assert "OwnJobRemovedError" in done["3"].error
    assert sorted(notes(shop)) == [str(n) for n in range(JOBS) if n != 3]
    assert len(done) == JOBS


def test_jobs_that_handlers_enqueue_are_announced(shop: Engine) -> None:
    fill(shop, range(3))
    handlers = Handlers()

    @handlers("job")
    def job(payload: int, session: Session) -> None:
        enqueue(session, "other", payload, queue=f"other {payload}")

    with listening(shop.url) as announced:
        strict(shop, handlers)
        assert announced() == [f"other {n}" for n in range(3)]


def test_the_next_claim_fails_after_the_commit(shop: Engine) -> None:
    """The jobs that were committed are reported. The claim is repeated, and fails again."""
    fill(shop, range(3))
    handlers, log = Handlers(), Log()

    @handlers("job")
    def job(payload: int) -> None:
        pass

    with shop.begin() as connection:
        connection.execute(text(POLICY))
    try:
        engine = create_engine(shop.url.set(username="chained"))
        with pytest.raises(DBAPIError, match="division by zero"):
            strict(engine, handlers, log=log)
        engine.dispose()
    finally:
        with shop.begin() as connection:
            connection.execute(text(WITHOUT_POLICY))
    assert [job.payload for job in archived(shop)] == ["0", "1"]
    assert len(log.data("job-finished")) == 2
    assert [(job.payload, job.attempts) for job in queued(shop)] == [("2", 0)]


POLICY = """
    CREATE ROLE chained LOGIN;
    GRANT USAGE ON SCHEMA proletarian TO chained;
    GRANT ALL ON ALL TABLES IN SCHEMA proletarian TO chained;
    ALTER TABLE proletarian.job ENABLE ROW LEVEL SECURITY;
    CREATE POLICY chained ON proletarian.job TO chained
        USING (1 / (CASE WHEN payload = '2' AND EXISTS (
            SELECT FROM proletarian.archived_job WHERE payload = '1'
        ) THEN 0 ELSE 1 END) = 1);
"""
WITHOUT_POLICY = """
    DROP POLICY chained ON proletarian.job;
    ALTER TABLE proletarian.job DISABLE ROW LEVEL SECURITY;
    DROP OWNED BY chained;
    DROP ROLE chained;
"""


def test_stopping_ends_a_chain(shop: Engine) -> None:
    """The job that was claimed last is released, not run."""
    fill(shop, range(100))
    handlers = Handlers()
    workers: list[QueueWorker] = []

    @handlers("job")
    def job(payload: int) -> None:
        if payload == 10:
            workers[0].request_stop()

    worker = QueueWorker(shop, handlers, batch_size=1, batch_window=MINUTE)
    workers.append(worker)
    worker.drain()
    assert len(archived(shop)) == 11
    assert len(queued(shop)) == 89
