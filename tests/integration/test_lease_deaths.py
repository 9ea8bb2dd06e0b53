"""Workers that are frozen, killed, or killed by a job, and the jobs that they have leased."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text, update
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    QueueWorker,
    RunningJob,
    WorkerDiedError,
    enqueue,
    utcnow,
)

from .leased import every_program, program
from .support import (
    SECOND,
    Note,
    archived,
    eventually,
    notes,
    only_archived,
    put,
    queued,
    rows,
    succeed,
)

LEASE = 0.8
SHORT = LEASE * SECOND


def others() -> Handlers:
    """Return what a worker here does with the jobs of the program."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text=str(payload)))

    handlers("send")(lambda payload: None)
    return handlers


# Frozen.


@pytest.mark.parametrize(
    ("kind", "by"),
    [
        ("threads", "lease"),
        ("threads", "transaction"),
        ("psycopg", "lease"),
        ("asyncpg", "lease"),
    ],
)
def test_frozen_in_the_middle(shop: Engine, url: URL, kind: str, by: str, tmp_path: Path) -> None:
    """A worker that was frozen beyond its lease undoes what it did: the effect is there once."""
    put(shop, "write", "once")
    options: Any = {"lease": SHORT} if by == "lease" else {}
    with program(url, kind, tmp_path, "--lease", str(LEASE)) as frozen:
        frozen.until("half way")
        frozen.process.send_signal(signal.SIGSTOP)
        eventually(lambda: QueueWorker(shop, others(), **options).drain() == 1)
        assert notes(shop) == ["once"]
        frozen.go()
        frozen.process.send_signal(signal.SIGCONT)
        frozen.until("lease-lost")
        assert frozen.end() == 0
    assert frozen.told.count("lease-lost") == 1
    assert "job-finished" not in frozen.told
    assert "handle-job-exception" not in frozen.told
    assert notes(shop) == ["once"]
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 2)
    assert queued(shop) == rows(shop, RunningJob) == []


@every_program
def test_frozen_without_a_session(shop: Engine, url: URL, kind: str, tmp_path: Path) -> None:
    """What a frozen worker does outside of the database may be done twice; the job ends once."""
    put(shop, "send", "twice")
    outside: list[Any] = []
    handlers = Handlers()
    handlers("send")(outside.append)
    with program(url, kind, tmp_path, "--lease", str(LEASE)) as frozen:
        frozen.until("half way")
        frozen.process.send_signal(signal.SIGSTOP)
        eventually(lambda: QueueWorker(shop, handlers, lease=SHORT).drain() == 1)
        frozen.go()
        frozen.process.send_signal(signal.SIGCONT)
        frozen.until("lease-lost")
        assert frozen.end() == 0
    assert frozen.told.count("lease-lost") == 1
    assert "job-finished" not in frozen.told
    assert frozen.effects() == {"twice": 1}
    assert outside == ["twice"]
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 2)
    assert queued(shop) == rows(shop, RunningJob) == []


@pytest.mark.parametrize("kind", ["threads", "asyncpg"])
def test_frozen_while_nobody_else_works(shop: Engine, url: URL, kind: str, tmp_path: Path) -> None:
    """A lease that ran out is not lost until somebody else takes the job."""
    put(shop, "write", "once")
    with program(url, kind, tmp_path, "--lease", str(LEASE)) as frozen:
        frozen.until("half way")
        frozen.process.send_signal(signal.SIGSTOP)
        due = text("SELECT process_at < now() FROM proletarian.job")
        with shop.connect() as connection:
            eventually(lambda: connection.rollback() or connection.scalar(due))
        frozen.go()
        frozen.process.send_signal(signal.SIGCONT)
        eventually(lambda: archived(shop))
        assert frozen.end() == 0
    assert "lease-lost" not in frozen.told
    assert frozen.told.count("half way") == 1
    assert notes(shop) == ["once"]
    assert only_archived(shop).attempts == 1


