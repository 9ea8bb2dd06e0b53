"""The writes of a handler are committed with its job or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers

from .kinds import Kind, either_sort_of_handler
from .support import (
    FAST,
    MINUTE,
    Note,
    archived,
    enqueue_batch,
    eventually,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    shared_transactions,
    writers,
)


@either_sort_of_handler
@pytest.mark.parametrize("retry", [None, {"retries": 1, "delays": [60_000]}])
def test_a_failing_job_undoes_only_its_own_writes(shop: Engine, kind: Kind, retry: Any) -> None:
    """The other jobs of its batch are committed."""
    enqueue_batch(
        shop, [{"text": f"note {n}"} | ({"fail": "no"} if n == 4 else {}) for n in range(10)]
    )
    kind.run_batch(shop, writers(), retry_strategy=retry)
    expected = [f"note {n}" for n in range(10) if n != 4]
    assert [note for note in notes(shop) if note != "warm"] == expected
    assert shared_transactions(shop, expected) == (len(expected) if kind.leased else 1)
    archived_jobs = archived(shop)
    assert Counter(job.status for job in archived_jobs)["success"] == FAST + 9
    if retry is None:
        (failed,) = [job for job in archived_jobs if job.status == "failure"]
        assert failed.error.endswith("ValueError: no")
    else:
        assert only_queued(shop).attempts == 1


@either_sort_of_handler
def test_writes_and_completion_are_in_one_transaction(shop: Engine, kind: Kind) -> None:
    put(shop, "write", {"text": "written"})
    kind.run_all(shop, writers())
    (note,) = rows(shop, Note)
    with shop.connect() as connection:
        completed_by = connection.scalar(text("SELECT xmin::text FROM proletarian.archived_job"))
    assert note.transaction == int(completed_by)


@either_sort_of_handler
def test_a_database_error_fails_only_its_own_job(shop: Engine, kind: Kind) -> None:
    handlers = writers()

    @handlers("sql")
    def sql(payload: Any, session: Session) -> None:
        session.add(Note(text="lost"))
        session.execute(text("SELECT 1/0"))

    enqueue_batch(shop, [{"text": "kept"}])
    put(shop, "sql")
    kind.run_batch(shop, handlers)
    assert set(notes(shop)) == {"warm", "kept"}
    assert Counter(job.status for job in archived(shop)) == {"success": FAST + 1, "failure": 1}


@either_sort_of_handler
def test_a_suppressed_database_error_fails_the_job(shop: Engine, kind: Kind) -> None:
    """The handler's writes were undone by the error, so its job is not a success."""
    handlers = Handlers()

    @handlers("sql")
    def sql(payload: Any, session: Session) -> None:
        session.add(Note(text="lost"))
        session.flush()
        with suppress(Exception):
            session.execute(text("SELECT 1/0"))

    put(shop, "sql")
    kind.run_all(shop, handlers)
    assert notes(shop) == []
    assert only_archived(shop).status == "failure"


@either_sort_of_handler
def test_a_handler_may_use_savepoints(shop: Engine, kind: Kind) -> None:
    """A handler may undo a part of its work with a SAVEPOINT."""
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
    kind.run_all(shop, handlers)
    assert only_archived(shop).status == "success"
    assert notes(shop) == ["kept", "kept too"]


def commit_in_savepoint(session: Session) -> None:
    """Commit inside a SAVEPOINT."""
    session.begin_nested()
    session.commit()


def write_after_rollback(session: Session) -> None:
    """Roll back and write again."""
    session.rollback()
    session.add(Note(text="after"))
    session.flush()


@pytest.mark.parametrize(
    "end",
    [Session.commit, Session.rollback, Session.close, commit_in_savepoint, write_after_rollback],
)
@pytest.mark.parametrize("used", [True, False])
def test_a_handler_that_ends_the_transaction_fails(
    shop: Engine, kind: Kind, end: Callable[[Session], None], used: bool
) -> None:
    """A commit, rollback or close of the session fails the job and undoes its writes."""
    handlers = writers()

    @handlers("ends")
    def ends(payload: Any, session: Session) -> None:
        if used:
            session.add(Note(text="lost"))
            session.flush()
        end(session)

    enqueue_batch(shop, [{"text": "kept"}])
    put(shop, "ends")
    kind.run_batch(shop, handlers)
    assert set(notes(shop)) == {"warm", "kept"}
    (failed,) = [job for job in archived(shop) if job.job_type == "ends"]
    assert failed.status == "failure"
    assert "the handler ended the transaction of the session it was handed" in failed.error
    assert all(job.status == "success" for job in archived(shop) if job.job_type != "ends")


@either_sort_of_handler
def test_a_failed_commit_fails_the_job(shop: Engine, kind: Kind) -> None:
    """The job is retried by its retry strategy, then archived."""
    with Session(shop) as session, session.begin():
        session.add(Note(text="first", code=1))
    put(shop, "write", {"text": "second", "code": 1})
    failures: list[Any] = []
    kind.run_all(
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
    """Enqueue a batch whose commit fails because of one of its jobs."""
    with Session(shop) as session, session.begin():
        session.add(Note(text="first", code=1))
    enqueue_batch(
        shop, [{"text": "a"}, {"text": "b"}, {"text": "broken", "code": 1}, {"text": "c"}]
    )
    return shop


@either_sort_of_handler
def test_a_failed_commit_in_a_batch_fails_only_the_job_that_caused_it(
    broken_batch: Engine, kind: Kind
) -> None:
    """The writes of the other jobs are committed once."""
    with kind.worker(broken_batch, writers(), batch_window=10 * MINUTE):
        eventually(lambda: not queued(broken_batch))
    check_commit_failure_in_a_batch(broken_batch)


def test_drain_completes_a_batch_whose_commit_failed(broken_batch: Engine, kind: Kind) -> None:
    """``drain`` also runs the jobs of a batch that had to be split."""
    kind.run_batch(broken_batch, writers())
    check_commit_failure_in_a_batch(broken_batch)


def test_a_failed_commit_in_a_batch_is_not_a_polling_error(
    broken_batch: Engine, kind: Kind
) -> None:
    """The failed commit of a job does not stop the worker."""
    stopped: list[BaseException] = []
    worker = kind.worker(
        broken_batch,
        writers(),
        batch_window=10 * MINUTE,
        on_polling_error=lambda error: stopped.append(error) or True,
    )
    with worker:
        eventually(lambda: not queued(broken_batch) or worker.stopping)
    assert stopped == []
    check_commit_failure_in_a_batch(broken_batch)
