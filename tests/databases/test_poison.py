"""Poison jobs, and live workers that look crashed, where the server does not list workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from threading import Event
from time import sleep
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, inspect, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    RunningJob,
    RunningJobMixin,
    TablesMissingError,
    enqueue,
    utcnow,
    uuid7,
)
from sqlalchemy_proletarian.liveness.orphans import Orphans
from sqlalchemy_proletarian.liveness.presence import Presence
from sqlalchemy_proletarian.runtime.threads import Threads
from sqlalchemy_proletarian.telemetry.events import Events
from tests.integration.support import (
    archived,
    eventually,
    only_archived,
    put,
    queued,
    rows,
    succeed,
)

from .conftest import engine_of
from .places import Place, on_mysql, only

HOUR = timedelta(hours=1)
LEASE = timedelta(seconds=1)
AT_A_TIME = 4
"""The number of jobs that run at a time in lease mode."""


in_transactions = only(lambda place: place.is_mysql and not place.leased)


def options(place: Place) -> dict[str, Any]:
    return {"lease": LEASE, "threads": AT_A_TIME} if place.leased else {}


def main(server: str, driver: str, in_a_loop: str, leased: str, url: str) -> None:
    """Run due jobs in one process after another until none is left; print each exit code."""
    place = Place(server, driver, in_a_loop or None, leased=leased == "True")
    while True:
        process = os.fork()
        if process == 0:
            run_jobs(place, engine_of(place, make_url(url)))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201
        engine = engine_of(place, make_url(url))
        if not queued(engine):
            return
        engine.dispose()
        sleep(0.1)


def run_jobs(place: Place, engine: Engine) -> None:
    """Run due jobs; the job "poison" kills the process. In transaction mode, they share a batch."""
    handlers = Handlers()
    handlers("innocent")(lambda payload: sleep(0.2 if place.leased else 0))

    @handlers("poison", retry={"retries": 9})
    def poison(payload: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    worker = place.worker(engine, handlers, batch_window=HOUR, **options(place))
    sizes = worker._core._assembly._batch_size
    sizes._seconds = {"innocent": 0.0, "poison": 0.0}
    sizes._recent = 0.0  # as if recent jobs were fast, so that the first batch is large
    worker.drain()


@on_mysql
def test_poison(place: Place, engine: Engine) -> None:
    """A job that crashed three workers while running alone fails; other jobs lose no attempt."""
    with Session(engine) as session, session.begin():
        for n in range(12):
            enqueue(session, "poison" if n == 2 else "innocent", n)
    url = engine.url.render_as_string(hide_password=False)
    arguments = [place.server, place.driver, place.in_a_loop or "", str(place.leased), url]
    program = [sys.executable, "-m", __name__, *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            eventually(lambda: process.poll() is not None, 90)
        finally:
            process.kill()
        ends = process.stdout.read().split()
    # Once among others, then three times alone.
    assert ends.count(str(-signal.SIGKILL)) == 4
    assert set(ends) == {str(-signal.SIGKILL), "0"}
    jobs = archived(engine)
    assert [(job.status, job.attempts) for job in jobs if job.job_type == "poison"] == [
        ("failure", 1)
    ]
    assert "WorkerDiedError" in next(job.error for job in jobs if job.error)
    assert {(job.status, job.attempts) for job in jobs if job.job_type == "innocent"} == {
        ("success", 1)
    }
    assert len(jobs) == 12
    assert not rows(engine, RunningJob)


def lock_holder(engine: Engine, worker: str) -> int:
    """Return the id of the connection that holds a worker's presence lock, or 0."""
    with engine.connect() as connection:
        return connection.scalar(select(func.is_used_lock(f"proletarian:{worker}"))) or 0


@in_transactions
def test_all_connections_cut(place: Place, engine: Engine) -> None:
    """A worker that loses all connections takes its presence lock again; no attempt is counted."""
    begun, over = Event(), Event()

    def compute(_job_type: str, _payload: Any) -> None:
        begun.set()
        over.wait(60)

    put(engine, "compute")
    engine.dispose()
    events: list[str] = []
    log = lambda event, _: events.append(event)  # noqa: E731
    with place.worker(engine, compute, log=log, polling_interval=HOUR):
        eventually(begun.is_set)
        (marker,) = rows(engine, RunningJob)
        before = lock_holder(engine, marker.worker)
        assert before
        with engine.connect() as connection:
            own_id = connection.scalar(text("SELECT CONNECTION_ID()"))
            others = text(
                "SELECT id FROM information_schema.processlist"
                " WHERE id <> :mine AND db = DATABASE()"
            )
            for number in connection.scalars(others, {"mine": own_id}).all():
                connection.execute(text("KILL :number"), {"number": number})
        eventually(lambda: lock_holder(engine, marker.worker) not in (0, before))
        eventually(lambda: place.run_all(engine, succeed) == 1)
        over.set()
        job = only_archived(engine)
        assert (job.status, job.attempts) == ("success", 1)
        assert events.count("presence-lost") == 1
    assert not lock_holder(engine, marker.worker), "a stopped worker has released its lock"
    assert not rows(engine, RunningJob)


