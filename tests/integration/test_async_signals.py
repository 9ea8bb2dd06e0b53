"""Signals to a process whose event loop runs a worker, and what such a process leaves behind."""

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

    url, lease, how, patience = sys.argv[1:]
    handlers = Handlers()
    insert = text("INSERT INTO note (text, transaction) VALUES ('written', 0)")

    @handlers("coroutine")
    async def coroutine(payload, session: AsyncSession):
        await session.execute(insert)
        print("running", flush=True)
        try:
            while how == "hangs" or not worker.stopping:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            print("cleaned up", flush=True)
            raise

    @handlers("plain")
    def plain(payload, session: Session):
        session.execute(insert)
        print("running", flush=True)
        while how == "hangs" or not worker.stopping:
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
        shutdown_timeout=timedelta(seconds=float(patience)),
        log=log,
        on_shutdown=lambda: print("goodbye", flush=True),
    )
    if how == "leaves":
        async def main():
            await worker.start()
            await asyncio.sleep(1)
        asyncio.run(main())
    elif how == "context":
        async def main():
            async with worker:
                await asyncio.sleep(60)
        asyncio.run(main())
    else:
        asyncio.run(worker.run())
    print("returned", flush=True)
"""


def read_line(child: subprocess.Popen[str]) -> str:
    """Return what a process says next."""
    assert child.stdout is not None
    with at_most(45, child.kill):
        return child.stdout.readline()


@contextmanager
def process(
    engine: AsyncEngine, held: dict[str, Any], how: str, patience: float = 10
) -> Iterator[subprocess.Popen[str]]:
    """A worker in the event loop of a process of its own, in the middle of a job."""
    lease = str(held["lease"].total_seconds()) if held else ""
    url = engine.url.render_as_string(hide_password=False)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), url, lease, how, str(patience)],
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
def test_signal_during_a_job(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], number: int
) -> None:
    """At SIGTERM and SIGINT a running job may end; ``run`` returns and the process exits with 0."""
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
def test_signal_and_a_coroutine_that_hangs(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A coroutine that outlasts the patience is cancelled, which is no error of the process."""
    put(shop, "coroutine")
    with process(loop_engine, held, "hangs", patience=0.2) as child:
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=25)
    assert (child.returncode, out) == (0, "stopping\ncleaned up\ngoodbye\nreturned\n"), err
    assert all_is_due_again(shop)
    assert notes(shop) == []


@driver_and_hold
def test_signal_and_a_plain_function_that_hangs(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A thread that outlasts the patience does not keep the process: it ends with an error."""
    put(shop, "plain")
    with process(loop_engine, held, "hangs", patience=0.2) as child:
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=25)
    assert (child.returncode, out) == (1, "stopping\ngoodbye\n"), err
    assert "ShutdownTimeoutError: 1 of 1 handlers" in err
    eventually(lambda: all_is_due_again(shop))
    assert notes(shop) == []


@driver_and_hold
@pytest.mark.parametrize("sort", ["coroutine", "plain"])
def test_second_signal(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], sort: str
) -> None:
    """A second signal does not wait for the handler: KeyboardInterrupt, and the job is due."""
    put(shop, sort)
    with process(loop_engine, held, "hangs", patience=60) as child:
        child.send_signal(signal.SIGINT)
        assert read_line(child) == "stopping\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=25)
    assert child.returncode != 0
    assert out == ("cleaned up\n" if sort == "coroutine" else "")
    assert err.rstrip().endswith("KeyboardInterrupt")
    eventually(lambda: connections(shop, "subprocess") == 0)
    assert all_is_due_again(shop)
    assert notes(shop) == []


def test_third_signal_breaks_into_a_blocked_loop(shop: Engine, loop_engine: AsyncEngine) -> None:
    """A handler that blocks the event loop hears nothing, but the third signal ends it."""
    put(shop, "blocks the loop")
    with process(loop_engine, {}, "hangs", patience=60) as child:
        for _ in range(2):
            child.send_signal(signal.SIGINT)
            sleep(0.2)
        assert child.poll() is None
        while child.poll() is None:  # two that come at once count as one
            child.send_signal(signal.SIGINT)
            sleep(0.2)
        _, err = child.communicate(timeout=25)
    assert err.rstrip().endswith("KeyboardInterrupt")
    eventually(lambda: all_is_due_again(shop))


@driver_and_hold
def test_interrupted_context_manager(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """Ctrl-C in a program beside its worker lets the running job end, and then the program."""
    put(shop, "coroutine")
    with process(loop_engine, held, "context") as child:
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=25)
    assert child.returncode != 0
    assert out == "stopping\ngoodbye\n"
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert only_archived(shop).status == "success"


@driver_and_hold
@pytest.mark.parametrize("sort", ["coroutine", "plain"])
def test_process_that_forgets_its_worker(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any], sort: str
) -> None:
    """A program that ends with a job in the middle exits as if there was none; the job is due."""
    put(shop, sort)
    with process(loop_engine, held, "leaves") as child:
        out, err = child.communicate(timeout=25)
    assert (child.returncode, err) == (0, "")
    assert out == ("cleaned up\nreturned\n" if sort == "coroutine" else "returned\n")
    eventually(lambda: connections(shop, "subprocess") == 0)
    assert all_is_due_again(shop)
    assert notes(shop) == []


def test_killed_in_the_middle(shop: Engine, loop_engine: AsyncEngine) -> None:
    """A job whose process is killed is neither lost nor half done, and has used up no attempt."""
    put(shop, "coroutine")
    with process(loop_engine, {}, "hangs") as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(25)
    eventually(lambda: connections(shop, "subprocess") == 0)

    async def again() -> int:
        worker = AsyncQueueWorker(loop_engine, succeed)
        try:
            return await worker.drain()
        finally:
            await loop_engine.dispose()

    assert asyncio.run(again()) == 1
    job = only_archived(shop)
    assert (job.status, job.attempts, job.deaths, job.error) == ("success", 1, 1, None)
    assert notes(shop) == []


# In this process.


@in_a_loop
async def test_signals_are_given_back(engine: Engine, loop_engine: AsyncEngine) -> None:
    """After ``run`` the program's own signal handlers are in place again, the loop's included."""
    heard: list[int] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, heard.append, signal.SIGTERM)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    worker = AsyncQueueWorker(loop_engine, succeed)
    loop.call_later(0.1, worker.request_stop)
    await worker.run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: heard)
    loop.remove_signal_handler(signal.SIGTERM)


@in_a_loop
async def test_signal_while_starting(engine: Engine, loop_engine: AsyncEngine) -> None:
    """A SIGTERM that comes while the worker is still connecting is heard as well."""
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


def test_loop_in_another_thread_hears_no_signals(engine: Engine, loop_engine: AsyncEngine) -> None:
    """In a loop that is not the main thread's ``run`` leaves signals alone, and works."""
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
