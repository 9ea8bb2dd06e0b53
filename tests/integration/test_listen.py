"""Notifications from other processes, with each driver that can listen."""

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
from sqlalchemy_proletarian.worker.loop import RECHECKS

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


class OtherProcess:
    """Another process that has enqueued a job and commits it when ``commit`` is called."""

    def __init__(self, url: URL) -> None:
        environment = os.environ | {"URL": url.render_as_string(hide_password=False)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRODUCER], env=environment, stdin=subprocess.PIPE
        )

    def commit(self) -> None:
        self.process.communicate(b"\n", timeout=25)
        assert self.process.returncode == 0


def listening(engine: Engine, name: str) -> int:
    """Return the number of connections on which a worker listens."""
    return connections(engine, f"{name} % listening")


def cut_off(engine: Engine, name: str) -> int:
    """Terminate the connections on which a worker listens; return their number."""
    kill = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE :name"
    )
    with engine.begin() as connection:
        return len(connection.execute(kill, {"name": f"{name} % listening"}).all())


async def idle(worker: AsyncQueueWorker, log: Log) -> None:
    """Wait until a worker listens and has stopped polling since."""
    pool = worker._core.pool
    assert pool is not None
    listener = pool.listener
    assert listener is not None
    await until(lambda: listener.active)
    polls = -1
    while polls < log.events().count("polling-for-jobs"):
        polls = log.events().count("polling-for-jobs")
        await asyncio.sleep(0.5)


@driver_and_hold
@in_a_loop
async def test_a_commit_in_another_process_wakes_an_idle_worker(
    engine: Engine, loop_engine: AsyncEngine, held: dict[str, Any], url: URL
) -> None:
    """A job committed by another process starts immediately, not at the next poll."""
    other_process = OtherProcess(url)
    log = Log()
    options: Any = {"polling_interval": MINUTE, "log": log, "concurrency": 2, **held}
    async with AsyncQueueWorker(loop_engine, succeed, **options) as worker:
        await idle(worker, log)
        await asyncio.to_thread(other_process.commit)
        await until(lambda: archived(engine))


@in_a_loop
async def test_commits_in_the_same_process_wake_a_worker(
    engine: Engine, loop_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a driver that cannot listen, commits in the same process still wake the worker."""
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.listener._RECEIVERS", {})
    assert not Listener.supports(loop_engine.sync_engine)
    log = Log()
    options: Any = {"polling_interval": MINUTE, "log": log, "name": "no-listener"}
    async with AsyncQueueWorker(loop_engine, succeed, **options):
        await until(lambda: log.events().count("polling-for-jobs") >= 2)
        assert listening(engine, "no-listener") == 0
        put(engine, "a")
        await until(lambda: archived(engine))


@in_a_loop
async def test_a_worker_that_cannot_listen_polls(
    engine: Engine, loop_engine: AsyncEngine, url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a driver that cannot listen, jobs of other processes are found by polling."""
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.listener._RECEIVERS", {})
    other_process = OtherProcess(url)
    async with AsyncQueueWorker(loop_engine, succeed, polling_interval=SECOND / 5):
        await asyncio.to_thread(other_process.commit)
        await until(lambda: archived(engine))


@in_a_loop
async def test_a_lost_listening_connection_is_reopened(
    engine: Engine, loop_engine: AsyncEngine, url: URL
) -> None:
    """A worker that loses its listening connection logs it once and reconnects."""
    other_process = OtherProcess(url)
    log = Log()
    options: Any = {"polling_interval": MINUTE, "name": "reconnects", "log": log}
    async with AsyncQueueWorker(loop_engine, succeed, **options) as worker:
        for n in (1, 2):
            await idle(worker, log)
            assert cut_off(engine, "reconnects") == 1
            await until(lambda n=n: log.events().count("listening-lost") == n)
            await until(lambda: listening(engine, "reconnects") == 1)
        await idle(worker, log)
        await asyncio.to_thread(other_process.commit)
        await until(lambda: archived(engine))
    assert log.events().count("listening-lost") == 2
    assert "polling-error" not in log.events()


@in_a_loop
async def test_a_worker_polls_after_it_lost_its_listening_connection(
    engine: Engine, loop_engine: AsyncEngine, url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the listening connection is lost, the worker polls at its polling interval."""
    other_process = OtherProcess(url)
    log = Log()
    options: Any = {"polling_interval": SECOND / 2, "name": "polls", "log": log}
    async with AsyncQueueWorker(loop_engine, succeed, **options) as worker:
        await idle(worker, log)

        def reject(*_: Any) -> None:
            raise ConnectionError("no more")

        monkeypatch.setitem(_receivers(), (loop_engine.dialect.driver, True), reject)
        assert cut_off(engine, "polls") == 1
        await until(lambda: "listening-lost" in log.events())
        await asyncio.sleep(0.3)
        await asyncio.to_thread(other_process.commit)
        await until(lambda: archived(engine))
    assert log.events().count("listening-lost") == 1


def _receivers() -> dict[Any, Any]:
    from sqlalchemy_proletarian.wakeup import listener

    return listener._RECEIVERS


@in_a_loop
async def test_a_worker_still_listens_after_an_idle_period(
    engine: Engine, loop_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has received nothing for long still listens, but ignores other queues."""
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.listener.PROOF_OF_LIFE", 0.02)
    log = Log()
    channel = channel_of("proletarian.job")
    async with AsyncQueueWorker(loop_engine, succeed, polling_interval=MINUTE, log=log) as worker:
        await idle(worker, log)
        polls = 1 + len(RECHECKS)
        await until(lambda: log.events().count("polling-for-jobs") == polls)
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
    """``stop`` ends listening promptly, logs no loss, and leaves no connection open."""
    log = Log()
    worker = AsyncQueueWorker(loop_engine, succeed, name="ends", log=log, **held)
    await worker.start()
    await idle(worker, log)
    assert listening(engine, "ends") == 1
    monkeypatch.setattr("sqlalchemy_proletarian.database.reconnecting.GRACE_PERIOD", 20.0)
    before = monotonic()
    await worker.stop()
    assert monotonic() - before < 10
    assert not others()
    await until(lambda: connections(engine, "ends") == 0)
    assert "listening-lost" not in log.events()


@in_a_loop
async def test_stop_while_the_listener_connects(engine: Engine, loop_engine: AsyncEngine) -> None:
    """A worker that is stopped before it listens leaves no task or connection behind."""
    for pause in (0, 0, 0.001, 0.002, 0.004, 0.008, 0.016):
        worker = AsyncQueueWorker(loop_engine, succeed, name="short")
        await worker.start()
        await asyncio.sleep(pause)
        await worker.stop()
        await until(lambda: not others())
    await until(lambda: connections(engine, "short") == 0)


# Workers with threads.


def test_threads_reopen_a_lost_listening_connection(engine: Engine) -> None:
    """A worker with threads reconnects, and stops listening promptly."""
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


def test_drivers_that_can_listen(url: URL) -> None:
    """Psycopg can listen in threads and event loops, asyncpg in event loops."""
    assert Listener.supports(create_engine(url))
    assert Listener.supports(create_async_engine(url).sync_engine)
    pytest.importorskip("asyncpg")
    asyncpg = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    assert Listener.supports(asyncpg.sync_engine)
    assert not Listener.supports(create_engine("sqlite://"))