@pytest.mark.parametrize(("attempts", "status"), [(4, "success"), (5, "failure")])
def test_job_that_loses_its_lease_again_and_again(
    engine: Engine, attempts: int, status: str
) -> None:
    """A job that keeps living workers too busy to extend its lease fails in the end."""
    job_id = put(engine, "blocks")
    with engine.connect() as busy:
        busy.execute(text("SET application_name = 'busy'"))
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO proletarian.running (job_id, worker, batch_size, started_at)"
                    " VALUES (:id, 'busy', 1, clock_timestamp())"
                ),
                {"id": job_id},
            )
            lapse = "UPDATE proletarian.job SET attempts = :n, process_at = clock_timestamp()"
            connection.execute(text(lapse), {"n": attempts})
        QueueWorker(engine, succeed, lease=SHORT, retry_strategy={"retries": 1}).drain()
    assert only_archived(engine).status == status
    assert rows(engine, RunningJob) == []
    if status == "failure":
        assert only_archived(engine).attempts == attempts
        assert "attempt 5 of this job lost its lease" in only_archived(engine).error


# Killed.


@every_program
def test_killed_among_others(shop: Engine, url: URL, kind: str, tmp_path: Path) -> None:
    """Jobs of a killed worker come due when the lease ends, and lose no attempt."""
    for n in range(3):
        put(shop, "write", n)
    with program(url, kind, tmp_path, "--lease", str(LEASE)) as killed:
        killed.until("half way", 3)
        killed.process.kill()
    assert {job.attempts for job in queued(shop)} == {1}
    ends = min(job.process_at for job in queued(shop))
    drained = QueueWorker(shop, others(), lease=SHORT).drain()
    assert drained == 0 or utcnow() > ends  # not before the lease ends
    with QueueWorker(shop, others(), lease=SHORT, threads=3):
        eventually(lambda: not queued(shop))
    assert sorted(notes(shop)) == ["0", "1", "2"]
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert rows(shop, RunningJob) == []


@every_program
def test_killed_with_one_job(shop: Engine, url: URL, kind: str, tmp_path: Path) -> None:
    """The one job of a worker that died counts the attempt; its strategy decides what follows."""
    put(shop, "write", "once")
    with program(url, kind, tmp_path, "--lease", str(LEASE)) as killed:
        killed.until("half way")
        killed.process.kill()
    options: Any = {"lease": SHORT, "retry_strategy": {"retries": 1, "delays": [100]}}
    with QueueWorker(shop, others(), **options):
        eventually(lambda: not queued(shop))
    job = only_archived(shop)
    assert (job.status, job.attempts) == ("success", 2)
    assert "died while it ran attempt 1 of this job and no other" in job.error
    assert notes(shop) == ["once"]
    assert rows(shop, RunningJob) == []


def test_killed_without_markers(shop: Engine, url: URL, tmp_path: Path) -> None:
    """Without markers the jobs of a killed worker run once more, each alone, and may succeed."""
    for n in range(3):
        put(shop, "write", n)
    arguments = "--lease", str(LEASE), "--no-markers"
    with program(url, "threads", tmp_path, *arguments) as killed:
        killed.until("half way", 3)
        killed.process.kill()
    options: Any = {"lease": SHORT, "threads": 3, "running_job_model": None}
    with QueueWorker(shop, others(), **options):
        eventually(lambda: not queued(shop))
    assert sorted(notes(shop)) == ["0", "1", "2"]
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 2)}


