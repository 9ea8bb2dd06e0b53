"""Batch handlers under cancellation, timeouts, shutdown, lost leases, deadlocks and kills."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import URL, Engine, delete, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    BatchFailed,
    Handlers,
    Job,
    RunningJob,
    ShutdownTimeoutError,
    enqueue,
    enqueue_many,
)
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker, cancel
from tests.forked import forked

from . import batch_program
from .kinds import KINDS, Kind, leases, only
from .loops import all_is_due_again, in_a_loop, until
from .support import (
    SECOND,
    Log,
    Note,
    archived,
    eventually,
    notes,
    queued,
    rows,
)

WARM = 40
"""So many jobs make a worker call a batch handler with as many jobs as its size."""


def put_all(engine: Engine, payloads: Any) -> list[Any]:
    """Enqueue "write" jobs in one transaction, and return their ids."""
    with Session(engine) as session, session.begin():
        return [enqueue(session, "write", payload).job_id for payload in payloads]


class Waiting:
    """An ``async`` batch handler that waits in a call that has a payload of 0 or more."""

    def __init__(self, **options: Any) -> None:
        self.handlers = Handlers()
        self.calls: list[list[int]] = []
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.handlers.batch("write", size=10, **options)(self.write)

    async def write(self, payloads: list[int], session: AsyncSession) -> None:
        self.calls.append(payloads)
        await session.execute(insert(Note), [{"text": str(payload)} for payload in payloads])
        if max(payloads) >= 0:
            self.started.set()
            await self.release.wait()


@in_a_loop
async def test_a_cancelled_job_ends_the_call_and_the_others_run_again(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    waiting = Waiting(retry={"retries": 3})
    put_all(shop, [-1] * WARM)
    async with AsyncQueueWorker(loop_engine, waiting.handlers, concurrency=1, **held) as worker:
        await until(lambda: worker._core.pool.listener.active)
        await until(lambda: len(archived(shop)) == WARM)
        waiting.calls.clear()
        ids = put_all(shop, range(5))
        await waiting.started.wait()
        async with AsyncSession(loop_engine) as session, session.begin():
            await cancel(session, ids[3])
        await until(lambda: len(waiting.calls) == 2)
        waiting.release.set()
        await until(lambda: not queued(shop))
    assert [sorted(call) for call in waiting.calls] == [[0, 1, 2, 3, 4], [0, 1, 2, 4]]
    assert {job.payload: str(job.status) for job in archived(shop)[WARM:]} == {
        **dict.fromkeys("0124", "success"),
        "3": "cancelled",
    }
    assert {job.attempts for job in archived(shop)} == {1}
    assert sorted(notes(shop)[WARM:]) == ["0", "1", "2", "4"]
    assert rows(shop, RunningJob) == []


@in_a_loop
async def test_a_timeout_is_that_of_a_call(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Calls that take too long together are repeated in halves; only one job is too slow alone."""
    handlers = Handlers()

    @handlers.batch("write", size=8, timeout=SECOND / 2)
    async def write(payloads: list[int], session: AsyncSession) -> None:
        await session.execute(insert(Note), [{"text": str(payload)} for payload in payloads])
        slow = 60 if 5 in payloads else 0
        await session.execute(select(text("pg_sleep(:seconds)")), {"seconds": slow})

    put_all(shop, range(8))
    worker = AsyncQueueWorker(loop_engine, handlers, concurrency=1, **held)
    await worker.drain()
    failed = [job for job in archived(shop) if job.status == "failure"]
    assert [job.payload for job in failed] == ["5"]
    assert "JobTimeoutError: the handler ran longer than its timeout of 0.5 s" in failed[0].error
    assert {job.attempts for job in archived(shop)} == {1}
    assert sorted(notes(shop)) == [str(n) for n in range(8) if n != 5]
    assert rows(shop, RunningJob) == []


