"""Waiting for the end of a job."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqlalchemy_proletarian import (
    Handlers,
    JobFailedError,
    JobNotFoundError,
    NoResultError,
    QueueWorker,
    TablesMissingError,
    enqueue,
    manage,
)
from sqlalchemy_proletarian.asyncio import wait_for as async_wait_for
from sqlalchemy_proletarian.manage import end_watch

from .kinds import Kind
from .loops import connections, in_a_loop, until
from .results_program import handlers
from .support import (
    MINUTE,
    SECOND,
    archived,
    eventually,
    fail,
    listening,
    put,
    run_all,
    succeed,
)

END_CHANNEL = "proletarian.job end"
LISTENS = "proletarian results"
"""The beginning of the name of the connection that listens."""


@pytest.fixture
def only_by_notify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but a notification wake those who wait, after their first look."""
    monkeypatch.setattr(end_watch, "_FIRST_PAUSE", 60.0)
    monkeypatch.setattr(end_watch, "_LONGEST_LISTENING", 60.0)
    monkeypatch.setattr(end_watch, "ring_at_ends", lambda _: None)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Check that nobody watches after a test, at the latest when the lingering is over."""
    yield
    eventually(lambda: not end_watch._watches)


@contextmanager
def later(function: Any, *args: Any) -> Iterator[None]:
    """Call a function in another thread."""
    thread = Thread(target=function, args=args)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def is_listening(engine: Engine) -> bool:
    return connections(engine, LISTENS) > 0


def test_the_result_of_a_job_that_runs_later(shop: Engine, kind: Kind) -> None:
    """Whatever kind of worker runs it; the type is that of the handler."""
    square = handlers().find("square")
    job_id = put(shop, "square", 7)
    with kind.worker(shop, handlers(), polling_interval=0.1 * SECOND):
        found = manage.wait_for(shop, job_id, timeout=MINUTE, handler=square)
    assert found.value == 49
    assert manage.wait_for(shop, job_id, timeout=timedelta(0)).value == 49


def test_a_session_to_wait_with(shop: Engine) -> None:
    """It is in no transaction meanwhile, or rejected."""
    job_id = put(shop, "square", 2)
    sessions = scoped_session(sessionmaker(shop))
    with Session(shop) as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(ValueError, match="while the session is in a transaction"):
            manage.wait_for(session, job_id, timeout=SECOND)
        session.commit()
        with later(run_all, shop, handlers()):
            assert manage.wait_for(session, job_id, timeout=MINUTE).value == 4
        assert not session.in_transaction()
    assert manage.wait_for(sessions, job_id, timeout=MINUTE).value == 4
    with shop.connect() as connection, Session(connection) as session:
        for bind in (connection, session):
            with pytest.raises(TypeError, match="needs an Engine, or a session that is bound to"):
                manage.wait_for(bind, job_id, timeout=SECOND)  # type: ignore[call-overload]


def test_arguments_are_checked(shop: Engine) -> None:
    job_id = put(shop, "square", 2)
    with pytest.raises(TypeError, match="timeout must be a timedelta, or None for no limit, not 5"):
        manage.wait_for(shop, job_id, timeout=5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="timeout must not be negative"):
        manage.wait_for(shop, job_id, timeout=-SECOND)
    with pytest.raises(ValueError, match="wait_for needs connections of its own"):
        manage.wait_for(create_engine("sqlite://"), job_id, timeout=SECOND)
    with pytest.raises(TypeError, match="In asyncio, use"):
        manage.wait_for(create_async_engine(shop.url), job_id, timeout=SECOND)  # type: ignore[call-overload]


def test_missing_tables_are_reported(empty_database: URL) -> None:
    engine = create_engine(empty_database)
    with pytest.raises(TablesMissingError):
        manage.wait_for(engine, uuid4(), timeout=SECOND)
    engine.dispose()


def test_a_job_that_is_not_committed_is_not_waited_for(shop: Engine) -> None:
    """The error says so at once."""
    with Session(shop) as session:
        job = enqueue(session, "square", 2)
        session.flush()
        with pytest.raises(JobNotFoundError, match="must be committed"):
            manage.wait_for(shop, job.job_id, timeout=MINUTE)


def test_a_timeout_says_where_the_job_is(shop: Engine) -> None:
    job_id = put(shop, "square", 2)
    before = monotonic()
    with pytest.raises(TimeoutError, match=r"not finished within 0:00:00.3.* the queue 'default'"):
        manage.wait_for(shop, job_id, timeout=0.3 * SECOND)
    assert 0.3 <= monotonic() - before < 5


@pytest.mark.parametrize("action", ["cancel", "discard", "fail", "no result", "delete"])
def test_every_end_wakes_those_who_wait(
    shop: Engine, only_by_notify: None, action: str, held: dict[str, Any]
) -> None:
    """A failure and a cancellation, too. A job of another type is found at the next look."""
    job_id = put(shop, "no result" if action == "no result" else "fails", process_in=MINUTE)

    registry = Handlers()

    @registry("fails", keep_result=True)
    def fails(payload: None) -> None:
        raise ValueError

    def end() -> None:
        eventually(lambda: is_listening(shop))
        if action == "cancel":
            with Session(shop) as session, session.begin():
                manage.cancel(session, job_id)
        elif action == "discard":
            with Session(shop) as session, session.begin():
                manage.discard(session, job_id)
        else:
            with Session(shop) as session, session.begin():
                manage.reschedule(session, job_id, process_in=timedelta(0))
            run_all(shop, registry, **held)

    if action in {"no result", "delete"}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(end_watch, "_FIRST_PAUSE", 0.02)
            with later(_end_otherwise, shop, job_id, action):
                expected = NoResultError if action == "no result" else JobNotFoundError
                with pytest.raises(expected):
                    manage.wait_for(shop, job_id, timeout=MINUTE)
        return
    before = monotonic()
    with later(end), pytest.raises(JobFailedError):
        manage.wait_for(shop, job_id, timeout=MINUTE)
    assert monotonic() - before < 40, "it was found at the timeout only"


def _end_otherwise(engine: Engine, job_id: Any, action: str) -> None:
    sleep(0.2)
    if action == "delete":
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM proletarian.job"))
        return
    with Session(engine) as session, session.begin():
        manage.reschedule(session, job_id, process_in=timedelta(0))
    run_all(engine, succeed)


@contextmanager
def worker_process(engine: Engine, directory: Path, mode: str = "transaction") -> Iterator[Any]:
    """Yield the process of a worker, and a function that waits for a line that it prints."""
    arguments = [engine.url.render_as_string(hide_password=False), mode, str(directory)]
    program = [sys.executable, "-m", "tests.integration.results_program", *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: Any, line: str) -> None:
    for found in process.stdout:
        if found.decode().strip() == line:
            return
    pytest.fail(f"the process ended before {line!r}")


def test_fifty_wait_for_jobs_of_another_process(
    shop: Engine, tmp_path: Path, only_by_notify: None
) -> None:
    """All get the result of their own job, and share one connection that listens.

    Nothing but notifications wakes them, and no transaction is open while they wait.
    """
    ids = [put(shop, "square", n, process_in=MINUTE) for n in range(50)]
    idle = text(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"
        " AND pid <> pg_backend_pid() AND datname = current_database()"
    )
    with ThreadPoolExecutor(50) as pool:
        waiting = [
            pool.submit(manage.wait_for, shop, job_id, timeout=MINUTE, annotation=int)
            for job_id in ids
        ]
        eventually(lambda: sum(len(watch.waiters) for watch in end_watch._watches.values()) == 50)
        eventually(lambda: is_listening(shop))
        sleep(0.2)
        assert len(end_watch._watches) == 1
        assert connections(shop, LISTENS) == 1
        with shop.connect() as connection:
            assert connection.scalar(idle) == 0
        with worker_process(shop, tmp_path) as process:
            read_until(process, "started")
            with Session(shop) as session, session.begin():
                for job_id in ids:
                    manage.reschedule(session, job_id, process_in=timedelta(0))
            # One process announces at most one end in ten milliseconds: the last ends may have
            # been announced by none, and are found at the next look. Here, another job ends.
            before = monotonic()
            while not all(future.done() for future in waiting):
                sleep(0.1)
                put(shop, "square", 0)
            assert monotonic() - before < 40, "they were found at their timeouts only"
            assert [future.result().value for future in waiting] == [n * n for n in range(50)]


@in_a_loop
async def test_fifty_tasks_wait(shop: Engine, loop_engine: AsyncEngine) -> None:
    """They share one connection that listens, and a pool of the usual size."""
    ids = [put(shop, "square", n) for n in range(50)]

    async def wait(job_id: Any) -> int:
        found = await async_wait_for(loop_engine, job_id, timeout=MINUTE, annotation=int)
        return found.value

    tasks = [asyncio.create_task(wait(job_id)) for job_id in ids]
    await until(lambda: is_listening(shop))
    await asyncio.sleep(0.1)
    assert connections(shop, LISTENS) == 1
    assert await asyncio.to_thread(run_all, shop, handlers()) == 50
    assert await asyncio.gather(*tasks) == [n * n for n in range(50)]


@in_a_loop
async def test_a_task_that_waits_can_be_cancelled(shop: Engine, loop_engine: AsyncEngine) -> None:
    """Others wait on; a session is accepted, too."""
    job_id = put(shop, "square", 3)
    async with AsyncSession(loop_engine) as session:
        first = asyncio.create_task(async_wait_for(loop_engine, job_id, timeout=None))
        second = asyncio.create_task(async_wait_for(session, job_id, timeout=MINUTE))
        await until(lambda: [len(watch.waiters) for watch in end_watch._watches.values()] == [2])
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(TimeoutError):
            await async_wait_for(loop_engine, job_id, timeout=0.1 * SECOND)
        await asyncio.to_thread(run_all, shop, handlers())
        assert (await second).value == 9


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_event_loop_can_end_while_somebody_waits(
    shop: Engine, driver: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is left behind, and nothing is printed."""
    job_id = put(shop, "square", 3)
    engine = create_async_engine(shop.url.set(drivername=f"postgresql+{driver}"))
    keep: list[Any] = []

    async def main() -> None:
        keep.append(asyncio.create_task(async_wait_for(engine, job_id, timeout=None)))
        await until(lambda: is_listening(shop))
        await engine.dispose()

    asyncio.run(main())
    eventually(lambda: not is_listening(shop))
    assert end_watch._watches == {}
    assert "error" not in capfd.readouterr().err.lower()


