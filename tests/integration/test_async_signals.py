"""Signals to a process that runs a worker in its event loop, and processes that exit mid-job."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from time import sleep
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine

from sqlalchemy_proletarian import RunningJob
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

from .loops import all_is_due_again, connections, driver_and_hold, in_a_loop, until
from .support import (
    Log,
    archived,
    at_most,
    eventually,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    succeed,
)

PROGRAM = """
    import asyncio, sys, time
    from datetime import timedelta
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
    from sqlalchemy.orm import Session
    from sqlalchemy_proletarian import Handlers
    from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

    url, lease, mode, shutdown_timeout = sys.argv[1:]
    handlers = Handlers()
    insert = text("INSERT INTO note (text, transaction) VALUES ('written', 0)")

    @handlers("coroutine")
    async def coroutine(payload, session: AsyncSession):
        await session.execute(insert)
        print("running", flush=True)
        try:
            while mode == "hangs" or not worker.stopping:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            print("cleaned up", flush=True)
            raise

    @handlers("plain")
    def plain(payload, session: Session):
        session.execute(insert)
        print("running", flush=True)
        while mode == "hangs" or not worker.stopping:
            time.sleep(0.01)

    @handlers("blocks the loop")
    async def blocks(payload):
        print("running", flush=True)
        time.sleep(60)

    def log(event, data):
        if event == "worker-stopping":
            print("stopping", flush=True)

    worker = AsyncQueueWorker(
        create_async_engine(url),
        handlers,
        concurrency=1,
        name="subprocess",
        lease=timedelta(seconds=float(lease)) if lease else None,
        shutdown_timeout=timedelta(seconds=float(shutdown_timeout)),
        log=log,
        on_shutdown=lambda: print("goodbye", flush=True),
    )
    if mode == "leaves":
        async def main():
            await worker.start()
            await asyncio.sleep(1)
        asyncio.run(main())
    elif mode == "context":
        async def main():
            async with worker:
                await asyncio.sleep(60)
        asyncio.run(main())
    else:
        asyncio.run(worker.run())
    print("returned", flush=True)
"""


def read_line(child: subprocess.Popen[str]) -> str:
    """Return the next line of output of a process."""
    assert child.stdout is not None
    with at_most(45, child.kill):
        return child.stdout.readline()


@contextmanager
def process(
    engine: AsyncEngine, held: dict[str, Any], mode: str, shutdown_timeout: float = 10
) -> Iterator[subprocess.Popen[str]]:
    """Start a process that runs a worker in its event loop, and wait until a job is running."""
    lease = str(held["lease"].total_seconds()) if held else ""
    url = engine.url.render_as_string(hide_password=False)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), url, lease, mode, str(shutdown_timeout)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            started = read_line(child) == "running\n"
            assert started, child.communicate(timeout=5)[1]
            yield child
        finally:
            child.kill()


@driver_and_hold
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_job_finish(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], number: int
) -> None:
    """At SIGTERM or SIGINT the running job finishes, ``run`` returns and the exit code is 0."""
    put(shop, "coroutine" if number == signal.SIGTERM else "plain")
    put(shop, "coroutine", priority=9)
    with process(loop_engine, held, "finishes") as child:
        child.send_signal(number)
        out, err = child.communicate(timeout=25)
    assert (child.returncode, out, err) == (0, "stopping\ngoodbye\nreturned\n", "")
    assert only_archived(shop).status == "success"
    assert notes(shop) == ["written"]
    assert only_queued(shop).attempts == 0
    assert rows(shop, RunningJob) == []


@driver_and_hold
def test_a_coroutine_that_exceeds_the_shutdown_timeout_is_cancelled(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """The process still exits with code 0, and the job is due again."""
    put(shop, "coroutine")
    with process(loop_engine, held, "hangs", shutdown_timeout=0.2) as child:
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=25)
    assert (child.returncode, out) == (0, "stopping\ncleaned up\ngoodbye\nreturned\n"), err
    assert all_is_due_again(shop)
    assert notes(shop) == []


@driver_and_hold
def test_a_process_exits_although_a_plain_function_hangs(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A thread that exceeds the shutdown timeout does not block the exit; the exit code is 1."""
    put(shop, "plain")
    with process(loop_engine, held, "hangs", shutdown_timeout=0.2) as child:
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=25)
    assert (child.returncode, out) == (1, "stopping\ngoodbye\n"), err
    assert "ShutdownTimeoutError: 1 of 1 handlers" in err
    eventually(lambda: all_is_due_again(shop))
    assert notes(shop) == []