@in_a_loop
async def test_jobs_of_a_cancelled_call_are_due_again_at_shutdown(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """No attempt is counted."""
    waiting = Waiting()
    put_all(shop, [-1] * WARM)
    options = {"concurrency": 1, "shutdown_timeout": SECOND / 10, **held}
    log = Log()
    async with AsyncQueueWorker(loop_engine, waiting.handlers, log=log, **options):
        await until(lambda: len(archived(shop)) == WARM)
        put_all(shop, range(5))
        await waiting.started.wait()
    assert len(waiting.calls[-1]) == 5
    assert all_is_due_again(shop)
    assert len(queued(shop)) == 5
    assert log.events().count("job-interrupted") == 5
    assert len(notes(shop)) == WARM


@only(*KINDS)
def test_jobs_of_a_call_that_cannot_be_cancelled_are_due_again_at_shutdown(
    shop: Engine, kind: Kind
) -> None:
    handlers = Handlers()
    started, release = Event(), Event()

    @handlers.batch("write", size=10)
    def write(payloads: list[int], session: Session) -> None:
        session.execute(insert(Note), [{"text": str(payload)} for payload in payloads])
        if max(payloads) >= 0:
            started.set()
            assert release.wait(25)

    put_all(shop, [-1] * WARM)
    worker = kind.worker(shop, handlers, shutdown_timeout=SECOND / 10)
    worker.start()
    try:
        eventually(lambda: len(archived(shop)) == WARM)
        put_all(shop, range(5))
        assert started.wait(25)
        with pytest.raises(ShutdownTimeoutError, match="1"):
            worker.stop()
        eventually(lambda: all_is_due_again(shop))
    finally:
        release.set()
    assert len(notes(shop)) == WARM
    eventually(lambda: kind.run_all(shop, handlers) or True)
    eventually(lambda: not queued(shop))
    assert Counter(notes(shop)) == {"-1": WARM, **{str(n): 1 for n in range(5)}}


@leases
@pytest.mark.parametrize("fails", [False, True])
def test_a_lost_lease_of_one_job_undoes_the_call(shop: Engine, kind: Kind, fails: bool) -> None:
    """The other jobs run again, and what the call wrote is there once. No attempt is counted."""
    handlers, log = Handlers(), Log()
    calls: list[list[int]] = []
    stolen = Event()

    def steal() -> None:
        """Take the lease of a job as another worker does when it has expired."""
        with shop.begin() as connection:
            lost = Job.payload == "3"
            connection.execute(update(Job).where(lost).values(lease_id=Job.job_id))
        stolen.set()

    @handlers.batch("write", size=10)
    def write(payloads: list[int], session: Session) -> None:
        calls.append(payloads)
        session.execute(insert(Note), [{"text": str(payload)} for payload in payloads])
        if 3 in payloads and not stolen.is_set():
            thread = Thread(target=steal)
            thread.start()
            thread.join()
        if fails and 1 in payloads:
            session.execute(delete(Note).where(Note.text == "1"))
            raise BatchFailed({payloads.index(1): ValueError("one")})

    put_all(shop, [-1])
    with kind.worker(shop, handlers, log=log):
        eventually(lambda: len(archived(shop)) == 1)
        put_all(shop, range(5))
        eventually(lambda: len(archived(shop)) == 5)
    assert [sorted(call) for call in calls[1:]] == [[0, 1, 2, 3, 4], [0, 1, 2, 4]]
    assert {job.payload: str(job.status) for job in archived(shop)[1:]} == {
        **dict.fromkeys("024", "success"),
        "1": "failure" if fails else "success",
    }
    assert {job.attempts for job in archived(shop)} == {1}
    assert sorted(notes(shop)[1:]) == [n for n in "0124" if not (fails and n == "1")]
    assert [job.payload for job in queued(shop)] == ["3"]
    assert log.events().count("lease-lost") == 1


@leases
def test_the_leases_of_all_jobs_of_a_call_are_extended(shop: Engine, kind: Kind) -> None:
    handlers = Handlers()
    calls: list[list[int]] = []

    @handlers.batch("write", size=10)
    def write(payloads: list[int], session: Session) -> None:
        calls.append(payloads)
        if max(payloads) >= 0:
            assert not Event().wait(2.5)
        session.execute(insert(Note), [{"text": str(payload)} for payload in payloads])

    put_all(shop, [-1])
    with kind.worker(shop, handlers, lease=SECOND):
        eventually(lambda: len(archived(shop)) == 1)
        put_all(shop, range(10))
        eventually(lambda: len(calls) == 2)
        with kind.worker(shop, handlers, lease=SECOND):
            eventually(lambda: not queued(shop))
    assert len(calls) == 2
    assert {job.attempts for job in archived(shop)} == {1}


@only(*KINDS)
@pytest.mark.parametrize("what", ["ends its transaction", "loses its connection"])
def test_a_job_that_breaks_the_transaction(shop: Engine, kind: Kind, what: str) -> None:
    """It fails, and the other jobs of its call do not."""
    handlers = Handlers()

    @handlers.batch("write", size=16)
    def write(payloads: list[int], session: Session) -> None:
        session.execute(insert(Note), [{"text": str(payload)} for payload in payloads])
        if 5 in payloads:
            if what == "ends its transaction":
                session.rollback()
            else:
                session.connection().invalidate()
                session.execute(select(1))

    put_all(shop, range(-WARM, 0))
    with kind.worker(shop, handlers, polling_interval=SECOND / 5):
        eventually(lambda: len(archived(shop)) == WARM)
        put_all(shop, range(16))
        eventually(lambda: not queued(shop), seconds=60)
    failed = [job.payload for job in archived(shop) if job.status == "failure"]
    assert failed == ["5"]
    assert Counter(notes(shop)) == {str(n): 1 for n in range(-WARM, 16) if n != 5}
    assert rows(shop, RunningJob) == []


@only(*KINDS)
def test_several_workers_share_the_jobs(shop: Engine, kind: Kind) -> None:
    """Each job runs once, some of them fail, and each effect is there once."""
    handlers = Handlers()

    @handlers.batch("write", size=25)
    def write(payloads: list[int], session: Session) -> None:
        session.execute(insert(Note), [{"text": str(n)} for n in payloads if n % 10])
        if 77 in payloads:
            raise ValueError(77)
        raise BatchFailed({i: ValueError(n) for i, n in enumerate(payloads) if n % 10 == 0})

    @handlers("single")
    def single(payload: int, session: Session) -> None:
        session.add(Note(text=f"single {payload}"))

    with Session(shop) as session, session.begin():
        for n in range(1000):
            enqueue_many(session, [("write", n), *([("single", n)] if n % 10 == 0 else [])])
    workers = [kind.worker(shop, handlers, threads=2) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        eventually(lambda: not queued(shop), seconds=60)
    finally:
        for worker in workers:
            worker.stop()
    failed = {job.payload for job in archived(shop) if job.status == "failure"}
    assert failed == {"77", *(str(n) for n in range(0, 1000, 10))}
    assert len(archived(shop)) == 1100
    assert {job.attempts for job in archived(shop)} == {1}
    expected = {str(n): 1 for n in range(1000) if n % 10 and n != 77}
    assert Counter(notes(shop)) == {**expected, **{f"single {n}": 1 for n in range(0, 1000, 10)}}
    assert rows(shop, RunningJob) == []


def run_program(url: URL, *arguments: str) -> int:
    """Run a worker process until it ends; return its exit code."""
    target = url.render_as_string(hide_password=False)
    with forked(batch_program.main, target, *arguments) as process:
        return process.wait(60)


every_worker = pytest.mark.parametrize("program", ["threads", "psycopg", "asyncpg"])
every_mode = pytest.mark.parametrize("mode", ["transaction", "lease"])


@every_worker
@every_mode
def test_a_killed_worker_loses_no_job_and_doubles_no_effect(
    shop: Engine, url: URL, program: str, mode: str
) -> None:
    put_all(shop, range(200))
    for when in ("30", "60", "80"):
        assert run_program(url, program, mode, when) == -signal.SIGKILL
    assert run_program(url, program, mode, "never") == 0
    assert Counter(notes(shop)) == {str(n): 1 for n in range(200)}
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert len(archived(shop)) == 200
    assert rows(shop, RunningJob) == []


@every_worker
@every_mode
def test_a_job_that_kills_its_workers_is_found(
    shop: Engine, url: URL, program: str, mode: str
) -> None:
    """It fails by the poison rule after few crashes, and no other job fails."""
    put_all(shop, [*range(60), "poison", *range(60, 100)])
    crashes = 0
    while run_program(url, program, mode, "never"):
        crashes += 1
        assert crashes < 20
    failed = [job for job in archived(shop) if job.status == "failure"]
    assert [job.payload for job in failed] == ['"poison"']
    assert failed[0].deaths == 3
    assert Counter(notes(shop)) == {str(n): 1 for n in range(100)}
    assert {job.attempts for job in archived(shop)} == {1}
    assert rows(shop, RunningJob) == []
