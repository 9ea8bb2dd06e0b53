"""A worker process in lease mode, for tests that freeze or kill it.

Usage: ``python -m tests.integration.leased_program URL KIND DIRECTORY …``. Handlers wait until the
directory contains a file ``go``. Their effects outside the database are lines of the file
``effects``. The events of the worker are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Generator, Mapping
from datetime import timedelta
from pathlib import Path
from time import sleep
from typing import Any

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

NOTE = text("INSERT INTO note (text, transaction) VALUES (:text, 0)")


def say(event: str, data: Mapping[str, Any] | None = None) -> None:
    """Print an event for the test."""
    # One write with the newline: with print, lines of several threads can be mixed.
    os.write(1, f"{event}\n".encode())


class Work:
    """The work that plain functions and coroutines share."""

    def __init__(self, directory: Path) -> None:
        self._go = directory / "go"
        self._effects = directory / "effects"

    def outside(self, payload: Any) -> None:
        with self._effects.open("a") as file:
            file.write(f"{payload}\n")

    def half_way(self) -> Generator[float]:
        say("half way")
        while not self._go.exists():
            yield 0.01


def plain_functions(work: Work) -> Handlers:
    """Return the handlers of a worker with threads."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.execute(NOTE, {"text": str(payload)})
        for pause in work.half_way():
            sleep(pause)

    @handlers("send")
    def send(payload: Any) -> None:
        work.outside(payload)
        for pause in work.half_way():
            sleep(pause)

    @handlers("innocent", retry={"retries": 0})
    def innocent(payload: Any, session: Session) -> None:
        session.execute(NOTE, {"text": str(payload)})
        sleep(0.1)

    return handlers


def coroutines(work: Work) -> Handlers:
    """Return the handlers of a worker in an event loop."""
    handlers = Handlers()

    @handlers("write")
    async def write(payload: Any, session: AsyncSession) -> None:
        await session.execute(NOTE, {"text": str(payload)})
        for pause in work.half_way():
            await asyncio.sleep(pause)

    @handlers("send")
    async def send(payload: Any) -> None:
        work.outside(payload)
        for pause in work.half_way():
            await asyncio.sleep(pause)

    @handlers("innocent", retry={"retries": 0})
    async def innocent(payload: Any, session: AsyncSession) -> None:
        await session.execute(NOTE, {"text": str(payload)})
        await asyncio.sleep(0.1)

    return handlers


def poison(payload: Any) -> None:
    """Kill the process after the other jobs had time to start."""
    sleep(0.02)
    say("dies")
    os.kill(os.getpid(), signal.SIGKILL)


def main(*arguments: str) -> None:
    """Run a worker until it is stopped, or until the queue is empty."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url", type=make_url)
    parser.add_argument("kind", choices=["threads", "psycopg", "asyncpg"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--lease", type=float, default=1.0)
    parser.add_argument("--places", type=int, default=4)
    parser.add_argument("--name", default="wörker")
    parser.add_argument("--timeout", type=float, default=10.0)
    parser.add_argument("--poison-retries", type=int, default=None)
    parser.add_argument("--no-markers", action="store_true")
    parser.add_argument("--until-empty", action="store_true")
    given = parser.parse_args(arguments)
    options: dict[str, Any] = {
        "lease": timedelta(seconds=given.lease),
        "polling_interval": timedelta(seconds=0.1),
        "shutdown_timeout": timedelta(seconds=given.timeout),
        "name": given.name,
        "log": say,
    }
    if given.no_markers:
        options["running_job_model"] = None
    work = Work(given.directory)
    in_a_loop = given.kind != "threads"
    handlers = coroutines(work) if in_a_loop else plain_functions(work)
    retries = given.poison_retries
    handlers("poison", retry=None if retries is None else {"retries": retries})(poison)
    if in_a_loop:
        asyncio.run(in_loop(given, handlers, options))
    else:
        in_threads(given, handlers, options)
    say("returned")


LEFT = text("SELECT count(*) FROM proletarian.job")


def in_threads(given: argparse.Namespace, handlers: Handlers, options: dict[str, Any]) -> None:
    """Run a worker with threads."""
    engine = create_engine(given.url, pool_size=given.places)
    worker = QueueWorker(engine, handlers, threads=given.places, **options)
    if not given.until_empty:
        worker.run()
        return
    with worker, engine.connect() as connection:
        while connection.scalar(LEFT):
            connection.rollback()
            sleep(0.02)


async def in_loop(given: argparse.Namespace, handlers: Handlers, options: dict[str, Any]) -> None:
    """Run a worker in an event loop."""
    url = given.url.set(drivername=f"postgresql+{given.kind}")
    engine = create_async_engine(url, pool_size=given.places)
    worker = AsyncQueueWorker(engine, handlers, concurrency=given.places, **options)
    if given.until_empty:
        async with worker, engine.connect() as connection:
            while await connection.scalar(LEFT):
                await connection.rollback()
                await asyncio.sleep(0.02)
    else:
        await worker.run()
    await engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
