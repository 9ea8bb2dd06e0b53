"""Leased jobs of workers that freeze, are killed, or crash because of a job."""

from __future__ import annotations

import signal
from collections import Counter
from datetime import timedelta
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
    enqueue,
    utcnow,
    uuid7,
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


def handlers_here() -> Handlers:
    """Return the handlers of a worker in the test process for the jobs of the program."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text=str(payload)))

    handlers("send")(lambda payload: None)
    return handlers


def leave_lease(
    engine: Engine, job_id: Any, *, deaths: int = 0, worker: str = "gone", batch_size: int = 1
) -> None:
    """Put a job in the state in which a crashed or frozen worker leaves it: its lease expired."""
    with Session(engine) as session, session.begin():
        expired = {"process_at": utcnow(), "lease_id": uuid7(), "deaths": deaths}
        session.execute(update(Job).where(Job.job_id == job_id).values(expired))
        session.add(
            RunningJob(job_id=job_id, worker=worker, batch_size=batch_size, started_at=utcnow())
        )


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
def test_a_worker_frozen_beyond_its_lease_rolls_back(
    shop: Engine, url: URL, kind: str, by: str, tmp_path: Path
) -> None:
    """A worker frozen for longer than its lease rolls back; the job takes effect once."""
    put(shop, "write", "once")
    options: Any = {"lease": SHORT} if by == "lease" else {}
    with program(url, kind, tmp_path, "--lease", str(LEASE)) as frozen:
        frozen.until("half way")
        frozen.process.send_signal(signal.SIGSTOP)
        eventually(lambda: QueueWorker(shop, handlers_here(), **options).drain() == 1)
        assert notes(shop) == ["once"]
        frozen.go()
        frozen.process.send_signal(signal.SIGCONT)
        frozen.until("lease-lost")
        assert frozen.end() == 0
    assert frozen.told.count("lease-lost") == 1
    assert "job-finished" not in frozen.told
    assert "handle-job-exception" not in frozen.told
    assert notes(shop) == ["once"]
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
    assert queued(shop) == rows(shop, RunningJob) == []


@every_program
def test_a_frozen_worker_archives_no_job_twice(
    shop: Engine, url: URL, kind: str, tmp_path: Path
) -> None:
    """Effects outside the database can happen twice, but the job is archived once."""
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
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
    assert queued(shop) == rows(shop, RunningJob) == []


@pytest.mark.parametrize("kind", ["threads", "asyncpg"])
def test_an_expired_lease_is_kept_without_other_workers(
    shop: Engine, url: URL, kind: str, tmp_path: Path
) -> None:
    """An expired lease stays valid until another worker claims the job."""
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


@pytest.mark.parametrize(("deaths", "status"), [(1, "success"), (2, "failure")])
@pytest.mark.parametrize("by", ["lease", "transaction"])
def test_a_job_that_repeatedly_loses_its_lease_fails(
    engine: Engine, deaths: int, status: str, by: str
) -> None:
    """A job that repeatedly keeps live workers from extending its lease finally fails."""
    job_id = put(engine, "blocks")
    with engine.connect() as busy:
        busy.execute(text("SET application_name = 'busy'"))
        leave_lease(engine, job_id, deaths=deaths, worker="busy")
        options: Any = {"lease": SHORT} if by == "lease" else {}
        QueueWorker(engine, succeed, **options, retry_strategy={"retries": 9}).drain()
    job = only_archived(engine)
    assert (job.status, job.attempts, job.deaths) == (status, 1, deaths + 1)
    assert rows(engine, RunningJob) == []
    if status == "failure":
        assert "3 workers in a row died or lost the lease" in job.error
        assert "attempt 1 of this job; the last one (busy) ran no other job" in job.error


# Killed.


@every_program
def test_jobs_of_a_killed_worker_run_again(
    shop: Engine, url: URL, kind: str, tmp_path: Path
) -> None:
    """The jobs of a killed worker become due when the lease expires; no attempt is counted."""
    for n in range(3):
        put(shop, "write", n)
    with program(url, kind, tmp_path, "--lease", str(LEASE)) as killed:
        killed.until("half way", 3)
        killed.process.kill()
    assert {job.attempts for job in queued(shop)} == {0}
    ends = min(job.process_at for job in queued(shop))
    drained = QueueWorker(shop, handlers_here(), lease=SHORT).drain()
    assert drained == 0 or utcnow() > ends  # not before the lease ends
    with QueueWorker(shop, handlers_here(), lease=SHORT, threads=3):
        eventually(lambda: not queued(shop))
    assert sorted(notes(shop)) == ["0", "1", "2"]
    assert {(job.status, job.attempts) for job in archived(shop)} == {("success", 1)}
    assert rows(shop, RunningJob) == []


@every_program
def test_the_only_job_of_a_killed_worker_runs_again(
    shop: Engine, url: URL, kind: str, tmp_path: Path
) -> None:
    """The only job of a killed worker runs again; no attempt is counted."""
    put(shop, "write", "once")
    with program(url, kind, tmp_path, "--lease", str(LEASE)) as killed:
        killed.until("half way")
        killed.process.kill()
    with QueueWorker(shop, handlers_here(), lease=SHORT):
        eventually(lambda: not queued(shop))
    job = only_archived(shop)
    assert (job.status, job.attempts, job.deaths, job.error) == ("success", 1, 1, None)
    assert notes(shop) == ["once"]
    assert rows(shop, RunningJob) == []


def test_jobs_of_a_killed_worker_run_again_without_markers(
    shop: Engine, url: URL, tmp_path: Path
) -> None:
    """Without markers, the jobs of a killed worker run again; no attempt is counted."""
    for n in range(3):
        put(shop, "write", n)
    arguments = "--lease", str(LEASE), "--no-markers"
    with program(url, "threads", tmp_path, *arguments) as killed:
        killed.until("half way", 3)
        killed.process.kill()
    options: Any = {"lease": SHORT, "threads": 3, "running_job_model": None}
    with QueueWorker(shop, handlers_here(), **options):
        eventually(lambda: not queued(shop))
    assert sorted(notes(shop)) == ["0", "1", "2"]
    ended = {(job.status, job.attempts, job.deaths) for job in archived(shop)}
    assert ended == {("success", 1, 1)}


@pytest.mark.parametrize("markers", [True, False])
def test_retry_functions_are_not_called_for_a_crash(engine: Engine, markers: bool) -> None:
    """Retry functions are called only for failures; a completed run resets ``deaths`` to 0."""
    handlers = Handlers()
    called: list[Any] = []
    runs: list[int] = []

    @handlers("job")
    def run(payload: Any, job: Job) -> None:
        runs.append(job.attempts)
        if len(runs) == 1:
            raise ValueError("no luck")

    @handlers.retry_strategy("job")
    def decide(job: Job, error: Exception) -> Any:
        called.append((job.attempts, type(error)))
        return {"retries": 9}

    options: Any = {"lease": SHORT} if markers else {"lease": SHORT, "running_job_model": None}
    leave_lease(engine, put(engine, "job"), deaths=1)
    assert QueueWorker(engine, handlers, **options).drain() == 2
    assert called == [(1, ValueError)]
    assert runs == [1, 2]
    assert (only_archived(engine).attempts, only_archived(engine).deaths) == (2, 0)
    leave_lease(engine, put(engine, "job"), deaths=2)
    assert QueueWorker(engine, handlers, **options).drain() == 1
    assert called == [(1, ValueError)]
    assert runs == [1, 2]
    poison = max(archived(engine), key=lambda job: job.job_id)
    assert (poison.status, poison.attempts, poison.deaths) == ("failure", 1, 3)


# Poison jobs.


@pytest.mark.parametrize(
    ("kind", "innocents", "arguments"),
    [
        ("threads", 20, ()),
        ("asyncpg", 60, ()),
        ("psycopg", 20, ("--name", "the same, always")),
    ],
    ids=["threads", "asyncpg", "psycopg-named"],
)
def test_a_poison_job_fails_alone(
    shop: Engine, url: URL, tmp_path: Path, kind: str, *, innocents: int, arguments: tuple[str, ...]
) -> None:
    """A poison job fails regardless of its retries; jobs that ran next to it succeed."""
    with Session(shop) as session, session.begin():
        for n in range(innocents + 1):
            enqueue(session, *(("innocent", n) if n != innocents // 2 else ("poison", None)))
    deaths = run_until_empty(
        url, kind, tmp_path, "--places", "22", "--poison-retries", "9", *arguments
    )
    # In a batch of at most 22, in one of an eighth of these, perhaps once more, then three times
    # alone.
    assert 4 <= deaths <= 6
    jobs = archived(shop)
    (poison,) = (job for job in jobs if job.job_type == "poison")
    assert (poison.status, poison.attempts, poison.deaths) == ("failure", 1, 3)
    assert "WorkerDiedError" in poison.error
    assert "attempt 1 of this job; the last one (" in poison.error
    others = {(job.status, job.attempts, job.deaths) for job in jobs if job is not poison}
    assert others == {("success", 1, 0)}
    assert len(jobs) == innocents + 1
    assert Counter(notes(shop)) == Counter(
        str(n) for n in range(innocents + 1) if n != innocents // 2
    )
    assert rows(shop, RunningJob) == []


@pytest.mark.parametrize("retries", [None, 1])
def test_a_poison_job_fails_alone_without_markers(
    shop: Engine, url: URL, retries: int | None, tmp_path: Path
) -> None:
    """Without markers, a poison job fails too, and no other job fails with it."""
    with Session(shop) as session, session.begin():
        for n in range(10):
            enqueue(session, *(("innocent", n) if n != 5 else ("poison", None)))
    arguments = [] if retries is None else ["--poison-retries", str(retries)]
    deaths = run_until_empty(url, "threads", tmp_path, "--places", "4", "--no-markers", *arguments)
    assert deaths == 3  # the last time, it runs alone
    jobs = archived(shop)
    (poison,) = (job for job in jobs if job.job_type == "poison")
    assert (poison.status, poison.attempts, poison.deaths) == ("failure", 1, 3)
    assert "3 workers in a row died" in poison.error
    assert {(job.status, job.attempts) for job in jobs if job is not poison} == {("success", 1)}
    assert len(notes(shop)) == len(set(notes(shop))) == 9


def run_until_empty(url: URL, kind: str, directory: Path, *arguments: str) -> int:
    """Run one worker after another until no job is left; return the number of crashes."""
    deaths = 0
    while True:
        with program(
            url, kind, directory, "--lease", str(1.5 * LEASE), "--until-empty", *arguments
        ) as worker:
            if (code := worker.wait()) == 0:
                return deaths
            assert code == -signal.SIGKILL, worker.told
        deaths += 1
        assert deaths < 10, "the poison job never fails"


@pytest.mark.parametrize("lease", [None, SHORT], ids=["transaction", "lease"])
@pytest.mark.parametrize(("of_worker", "of_handler"), [(1, None), (3, 1), (1, 3)])
def test_max_deaths(
    engine: Engine, lease: timedelta | None, of_worker: int, of_handler: int | None
) -> None:
    """A handler's ``max_deaths`` overrides the worker's; with 1, the first crash fails the job."""
    handlers = Handlers()
    handlers("job", max_deaths=of_handler)(lambda payload: None)
    leave_lease(engine, put(engine, "job"))
    QueueWorker(engine, handlers, lease=lease, max_deaths=of_worker).drain()
    fails = (of_handler or of_worker) == 1
    job = only_archived(engine)
    assert (job.status, job.deaths) == ("failure" if fails else "success", 1)
    if fails:
        assert "a worker died or lost the lease while running attempt 1" in job.error


def test_invalid_max_deaths() -> None:
    """``max_deaths`` must be an int of at least 1."""
    with pytest.raises(ValueError, match="max_deaths must be at least 1, not 0"):
        Handlers()("job", max_deaths=0)
    with pytest.raises(TypeError, match="max_deaths must be an int, not 'many'"):
        Handlers()("job", max_deaths="many")  # type: ignore[call-overload]
