"""Unique jobs while other transactions and workers use the same key, on every database."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Lock
from time import sleep
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Enqueued, Job, JobExistsError, enqueue, enqueue_unique
from sqlalchemy_proletarian.database.error_codes import is_conflict
from tests.integration.support import (
    MINUTE,
    archived,
    eventually,
    fail,
    only_queued,
    put,
    queued,
)

from .places import Note, Place, only

PROMPT = timedelta(seconds=0.05)


def put_unique(engine: Engine, payload: Any = None, **options: Any) -> Enqueued[Job]:
    """Enqueue and commit a job with the key "k"."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        return enqueue_unique(session, "job", payload, unique_key="k", **options)


class Gate:
    """A handler that starts, and goes on when it may."""

    def __init__(self) -> None:
        self.started, self.may_end = Event(), Event()
        self.payloads: list[Any] = []

    def __call__(self, _job_type: str, payload: Any) -> None:
        self.payloads.append(payload)
        self.started.set()
        assert self.may_end.wait(25)


@contextmanager
def running(place: Place, engine: Engine) -> Iterator[Gate]:
    """Yield while a worker runs; at the end, its handlers may end."""
    gate = Gate()
    worker = place.worker(engine, gate, polling_interval=PROMPT)
    worker.start()
    try:
        yield gate
    finally:
        gate.may_end.set()
        worker.stop()
    assert {job.status for job in archived(engine)} == {"success"}  # no handler waited too long


def test_a_waiting_job_is_replaced(place: Place, engine: Engine) -> None:
    """It keeps its id, and gets the other values; it starts from its first attempt."""
    first = put_unique(engine, 1, priority=3)
    worker = place.worker(engine, fail, retry_strategy={"retries": 3, "delays": [60_000]})
    worker.drain()
    assert only_queued(engine).attempts == 1
    with Session(engine) as session, session.begin():
        kept = session.get_one(Job, first.job.job_id)
        assert kept.payload == "1"
        second = enqueue_unique(
            session,
            "other",
            2,
            unique_key="k",
            on_conflict="replace",
            priority=1,
            process_in=MINUTE,
        )
        assert (second.created, second.replaced) == (False, True)
        assert second.job is kept
        assert kept.payload == "2"
    job = only_queued(engine)
    assert job.job_id == first.job.job_id
    assert (job.job_type, job.payload, job.priority) == ("other", "2", 1)
    assert (job.attempts, job.error, job.unique_key) == (0, None, "k")
    assert job.process_at - job.enqueued_at == MINUTE
    with engine.begin() as connection:
        third = enqueue_unique(connection, "job", 3, unique_key="k", on_conflict="replace")
    assert (third.job, third.replaced) == (first.job.job_id, True)
    assert only_queued(engine).payload == "3"
    assert put_unique(engine, 4, queue="other", on_conflict="replace").created


def test_a_refused_job_does_not_break_the_transaction(place: Place, engine: Engine) -> None:
    """The error has the id of the other job, and the caller goes on."""
    first = put_unique(engine, on_conflict="raise")
    assert first.created
    with Session(engine) as session, session.begin():
        session.add(Note(text="before"))
        with pytest.raises(JobExistsError, match="in queue 'default' has the unique key 'k'") as no:
            enqueue_unique(session, "job", unique_key="k", on_conflict="raise")
        assert no.value.job_id == first.job.job_id
        session.add(Note(text="after"))
    with engine.begin() as connection:
        with pytest.raises(JobExistsError):
            enqueue_unique(connection, "job", unique_key="k", on_conflict="raise")
        enqueue(connection, "job")
    assert len(queued(engine)) == 2
    with Session(engine) as session:
        assert session.scalars(select(Note.text)).all() == ["before", "after"]


def test_the_key_of_a_running_job(place: Place, engine: Engine) -> None:
    """It is taken, and the job is not replaced; no call waits for the handler."""
    first = put_unique(engine, 1)
    with running(place, engine) as gate:
        assert gate.started.wait(25)
        for on_conflict in ("ignore", "replace"):
            result = put_unique(engine, 2, on_conflict=on_conflict)
            assert (result.created, result.replaced) == (False, False)
            assert result.job.job_id == first.job.job_id
        with pytest.raises(JobExistsError):
            put_unique(engine, 2, on_conflict="raise")
        assert not gate.may_end.is_set()
        gate.may_end.set()
        eventually(lambda: archived(engine))
        assert put_unique(engine, 3).created
    assert gate.payloads[0] == 1


@pytest.mark.parametrize("on_conflict", ["ignore", "replace", "raise"])
def test_a_key_that_is_taken_while_the_job_waits(
    place: Place, engine: Engine, on_conflict: Any
) -> None:
    """It is free as soon as a worker has started the job."""
    put_unique(engine, 1, unique_while="queued")
    assert not put_unique(engine, 2, unique_while="queued").created
    with running(place, engine) as gate:
        assert gate.started.wait(25)
        second = put_unique(engine, 3, unique_while="queued", on_conflict=on_conflict)
        assert second.created
        assert not gate.may_end.is_set()
        assert second.job.unique_key == "k"
        gate.may_end.set()
        eventually(lambda: len(archived(engine)) == 2)
    assert gate.payloads == [1, 3]


