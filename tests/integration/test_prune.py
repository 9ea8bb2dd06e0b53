"""Pruning the archive: by a function, and by workers in the background."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Handlers, QueueWorker, manage, utcnow, uuid7
from sqlalchemy_proletarian.asyncio import prune as async_prune
from sqlalchemy_proletarian.worker import archive_pruning

from .kinds import Kind
from .loops import in_a_loop
from .support import MINUTE, Log, archived, eventually, fail, put, run_all, succeed

DAY = timedelta(days=1)


def fill(engine: Engine, jobs: int, *, age: timedelta = 2 * DAY, status: str = "success") -> None:
    """Add archived jobs that finished one after the other, the last one ``age`` ago."""
    last = utcnow() - age
    values = {
        "queue": "default",
        "job_type": "old",
        "payload": "null",
        "attempts": 1,
        "enqueued_at": last,
        "process_at": last,
        "status": status,
    }
    rows = [
        {**values, "job_id": uuid7(), "finished_at": last - timedelta(seconds=n // 3)}
        for n in range(jobs)
    ]
    with engine.begin() as connection:
        connection.execute(insert(ArchivedJob.__table__), rows)


def left(engine: Engine) -> Counter[str]:
    """Return the number of archived jobs by status."""
    with engine.connect() as connection:
        found = select(ArchivedJob.status, func.count()).group_by(ArchivedJob.status)
        return Counter({row[0]: row[1] for row in connection.execute(found)})


@pytest.mark.parametrize("with_engine", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_old_jobs_are_deleted(engine: Engine, with_engine: bool, batch_size: int) -> None:
    """In any number of batches, also if several jobs finished at the same time."""
    fill(engine, 40)
    fill(engine, 5, age=timedelta(hours=1))
    options: dict[str, Any] = {"older_than": DAY, "batch_size": batch_size}
    if with_engine:
        assert manage.prune(engine, **options) == 40
    else:
        with Session(engine) as session:
            assert manage.prune(session, **options) == 40
            assert left(engine)["success"] == 45
            session.rollback()
            assert left(engine)["success"] == 45
            assert manage.prune(session, **options) == 40
            session.commit()
    assert left(engine)["success"] == 5
    assert manage.prune(engine, older_than=DAY) == 0
    assert manage.prune(engine, older_than=timedelta(0)) == 5


@pytest.mark.parametrize(
    ("status", "rest"),
    [
        ("failure", {"success": 30, "cancelled": 4}),
        (["success", "cancelled"], {"failure": 10}),
        (None, {}),
    ],
)
def test_only_some_statuses(engine: Engine, status: Any, rest: dict[str, int]) -> None:
    """Jobs of other statuses stay."""
    for name, jobs in (("success", 30), ("failure", 10), ("cancelled", 4)):
        fill(engine, jobs, status=name)
    deleted = manage.prune(engine, older_than=DAY, status=status, batch_size=3)
    assert deleted == 44 - sum(rest.values())
    assert left(engine) == rest


def test_jobs_that_finished_at_the_same_time(engine: Engine) -> None:
    """More of them than a batch has are no obstacle."""
    at = utcnow() - 2 * DAY
    fill(engine, 20)
    with engine.begin() as connection:
        connection.execute(ArchivedJob.__table__.update().values(finished_at=at))
    assert manage.prune(engine, older_than=DAY, status="failure", batch_size=3) == 0
    assert manage.prune(engine, older_than=DAY, batch_size=3) == 20


@pytest.mark.parametrize("batch_size", [4, 1000])
def test_locked_rows_are_skipped(engine: Engine, batch_size: int) -> None:
    """Without waiting; a later call deletes them."""
    fill(engine, 30)
    some = select(ArchivedJob.job_id).order_by(ArchivedJob.finished_at).limit(6)
    with Session(engine) as session:
        session.execute(some.with_for_update())
        assert manage.prune(engine, older_than=DAY, batch_size=batch_size) == 24
    assert manage.prune(engine, older_than=DAY) == 6


def test_two_calls_at_once_delete_each_row_once(engine: Engine) -> None:
    fill(engine, 3000)
    counts: list[int] = []

    def one() -> None:
        counts.append(manage.prune(engine, older_than=DAY, batch_size=100))

    threads = [Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 3000
    assert not left(engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"older_than": "1 day"}, "older_than must be a timedelta"),
        ({"older_than": -DAY}, "must not be negative"),
        ({"older_than": DAY, "status": "done"}, "'done' is not a valid Status"),
        ({"older_than": DAY, "batch_size": 0}, "batch_size must be"),
    ],
)
def test_arguments_are_checked(engine: Engine, options: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        manage.prune(engine, **options)


@in_a_loop
async def test_in_asyncio(engine: Engine, loop_engine: AsyncEngine) -> None:
    """With an AsyncEngine and with an AsyncSession."""
    fill(engine, 10)
    async with AsyncSession(loop_engine) as session:
        assert await async_prune(session, older_than=DAY) == 10
        await session.rollback()
    assert await async_prune(loop_engine, older_than=DAY, batch_size=3) == 10


# By workers.


def test_a_worker_prunes_and_runs_jobs(engine: Engine, kind: Kind) -> None:
    """In the background: jobs run while old ones are deleted, and new ones stay."""
    fill(engine, 2500)
    fill(engine, 5, age=timedelta(hours=1))
    log = Log()
    with kind.worker(engine, succeed, archive_retention=DAY, log=log, polling_interval=MINUTE):
        for _ in range(5):
            put(engine, "job")
        eventually(lambda: left(engine)["success"] == 10)
        eventually(lambda: "archive-pruned" in log.events())
    assert [data["jobs"] for data in log.data("archive-pruned")] == [2500]
    assert "pruning-error" not in log.events()


def test_a_worker_with_a_retention_for_each_status(engine: Engine) -> None:
    """Jobs with a status that is not named stay."""
    for status in ("success", "failure", "cancelled"):
        fill(engine, 10, status=status)
    retention = {"success": DAY, "failure": 30 * DAY}
    log = Log()
    with QueueWorker(engine, succeed, archive_retention=retention, log=log):
        eventually(lambda: "archive-pruned" in log.events())
    assert left(engine) == {"failure": 10, "cancelled": 10}


def test_without_the_option_nothing_is_deleted(engine: Engine) -> None:
    fill(engine, 10, age=3650 * DAY)
    put(engine, "job")
    with QueueWorker(engine, succeed):
        eventually(lambda: len(archived(engine)) == 11)
    assert run_all(engine, succeed, archive_retention=DAY) == 0  # a drain prunes nothing
    assert len(archived(engine)) == 11


def test_one_worker_prunes_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another one does, it deletes nothing; afterwards it does."""
    monkeypatch.setattr(archive_pruning, "INTERVAL", 0.2)
    fill(engine, 10)
    worker = QueueWorker(engine, succeed, archive_retention=DAY)
    where = engine.url.database, "proletarian.archived_job"
    with engine.connect() as other:
        name = f"proletarian prune {where}"
        other.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})
        with worker:
            put(engine, "job")
            eventually(lambda: len(archived(engine)) == 11)
            other.rollback()
            eventually(lambda: len(archived(engine)) == 1)