def test_lapse_without_markers_and_a_strategy_function(engine: Engine) -> None:
    """A function that decides on retries is asked once for each attempt that never ended."""
    handlers = Handlers()
    asked: list[Any] = []
    runs: list[int] = []

    @handlers("job")
    def run(payload: Any, job: Job) -> None:
        runs.append(job.attempts)
        if len(runs) == 1:
            raise ValueError("no luck")

    @handlers.retry_strategy("job")
    def decide(job: Job, error: Exception) -> Any:
        asked.append((job.attempts, type(error)))
        return {"retries": 9}

    def lapse(attempts: int) -> None:
        """Leave the job as a worker does that dies."""
        with engine.begin() as connection:
            died = update(Job).values(attempts=attempts, process_at=utcnow())
            connection.execute(died)

    options: Any = {"lease": SHORT, "running_job_model": None}
    put(engine, "job")
    lapse(2)
    assert QueueWorker(engine, handlers, **options).drain() == 3
    assert asked == [(2, WorkerDiedError), (3, ValueError)]
    assert runs == [3, 4]
    assert only_archived(engine).attempts == 4


# Killed by a job.


@pytest.mark.parametrize(
    ("kind", "innocents", "arguments"),
    [
        ("threads", 20, ()),
        ("asyncpg", 60, ()),
        ("psycopg", 20, ("--name", "the same, always")),
    ],
    ids=["threads", "asyncpg", "psycopg-named"],
)
def test_poison(
    shop: Engine, url: URL, tmp_path: Path, kind: str, *, innocents: int, arguments: tuple[str, ...]
) -> None:
    """A job that kills its worker fails with its last attempt, and its neighbours lose none."""
    with Session(shop) as session, session.begin():
        for n in range(innocents + 1):
            enqueue(session, *(("innocent", n) if n != innocents // 2 else ("poison", None)))
    deaths = run_until_empty(
        url, kind, tmp_path, "--places", "22", "--poison-retries", "1", *arguments
    )
    # Among 22 or fewer, among an eighth of these, perhaps once more, then alone: two attempts.
    assert 3 <= deaths <= 5
    jobs = archived(shop)
    (poison,) = (job for job in jobs if job.job_type == "poison")
    assert (poison.status, poison.attempts) == ("failure", 2)
    assert "WorkerDiedError" in poison.error
    assert "attempt 2 of this job" in poison.error
    assert {(job.status, job.attempts) for job in jobs if job is not poison} == {("success", 1)}
    assert len(jobs) == innocents + 1
    assert Counter(notes(shop)) == Counter(
        str(n) for n in range(innocents + 1) if n != innocents // 2
    )
    assert rows(shop, RunningJob) == []


@pytest.mark.parametrize("retries", [None, 1])
def test_poison_without_markers(
    shop: Engine, url: URL, retries: int | None, tmp_path: Path
) -> None:
    """Without markers a job that kills its worker fails too, and takes nobody with it."""
    with Session(shop) as session, session.begin():
        for n in range(10):
            enqueue(session, *(("innocent", n) if n != 5 else ("poison", None)))
    arguments = [] if retries is None else ["--poison-retries", str(retries)]
    deaths = run_until_empty(url, "threads", tmp_path, "--places", "4", "--no-markers", *arguments)
    allowed = 1 + (retries or 0)
    assert deaths == allowed + 1  # the last time alone
    jobs = archived(shop)
    (poison,) = (job for job in jobs if job.job_type == "poison")
    assert (poison.status, poison.attempts) == ("failure", allowed + 1)
    assert f"attempt {allowed + 1} of this job never ended" in poison.error
    assert {job.status for job in jobs if job is not poison} == {"success"}
    assert len(notes(shop)) == len(set(notes(shop))) == 9


def run_until_empty(url: URL, kind: str, directory: Path, *arguments: str) -> int:
    """Start a worker, and another whenever one dies, until no job is left; return the deaths."""
    deaths = 0
    while True:
        with program(
            url, kind, directory, "--lease", str(1.5 * LEASE), "--until-empty", *arguments
        ) as worker:
            if (code := worker.wait()) == 0:
                return deaths
            assert code == -signal.SIGKILL, worker.told
        deaths += 1
        assert deaths < 10, "it crashes workers for ever"
