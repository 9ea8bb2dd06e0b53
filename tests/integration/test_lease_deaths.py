"""Workers that are frozen, killed, or killed by a job, and the jobs that they have leased."""

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


def others() -> Handlers:
    """Return what a worker here does with the jobs of the program."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text=str(payload)))

    handlers("send")(lambda payload: None)
    return handlers


def leave_lease(
    engine: Engine, job_id: Any, *, deaths: int = 0, worker: str = "gone", beside: int = 1
) -> None:
    """Leave a job as a worker does that dies, or is frozen, until its lease has expired."""
    with Session(engine) as session, session.begin():
        expired = {"process_at": utcnow(), "lease_id": uuid7(), "deaths": deaths}
        session.execute(update(Job).where(Job.job_id == job_id).values(expired))
        session.add(
            RunningJob(job_id=job_id, worker=worker, batch_size=beside, started_at=utcnow())
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
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
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
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
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


@pytest.mark.parametrize(("deaths", "status"), [(1, "success"), (2, "failure")])
@pytest.mark.parametrize("by", ["lease", "transaction"])
def test_job_that_loses_its_lease_again_and_again(
    engine: Engine, deaths: int, status: str, by: str
) -> None:
    """A job that keeps living workers too busy to extend its lease fails in the end."""
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
        assert "attempt 1 of this job and no other (the last one was busy)" in job.error


# Killed.


@every_program
def test_killed_among_others(shop: Engine, url: URL, kind: str, tmp_path: Path) -> None:
    """Jobs of a killed worker come due when the lease ends, and lose no attempt."""
    for n in range(3):
        put(shop, "write", n)
    with program(url, kind, tmp_path, "--lease", str(LEASE)) as killed:
        killed.until("half way", 3)
        killed.process.kill()
    assert {job.attempts for job in queued(shop)} == {0}
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
    """The one job of a worker that died runs again, and has used up no attempt."""
    put(shop, "write", "once")
    with program(url, kind, tmp_path, "--lease", str(LEASE)) as killed:
        killed.until("half way")
        killed.process.kill()
    with QueueWorker(shop, others(), lease=SHORT):
        eventually(lambda: not queued(shop))
    job = only_archived(shop)
    assert (job.status, job.attempts, job.deaths, job.error) == ("success", 1, 1, None)
    assert notes(shop) == ["once"]
    assert rows(shop, RunningJob) == []


def test_killed_without_markers(shop: Engine, url: URL, tmp_path: Path) -> None:
    """Without markers the jobs of a killed worker run again, and have used up no attempt."""
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
    ended = {(job.status, job.attempts, job.deaths) for job in archived(shop)}
    assert ended == {("success", 1, 1)}


@pytest.mark.parametrize("markers", [True, False])
def test_no_strategy_is_asked_about_a_death(engine: Engine, markers: bool) -> None:
    """A retry function is asked about failures only; a run that ends sets the deaths to 0."""
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

    options: Any = {"lease": SHORT} if markers else {"lease": SHORT, "running_job_model": None}
    leave_lease(engine, put(engine, "job"), deaths=1)
    assert QueueWorker(engine, handlers, **options).drain() == 2
    assert asked == [(1, ValueError)]
    assert runs == [1, 2]
    assert (only_archived(engine).attempts, only_archived(engine).deaths) == (2, 0)
    leave_lease(engine, put(engine, "job"), deaths=2)
    assert QueueWorker(engine, handlers, **options).drain() == 1
    assert asked == [(1, ValueError)]
    assert runs == [1, 2]
    poison = max(archived(engine), key=lambda job: job.job_id)
    assert (poison.status, poison.attempts, poison.deaths) == ("failure", 1, 3)


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
    """A job that kills its workers fails, whatever its retries, and its neighbours lose nothing."""
    with Session(shop) as session, session.begin():
        for n in range(innocents + 1):
            enqueue(session, *(("innocent", n) if n != innocents // 2 else ("poison", None)))
    deaths = run_until_empty(
        url, kind, tmp_path, "--places", "22", "--poison-retries", "9", *arguments
    )
    # Among 22 or fewer, among an eighth of these, perhaps once more, then three times alone.
    assert 4 <= deaths <= 6
    jobs = archived(shop)
    (poison,) = (job for job in jobs if job.job_type == "poison")
    assert (poison.status, poison.attempts, poison.deaths) == ("failure", 1, 3)
    assert "WorkerDiedError" in poison.error
    assert "attempt 1 of this job and no other" in poison.error
    others = {(job.status, job.attempts, job.deaths) for job in jobs if job is not poison}
    assert others == {("success", 1, 0)}
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
    assert deaths == 3  # the last time alone
    jobs = archived(shop)
    (poison,) = (job for job in jobs if job.job_type == "poison")
    assert (poison.status, poison.attempts, poison.deaths) == ("failure", 1, 3)
    assert "3 workers in a row died" in poison.error
    assert {(job.status, job.attempts) for job in jobs if job is not poison} == {("success", 1)}
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


@pytest.mark.parametrize("lease", [None, SHORT], ids=["transaction", "lease"])
@pytest.mark.parametrize(("of_worker", "of_handler"), [(1, None), (3, 1), (1, 3)])
def test_max_deaths(
    engine: Engine, lease: timedelta | None, of_worker: int, of_handler: int | None
) -> None:
    """The option of the handler wins over that of the worker; with 1 the first death is enough."""
    handlers = Handlers()
    handlers("job", max_deaths=of_handler)(lambda payload: None)
    leave_lease(engine, put(engine, "job"))
    QueueWorker(engine, handlers, lease=lease, max_deaths=of_worker).drain()
    fails = (of_handler or of_worker) == 1
    job = only_archived(engine)
    assert (job.status, job.deaths) == ("failure" if fails else "success", 1)
    if fails:
        assert "a worker died or lost the lease while running attempt 1" in job.error


def test_max_deaths_that_cannot_be() -> None:
    """``max_deaths`` is at least 1, for a worker and for a handler."""
    with pytest.raises(ValueError, match="max_deaths must be at least 1, not 0"):
        Handlers()("job", max_deaths=0)
    with pytest.raises(TypeError, match="max_deaths must be an int, not 'many'"):
        Handlers()("job", max_deaths="many")  # type: ignore[call-overload]
