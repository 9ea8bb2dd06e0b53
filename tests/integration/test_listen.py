"""Listening for the commits of other processes, on each driver that can."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sqlalchemy_proletarian import QueueWorker
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker
from sqlalchemy_proletarian.wakeup.channels import channel_of
from sqlalchemy_proletarian.wakeup.listener import Listener
from sqlalchemy_proletarian.worker.pool import LOOKS

from .loops import connections, driver_and_hold, in_a_loop, others, until
from .support import MINUTE, SECOND, Log, archived, at_most, eventually, put, succeed

PRODUCER = """
import os
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy_proletarian import enqueue
engine = create_engine(os.environ["URL"])
with Session(engine) as session, session.begin():
    enqueue(session, "elsewhere")
    session.flush()
    input()
"""


class Elsewhere:
    """Another process that has enqueued a job, and commits it when it is told to."""

    def __init__(self, url: URL) -> None:
        environment = os.environ | {"URL": url.render_as_string(hide_password=False)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRODUCER], env=environment, stdin=subprocess.PIPE
        )

    def commit(self) -> None:
        self.process.communicate(b"\n", timeout=25)
        assert self.process.returncode == 0


def listening(engine: Engine, name: str) -> int:
    """Return how many connections a worker listens on."""
    return connections(engine, f"{name} % listening")


def cut_off(engine: Engine, name: str) -> int:
    """Kill the connections that a worker listens on; return how many there were."""
    kill = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE :name"
    )
    with engine.begin() as connection:
        return len(connection.execute(kill, {"name": f"{name} % listening"}).all())


async def idle(worker: AsyncQueueWorker, log: Log) -> None:
    """Wait until a worker listens, and has looked for jobs since."""
    crew = worker._core.crew
    assert crew is not None
    listener = crew._listener
    assert listener is not None
    await until(lambda: listener.active)
    polls = -1
    while polls < log.events().count("polling-for-jobs"):
        polls = log.events().count("polling-for-jobs")
        await asyncio.sleep(0.5)


@driver_and_hold
@in_a_loop
async def test_job_of_another_process_wakes_an_idle_worker(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any], url: URL
) -> None:
    """A job committed by another process starts at once, not at the next poll."""
    elsewhere = Elsewhere(url)
    log = Log()
    options: Any = {"polling_interval": MINUTE, "log": log, "concurrency": 2, **held}
    async with AsyncQueueWorker(loop_engine, succeed, **options) as worker:
        await idle(worker, log)
        await asyncio.to_thread(elsewhere.commit)
        await until(lambda: archived(engine))


@in_a_loop
async def test_own_commits_wake_a_worker_that_does_not_listen(
    engine: Engine, loop_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that cannot listen polls; commits of its own process still wake the worker."""
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.listener._HEAR", {})
    assert not Listener.supports(loop_engine.sync_engine)
    log = Log()
    options: Any = {"polling_interval": MINUTE, "log": log, "name": "deaf"}
    async with AsyncQueueWorker(loop_engine, succeed, **options):
        await until(lambda: log.events().count("polling-for-jobs") >= 2)
        assert listening(engine, "deaf") == 0
        put(engine, "a")
        await until(lambda: archived(engine))