def test_a_retried_job_has_no_key(place: Place, engine: Engine) -> None:
    """A job that was enqueued with its key in the meantime runs as well."""
    attempts: list[Any] = []

    def handle(job_type: str, payload: Any) -> None:
        attempts.append(payload)
        if attempts == [1]:
            assert put_unique(engine, 2, unique_while="queued").created
            raise ValueError("no")

    put_unique(engine, 1, unique_while="queued")
    worker = place.worker(engine, handle, retry_strategy={"retries": 1, "delays": [0]})
    worker.drain()
    worker.drain()
    assert sorted(attempts) == [1, 1, 2]
    assert {job.status for job in archived(engine)} == {"success"}
    assert queued(engine) == []


@pytest.mark.parametrize("on_conflict", ["ignore", "replace"])
def test_a_job_that_is_kept_runs_after_the_commit(
    place: Place, engine: Engine, on_conflict: Any
) -> None:
    """Its handler sees what the transaction that kept it has committed; other jobs are run."""
    seen: list[int] = []

    def handle(job_type: str, payload: Any) -> None:
        if job_type == "job":
            with Session(engine) as session:
                seen.append(session.scalar(select(func.count()).select_from(Note)) or 0)

    put_unique(engine, unique_while="queued")
    worker = place.worker(engine, handle, polling_interval=PROMPT)
    with Session(engine) as session:
        session.add(Note(text="new"))
        kept = enqueue_unique(
            session, "job", unique_key="k", unique_while="queued", on_conflict=on_conflict
        )
        assert not kept.created
        worker.start()
        if place.server != "sqlite":
            put(engine, "other")
            eventually(lambda: [job.job_type for job in archived(engine)] == ["other"])
        sleep(0.3)
        assert seen == []
        session.commit()
    try:
        eventually(lambda: seen == [1])
    finally:
        worker.stop()


@pytest.mark.parametrize("on_conflict", ["ignore", "replace", "raise"])
@pytest.mark.parametrize("commits", [True, False])
@only(lambda place: place.server != "sqlite")
def test_an_open_transaction_that_has_taken_the_key(
    place: Place, engine: Engine, on_conflict: Any, commits: bool
) -> None:
    """Another call waits for its end; after a rollback, the key is free."""
    with Session(engine) as session, ThreadPoolExecutor(1) as pool:
        enqueue_unique(session, "job", 1, unique_key="k")
        other = pool.submit(put_unique, engine, 2, on_conflict=on_conflict)
        sleep(0.2)
        assert not other.done()
        session.commit() if commits else session.rollback()
        if commits and on_conflict == "raise":
            assert isinstance(other.exception(25), JobExistsError)
        else:
            result = other.result(25)
            assert result.created is not commits
            assert result.replaced is (commits and on_conflict == "replace")
    wins = not commits or on_conflict == "replace"
    assert only_queued(engine).payload == ("2" if wins else "1")


@pytest.mark.parametrize("unique_while", ["queued", "running"])
@pytest.mark.parametrize("on_conflict", ["ignore", "replace", "raise"])
def test_many_calls_at_once(
    place: Place, engine: Engine, on_conflict: Any, unique_while: Any
) -> None:
    """One of them creates the job; none fails in another way than it was asked to.

    SQLite may be busy. InnoDB may report a deadlock for INSERTs of a key that was freed recently.
    """

    def call(n: int) -> str:
        while True:
            try:
                result = put_unique(engine, n, on_conflict=on_conflict, unique_while=unique_while)
            except JobExistsError:
                return "refused"
            except DBAPIError as error:
                if place.server == "postgres" or not is_conflict(error):
                    raise
            else:
                return "created" if result.created else "kept"

    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(call, range(40)))
    assert results.count("created") == 1
    assert results.count("refused") == (39 if on_conflict == "raise" else 0)
    assert len(queued(engine)) == 1


@pytest.mark.parametrize("on_conflict", ["ignore", "replace"])
def test_no_change_is_missed(place: Place, engine: Engine, on_conflict: Any) -> None:
    """Each transaction changes data and enqueues the job that reads all data: a late run saw all.

    Workers run the job at the same time. Transactions that SQLite or InnoDB refuses are repeated.
    """
    lock, seen, per_thread, threads = Lock(), [0], 15, 3

    def handle(job_type: str, payload: Any) -> None:
        with Session(engine) as session:
            count = session.scalar(select(func.count()).select_from(Note)) or 0
        sleep(0.005)
        with lock:
            seen.append(count)

    def change(thread: int) -> None:
        for n in range(per_thread):
            while True:
                try:
                    with Session(engine) as session, session.begin():
                        session.add(Note(text=f"{thread} {n}"))
                        session.flush()
                        enqueue_unique(
                            session,
                            "job",
                            n,
                            unique_key="k",
                            unique_while="queued",
                            on_conflict=on_conflict,
                        )
                        sleep(0.002)
                    break
                except DBAPIError as error:
                    if place.server == "postgres" or not is_conflict(error):
                        raise
                    sleep(0.001)

    worker = place.worker(engine, handle, threads=2, polling_interval=PROMPT)
    worker.start()
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(change, range(threads)))
        eventually(lambda: queued(engine) == [])
    finally:
        worker.stop()
    assert max(seen) == per_thread * threads
    assert {job.status for job in archived(engine)} == {"success"}