@pytest.mark.parametrize("mode", ["transaction", "lease"])
def test_the_worker_is_killed(shop: Engine, tmp_path: Path, mode: str) -> None:
    """Those who wait get the result of the worker that finishes the job."""
    job_id = put(shop, "slow", "done")
    with (
        ThreadPoolExecutor(1) as pool,
        worker_process(shop, tmp_path, mode) as first,
    ):
        waiting = pool.submit(manage.wait_for, shop, job_id, timeout=MINUTE, annotation=str)
        read_until(first, "half way")
        first.kill()
        first.wait()
        sleep(0.3)
        assert not waiting.done()
        with worker_process(shop, tmp_path, mode) as second:
            read_until(second, "half way")
            assert not waiting.done()
            (tmp_path / "go").touch()
            assert waiting.result().value == f"done by {second.pid}"


def test_the_connections_are_lost(shop: Engine) -> None:
    """Those who wait do not notice it."""
    job_id = put(shop, "square", 5)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(manage.wait_for, shop, job_id, timeout=MINUTE, annotation=int)
        for _ in range(3):
            eventually(lambda: is_listening(shop))
            with shop.connect() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
            sleep(0.1)
        run_all(shop, handlers())
        assert waiting.result().value == 25


def test_a_database_that_is_away_is_named(shop: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a timeout says why the last look has failed."""
    engine = create_engine(shop.url)
    job_id = put(engine, "square", 5)
    looked = []
    look = end_watch.look

    def lost(*args: Any) -> Any:
        looked.append(1)
        if len(looked) == 1:
            return look(*args)
        msg = "the network is down"
        raise OSError(msg)

    monkeypatch.setattr(end_watch, "look", lost)
    with pytest.raises(TimeoutError, match="to look failed: the network is down"):
        manage.wait_for(engine, job_id, timeout=0.3 * SECOND)
    assert len(looked) > 3
    engine.dispose()


def test_an_error_of_the_query_ends_the_wait(shop: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """For everybody, and the next one begins anew."""
    job_id = put(shop, "square", 5)
    look, looked = end_watch.look, []

    def broken(*args: Any) -> Any:
        looked.append(1)
        if len(looked) == 2:
            raise ZeroDivisionError
        return look(*args)

    monkeypatch.setattr(end_watch, "look", broken)
    with pytest.raises(ZeroDivisionError):
        manage.wait_for(shop, job_id, timeout=MINUTE)
    with later(run_all, shop, handlers()):
        assert manage.wait_for(shop, job_id, timeout=MINUTE).value == 25


def test_a_transaction_announces_the_ends_once(shop: Engine, url: URL) -> None:
    """Only those of types whose results are kept."""
    with listening(url, END_CHANNEL) as announced:
        for n in range(30):
            put(shop, "square", n)
        worker = QueueWorker(shop, handlers(), batch_window=10 * MINUTE)
        worker.drain()
        assert 1 <= len(announced()) < 30
        for _ in range(5):
            put(shop, "plain")
            put(shop, "fails")
        run_all(shop, succeed)
        run_all(shop, fail)
        assert announced() == []
    assert len(archived(shop)) == 40


def test_a_rollback_announces_nothing(shop: Engine, url: URL) -> None:
    with listening(url, END_CHANNEL) as announced, Session(shop) as session:
        job_id = put(shop, "square", 1)
        manage.cancel(session, job_id)
        session.rollback()
        assert announced() == []
        manage.cancel(session, job_id)
        session.commit()
        assert announced() == [""]


def test_the_connection_is_closed_when_nobody_waits(shop: Engine) -> None:
    """After a moment, for which those who wait next can use it."""
    ids = [put(shop, "square", n) for n in range(3)]
    with later(run_all, shop, handlers()):
        manage.wait_for(shop, ids[0], timeout=MINUTE)
    (watch,) = end_watch._watches.values()
    job_id = put(shop, "square", 1)
    with later(run_all, shop, handlers()):
        manage.wait_for(shop, job_id, timeout=MINUTE)
    assert list(end_watch._watches.values()) == [watch]
    eventually(lambda: not end_watch._watches)
    eventually(lambda: not is_listening(shop))


def test_a_driver_that_cannot_listen(shop: Engine) -> None:
    """With psycopg2, those who wait look at growing intervals."""
    pytest.importorskip("psycopg2")
    engine = create_engine(shop.url.set(drivername="postgresql+psycopg2"))
    job_id = put(shop, "square", 6)
    with later(lambda: (sleep(0.3), run_all(shop, handlers()))):
        assert manage.wait_for(engine, job_id, timeout=MINUTE).value == 36
    engine.dispose()


def test_isolation_level_of_the_engine(shop: Engine) -> None:
    """Above READ COMMITTED, each look sees what was committed before it."""
    engine = create_engine(shop.url, isolation_level="REPEATABLE READ")
    job_id = put(shop, "square", 6)
    with later(lambda: (sleep(0.2), run_all(shop, handlers()))):
        assert manage.wait_for(engine, job_id, timeout=MINUTE).value == 36
    eventually(lambda: not end_watch._watches)
    engine.dispose()