@pytest.mark.parametrize(
    ("retention", "message"),
    [
        (7, "archive_retention must be a timedelta, or a mapping"),
        (-DAY, "must not be negative"),
        ({"done": DAY}, "'done' is not a valid Status"),
        ({"failure": "never"}, r"archive_retention\[.failure.\] must be a timedelta"),
    ],
)
def test_the_option_is_checked(engine: Engine, retention: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        QueueWorker(engine, succeed, archive_retention=retention)


def test_an_error_does_not_end_the_worker(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker reports it, runs jobs and tries again."""
    monkeypatch.setattr(archive_pruning, "INTERVAL", 0.2)
    put(engine, "failed")
    run_all(engine, fail)
    strict = create_engine(engine.url, connect_args={"options": "-c lock_timeout=100"})
    log = Log()
    with engine.connect() as other:
        # Other tables are not locked; the archive is, for reads too.
        other.execute(text("LOCK proletarian.archived_job IN ACCESS EXCLUSIVE MODE"))
        with QueueWorker(strict, Handlers(), archive_retention=timedelta(0), log=log):
            eventually(lambda: "pruning-error" in log.events())
            other.rollback()
            eventually(lambda: archived(engine) == [])
    strict.dispose()


PROGRAM = """
from datetime import timedelta
from sys import argv
from sqlalchemy import create_engine
from sqlalchemy_proletarian import QueueWorker

worker = QueueWorker(
    create_engine(argv[1]), lambda job_type, payload: None, archive_retention=timedelta(days=1)
)
worker.run()
"""


def test_a_worker_is_killed_while_it_prunes(engine: Engine) -> None:
    """What it has committed stays deleted, the rest stays, and the next worker goes on."""
    fill(engine, 20_000)
    url = engine.url.render_as_string(hide_password=False)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, url])
    try:
        eventually(lambda: left(engine)["success"] < 18_000)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    rest = left(engine)["success"]
    assert 0 < rest < 18_000
    log = Log()
    with QueueWorker(engine, succeed, archive_retention=DAY, log=log):
        put(engine, "job")
        eventually(lambda: left(engine)["success"] == 1)
        eventually(lambda: "archive-pruned" in log.events())
    assert 0 < log.data("archive-pruned")[0]["jobs"] <= rest