@only(lambda place: place.is_mysql and not (place.leased or place.in_a_loop))
def test_a_lock_that_an_older_connection_holds(place: Place, engine: Engine) -> None:
    """A new connection takes the presence lock once the server ends the lost connection."""
    events = Events(None)
    orphans = Orphans(inspect(RunningJob).local_table, Job)
    presence = Presence(engine, "worker", events, Threads(), orphans)
    with engine.connect() as older:
        assert older.scalar(text("SELECT GET_LOCK('proletarian:worker', 0)")) == 1
        presence.show()
        waiting = text(
            "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE '%get_lock(%'"
            " AND id <> CONNECTION_ID()"
        )
        eventually(lambda: older.scalar(waiting) == 1)
        assert not presence.active
        older.scalar(text("SELECT RELEASE_LOCK('proletarian:worker')"))
        eventually(lambda: presence.active)
        assert lock_holder(engine, "worker")
        presence.stop()
        eventually(lambda: not lock_holder(engine, "worker"))


@in_transactions
@pytest.mark.parametrize(("seconds", "deaths"), [(-5, 0), (2, 1)], ids=["older", "younger"])
def test_markers_and_the_start_of_the_server(
    place: Place, engine: Engine, seconds: int, deaths: int
) -> None:
    """A marker from before the server's start counts no crash; a later marker counts one."""
    with Session(engine) as session, session.begin():
        job = enqueue(session, "any")
        status = session.connection().exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Uptime'").one()
        uptime = timedelta(seconds=int(status[1])) if seconds < 0 else timedelta(0)
        session.flush()
        marker = {"worker": "gone", "batch_size": 1, "job_id": job.job_id}
        at = utcnow() - uptime + timedelta(seconds=seconds)
        session.execute(insert(RunningJob).values(**marker, started_at=at))
    assert place.run_all(engine, succeed) == 1
    job = only_archived(engine)
    assert (job.status, job.attempts, job.deaths) == ("success", 1, deaths)
    assert not rows(engine, RunningJob)


@on_mysql
def test_running_jobs_are_listed(place: Place, engine: Engine) -> None:
    """The running table shows the job, its worker and the start time, and is empty afterwards."""
    seen: list[Any] = []

    def record(_job_type: str, _payload: Any) -> None:
        seen.extend(rows(engine, RunningJob))

    job_id = put(engine, "look")
    before = utcnow() - timedelta(seconds=5)
    place.run_all(engine, record, name="the worker")
    (marker,) = seen
    assert (marker.job_id, marker.batch_size) == (job_id, 1)
    assert marker.worker.rpartition(" ")[0] == "the worker"
    assert before <= marker.started_at <= utcnow() + timedelta(seconds=5)
    assert not rows(engine, RunningJob)


@in_transactions
def test_a_failed_transaction_leaves_no_marker(place: Place, engine: Engine) -> None:
    """A worker whose transaction failed removes its marker."""
    handlers = Handlers()

    @handlers("cut")
    def cut(payload: Any, session: Session) -> None:
        session.connection().invalidate()
        session.execute(text("SELECT 1"))

    put(engine, "cut")
    with place.worker(engine, handlers, polling_interval=timedelta(seconds=0.1)):
        eventually(lambda: archived(engine))
    assert not queued(engine)
    assert not rows(engine, RunningJob)


@on_mysql
def test_a_marker_without_a_job(place: Place, engine: Engine) -> None:
    """The marker of a crashed worker is removed after another worker has finished the job."""
    with Session(engine) as session, session.begin():
        marker = {"worker": "gone", "batch_size": 1, "started_at": utcnow() - 2 * HOUR}
        session.execute(insert(RunningJob).values(**marker, job_id=uuid7()))
    with place.worker(engine, succeed, **options(place)):
        eventually(lambda: not rows(engine, RunningJob))


class MissingBase(DeclarativeBase):
    """A declarative base whose tables do not exist."""


class RunningElsewhere(RunningJobMixin, MissingBase):
    """A table of markers that does not exist."""

    __tablename__ = "running_elsewhere"


@only(lambda place: place.is_mysql or place.server == "sqlite")
def test_the_table_of_markers_must_exist(place: Place, engine: Engine) -> None:
    """The table of ``running_job_model`` must exist, except on SQLite, which has no markers."""
    put(engine, "any")
    if place.server == "sqlite":
        assert place.run_all(engine, succeed, running_job_model=RunningElsewhere) == 1
        return
    with pytest.raises(TablesMissingError, match="running_elsewhere"):
        place.run_all(engine, succeed, running_job_model=RunningElsewhere)
    assert len(rows(engine, Job)) == 1


@in_transactions
def test_locked_markers_do_not_delay_a_claim(place: Place, engine: Engine) -> None:
    with Session(engine.execution_options(isolation_level="READ COMMITTED")) as other:
        for n in range(3):
            marker = {"worker": "gone", "batch_size": 1, "started_at": utcnow()}
            job_id = enqueue(other, "other", n, queue="other").job_id
            other.execute(insert(RunningJob).values(**marker, job_id=job_id))
        other.commit()
        other.execute(select(RunningJob).with_for_update()).all()
        put(engine, "any")
        assert place.run_all(engine, succeed) == 1


if __name__ == "__main__":
    main(*sys.argv[1:])