@in_a_loop
async def test_without_listening_the_worker_polls(
    engine: Engine, loop_engine: AsyncEngine, url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the driver cannot listen, a job of another process is found by polling."""
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.listener._HEAR", {})
    elsewhere = Elsewhere(url)
    async with AsyncQueueWorker(loop_engine, succeed, polling_interval=SECOND / 5):
        await asyncio.to_thread(elsewhere.commit)
        await until(lambda: archived(engine))


@in_a_loop
async def test_lost_connection_is_told_once_and_mended(
    engine: Engine, loop_engine: AsyncEngine, url: URL
) -> None:
    """A worker that can no longer listen says so once, and listens again by itself."""
    elsewhere = Elsewhere(url)
    log = Log()
    options: Any = {"polling_interval": MINUTE, "name": "mends", "log": log}
    async with AsyncQueueWorker(loop_engine, succeed, **options) as worker:
        for n in (1, 2):
            await idle(worker, log)
            assert cut_off(engine, "mends") == 1
            await until(lambda n=n: log.events().count("listening-lost") == n)
            await until(lambda: listening(engine, "mends") == 1)
        await idle(worker, log)
        await asyncio.to_thread(elsewhere.commit)
        await until(lambda: archived(engine))
    assert log.events().count("listening-lost") == 2
    assert "polling-error" not in log.events()


@in_a_loop
async def test_worker_that_cannot_listen_any_more_polls(
    engine: Engine, loop_engine: AsyncEngine, url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the moment the listening connection is lost the worker polls as it was told to."""
    elsewhere = Elsewhere(url)
    log = Log()
    options: Any = {"polling_interval": SECOND / 2, "name": "polls", "log": log}
    async with AsyncQueueWorker(loop_engine, succeed, **options) as worker:
        await idle(worker, log)

        def refuse(*_: Any) -> None:
            raise ConnectionError("no more")

        monkeypatch.setitem(_ways(), (loop_engine.dialect.driver, True), refuse)
        assert cut_off(engine, "polls") == 1
        await until(lambda: "listening-lost" in log.events())
        await asyncio.sleep(0.3)
        await asyncio.to_thread(elsewhere.commit)
        await until(lambda: archived(engine))
    assert log.events().count("listening-lost") == 1


def _ways() -> dict[Any, Any]:
    from sqlalchemy_proletarian.wakeup import listener

    return listener._HEAR


@in_a_loop
async def test_quiet_hours(
    engine: Engine, loop_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that heard nothing for long still listens, and not to other queues."""
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.listener.PROOF_OF_LIFE", 0.02)
    log = Log()
    channel = channel_of("proletarian.job")
    async with AsyncQueueWorker(loop_engine, succeed, polling_interval=MINUTE, log=log) as worker:
        await idle(worker, log)
        await asyncio.sleep(1.2 * sum(LOOKS))
        polls = log.events().count("polling-for-jobs")
        with engine.begin() as connection:
            connection.execute(select(func.pg_notify(channel, "other")))
        await asyncio.sleep(0.1)
        assert log.events().count("polling-for-jobs") == polls
        with engine.begin() as connection:
            connection.execute(select(func.pg_notify(channel, "default")))
        await until(lambda: log.events().count("polling-for-jobs") > polls)
    assert "listening-lost" not in log.events()


@driver_and_hold
@in_a_loop
async def test_stop_ends_listening(
    engine: Engine,
    loop_engine: AsyncEngine,
    held: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``stop`` ends listening promptly, says nothing of it, and leaves no connection behind."""
    log = Log()
    worker = AsyncQueueWorker(loop_engine, succeed, name="ends", log=log, **held)
    await worker.start()
    await idle(worker, log)
    assert listening(engine, "ends") == 1
    monkeypatch.setattr("sqlalchemy_proletarian.database.reconnecting._PARTING", 20.0)
    before = monotonic()
    await worker.stop()
    assert monotonic() - before < 10
    assert not others()
    await until(lambda: connections(engine, "ends") == 0)
    assert "listening-lost" not in log.events()


@in_a_loop
async def test_stop_while_the_listener_connects(engine: Engine, loop_engine: AsyncEngine) -> None:
    """A listener that is stopped before it listens leaves nothing behind either."""
    for pause in (0, 0, 0.001, 0.002, 0.004, 0.008, 0.016):
        worker = AsyncQueueWorker(loop_engine, succeed, name="hardly")
        await worker.start()
        await asyncio.sleep(pause)
        await worker.stop()
        await until(lambda: not others())
    await until(lambda: connections(engine, "hardly") == 0)


# The worker with threads.


def test_lost_connection_and_threads(engine: Engine) -> None:
    """A worker with threads mends its listening connection, and stops listening promptly."""
    log = Log()
    worker = QueueWorker(engine, succeed, name="threads", polling_interval=MINUTE, log=log)
    with at_most(10, worker.request_stop), worker:
        eventually(lambda: listening(engine, "threads") == 1)
        sleep(0.1)
        assert cut_off(engine, "threads") == 1
        eventually(lambda: "listening-lost" in log.events())
        eventually(lambda: listening(engine, "threads") == 1)
    eventually(lambda: connections(engine, "threads") == 0)
    assert log.events().count("listening-lost") == 1


def test_what_can_listen(url: URL) -> None:
    """Psycopg listens in threads and in event loops, asyncpg in event loops."""
    assert Listener.supports(create_engine(url))
    assert Listener.supports(create_async_engine(url).sync_engine)
    pytest.importorskip("asyncpg")
    asyncpg = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    assert Listener.supports(asyncpg.sync_engine)
    assert not Listener.supports(create_engine("sqlite://"))