@driver_and_hold
@pytest.mark.parametrize("handler", ["coroutine", "plain"])
def test_a_second_signal_does_not_wait_for_the_handler(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], handler: str
) -> None:
    """The process ends with KeyboardInterrupt, and the job is due again."""
    put(shop, handler)
    with process(loop_engine, held, "hangs", shutdown_timeout=60) as child:
        child.send_signal(signal.SIGINT)
        assert read_line(child) == "stopping\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=25)
    assert child.returncode != 0
    assert out == ("cleaned up\n" if handler == "coroutine" else "")
    assert err.rstrip().endswith("KeyboardInterrupt")
    eventually(lambda: connections(shop, "subprocess") == 0)
    assert all_is_due_again(shop)
    assert notes(shop) == []


def test_a_third_signal_interrupts_a_blocked_event_loop(
    shop: Engine, loop_engine: AsyncEngine
) -> None:
    """A handler that blocks the event loop also blocks signal handling until the third signal."""
    put(shop, "blocks the loop")
    with process(loop_engine, {}, "hangs", shutdown_timeout=60) as child:
        for _ in range(2):
            child.send_signal(signal.SIGINT)
            sleep(0.2)
        assert child.poll() is None
        while child.poll() is None:  # the system may merge two signals sent at once
            child.send_signal(signal.SIGINT)
            sleep(0.2)
        _, err = child.communicate(timeout=25)
    assert err.rstrip().endswith("KeyboardInterrupt")
    eventually(lambda: all_is_due_again(shop))


@driver_and_hold
def test_ctrl_c_in_the_context_manager_lets_the_running_job_finish(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    put(shop, "coroutine")
    with process(loop_engine, held, "context") as child:
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=25)
    assert child.returncode != 0
    assert out == "stopping\ngoodbye\n"
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert only_archived(shop).status == "success"


@driver_and_hold
@pytest.mark.parametrize("handler", ["coroutine", "plain"])
def test_a_process_that_does_not_stop_its_worker_exits_normally(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], handler: str
) -> None:
    """A program that ends while a job is running exits with code 0, and the job is due again.

    Where the worker still gets to it, it says so in one line.
    """
    put(shop, handler)
    with process(loop_engine, held, "leaves") as child:
        out, err = child.communicate(timeout=25)
    assert child.returncode == 0
    assert [line for line in err.splitlines() if not line.startswith("job-interrupted: ")] == []
    assert err.count("\n") <= 1
    assert out == ("cleaned up\nreturned\n" if handler == "coroutine" else "returned\n")
    eventually(lambda: connections(shop, "subprocess") == 0)
    assert all_is_due_again(shop)
    assert notes(shop) == []


def test_a_job_survives_the_kill_of_its_process(shop: Engine, loop_engine: AsyncEngine) -> None:
    """The job is due again, its writes are undone and the attempt is not counted."""
    put(shop, "coroutine")
    with process(loop_engine, {}, "hangs") as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(25)
    eventually(lambda: connections(shop, "subprocess") == 0)

    async def drain() -> int:
        worker = AsyncQueueWorker(loop_engine, succeed)
        try:
            return await worker.drain()
        finally:
            await loop_engine.dispose()

    assert asyncio.run(drain()) == 1
    job = only_archived(shop)
    assert (job.status, job.attempts, job.deaths, job.error) == ("success", 1, 1, None)
    assert notes(shop) == []


# Signals to the test's own process.


@in_a_loop
async def test_run_restores_signal_handlers(engine: Engine, loop_engine: AsyncEngine) -> None:
    """``run`` restores the handlers of the program, those of the event loop included."""
    received: list[int] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, received.append, signal.SIGTERM)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    worker = AsyncQueueWorker(loop_engine, succeed)
    loop.call_later(0.1, worker.request_stop)
    await worker.run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: received)
    loop.remove_signal_handler(signal.SIGTERM)


@in_a_loop
async def test_a_signal_during_startup_stops_the_worker(
    engine: Engine, loop_engine: AsyncEngine
) -> None:
    """The worker also handles a SIGTERM that arrives while it connects."""
    fired: list[int] = []

    @event.listens_for(loop_engine.sync_engine, "connect")
    def on_connect(*_: object) -> None:
        if not fired:
            fired.append(1)
            signal.raise_signal(signal.SIGTERM)

    put(engine, "a")
    async with asyncio.timeout(3):
        await AsyncQueueWorker(loop_engine, succeed).run()
    assert fired == [1]
    assert archived(engine) == []
    assert only_queued(engine).attempts == 0


def test_run_outside_the_main_thread_leaves_signal_handlers_alone(
    engine: Engine, loop_engine: AsyncEngine
) -> None:
    """The worker runs jobs in a loop of another thread and installs no signal handlers."""
    log = Log()
    worker = AsyncQueueWorker(loop_engine, succeed, log=log)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def main() -> None:
        await worker.run()
        await loop_engine.dispose()

    thread = Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    put(engine, "a")
    eventually(lambda: not queued(engine))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    worker.request_stop()
    thread.join(10)
    assert not thread.is_alive()
    assert only_archived(engine).status == "success"
