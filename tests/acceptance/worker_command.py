"""A project with job handlers, and ``proletarian worker`` started in it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Job, enqueue
from tests.integration.support import eventually

from .in_process import run_here
from .programs import environment, plain

COMMAND = [str(Path(sys.executable).with_name("proletarian")), "worker"]
"""The console script, which does not put the current directory on the path."""

PATIENCE = 60.0
"""Seconds in which a process starts, on a busy machine."""

JOBS = """
import asyncio
import os
import time

from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker

RAN = text("INSERT INTO ran (number, pid) VALUES (:number, :pid)")

handlers = Handlers()
coroutines = Handlers()
empty = Handlers()
number_of_things = 3


@handlers("write")
def write(payload: dict[str, float], session: Session) -> None:
    print("begins", payload["number"], flush=True)
    time.sleep(payload.get("seconds", 0))
    session.execute(RAN, {"number": payload["number"], "pid": os.getpid()})


@handlers("charge", queue="critical")
def charge(payload: None) -> None: ...


@handlers("fail")
def fail(payload: str) -> None:
    raise ValueError(payload)


@coroutines("write")
async def write_in_a_loop(payload: dict[str, float], session: AsyncSession) -> None:
    print("begins", payload["number"], flush=True)
    await asyncio.sleep(payload.get("seconds", 0))
    await session.execute(RAN, {"number": payload["number"], "pid": os.getpid()})


def make_worker() -> QueueWorker:
    return QueueWorker(create_engine(os.environ["SHOP_URL"]), handlers, queues=["critical"])


def make_async_worker():
    from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

    return AsyncQueueWorker(create_async_engine(os.environ["SHOP_URL"]), coroutines)


def make_nothing() -> None: ...


def make_trouble() -> Handlers:
    raise RuntimeError("no\\nluck")


def needs(argument: int) -> Handlers:
    return handlers


class App:  # as of a web framework: a callable object
    async def __call__(self, scope, receive, send) -> None: ...


app = App()


async def make_later() -> Handlers:
    return handlers
"""


@dataclass
class Started:
    """A running command, whose output goes to a file."""

    process: subprocess.Popen[bytes]
    file: Path
    children_seen: set[int] = field(default_factory=set)

    @property
    def output(self) -> str:
        """What it has printed so far, to stdout and to stderr."""
        return self.file.read_text(errors="replace")

    def wait_for(self, pattern: str, times: int = 1) -> None:
        """Wait until a regular expression has matched the output so many times."""

        def matches() -> bool:
            found = len(re.findall(pattern, self.output)) >= times
            assert found or self.process.poll() is None, self.output
            return found

        eventually(matches, PATIENCE, about=self)

    def children(self) -> list[psutil.Process]:
        """Return the processes that it has started."""
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []

    def send(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the command itself."""
        self.process.send_signal(number)

    def ends(self, within: float = PATIENCE) -> int:
        """Wait until it has ended; return its exit code."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {within} s:\n{self.output}")

    def stop(self) -> None:
        """Request it to stop, and check that it did."""
        self.send()
        assert self.ends() == 0, self.output

    def __str__(self) -> str:
        return self.output


@dataclass
class Project:
    """A directory with the module ``jobs``, and a database with the job tables."""

    folder: Path
    url: URL
    engine: Engine

    def command(self, *arguments: str) -> list[str]:
        """Return the command that starts a worker."""
        return [*COMMAND, *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of the command."""
        given = {"PROLETARIAN_URL": plain(self.url), "SHOP_URL": plain(self.url)} | variables
        return {name: value for name, value in environment(**given).items() if value}

    @contextmanager
    def started(self, *arguments: str, **variables: str) -> Iterator[Started]:
        """Start a worker, and kill it with all its children at the end of the block."""
        file = self.folder / f"output-{os.urandom(4).hex()}"
        with (
            file.open("wb") as output,
            subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=self.environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            started = Started(process, file)
            try:
                yield started
            finally:
                if process.poll() is None:
                    for child in started.children():
                        with suppress(psutil.NoSuchProcess):
                            child.kill()
                    process.kill()

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a worker in this process, until it ends by itself."""
        values = self.environment(**variables)
        return run_here(["worker", *arguments], cwd=self.folder, environment=values)

    def run_alone(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a worker in a process of its own, until it ends by itself."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def write(self, name: str, content: str) -> None:
        """Write a file of the project."""
        file = self.folder / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(content)

    def put(self, job_type: str, *payloads: Any, **options: Any) -> None:
        """Enqueue jobs."""
        with Session(self.engine) as session, session.begin():
            for payload in payloads:
                enqueue(session, job_type, payload, **options)

    def put_writes(self, numbers: Sequence[int] = (1,), seconds: float = 0) -> None:
        """Enqueue jobs that write their number, after some seconds."""
        self.put("write", *({"number": n, "seconds": seconds} for n in numbers))

    def ran(self) -> list[int]:
        """Return the numbers that jobs have written."""
        with self.engine.connect() as connection:
            return list(connection.scalars(text("SELECT number FROM ran ORDER BY number")))

    def pids(self) -> set[int]:
        """Return the ids of the processes that have run jobs."""
        with self.engine.connect() as connection:
            return set(connection.scalars(text("SELECT pid FROM ran")))

    def queued(self) -> list[Job]:
        """Return the jobs that wait."""
        with Session(self.engine) as session:
            return list(session.scalars(select(Job)))

    def statuses(self) -> list[str]:
        """Return the statuses of the archived jobs."""
        with Session(self.engine) as session:
            return [str(status) for status in session.scalars(select(ArchivedJob.status))]


def make_project(folder: Path, url: URL) -> Project:
    """Create a project, whose database has the job tables."""
    options = {"schema_translate_map": {"proletarian": None}} if "sqlite" in str(url) else {}
    engine = create_engine(url, poolclass=NullPool, execution_options=options)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE ran (number INTEGER, pid INTEGER)"))
    project = Project(folder, url, engine)
    project.write("jobs.py", JOBS)
    return project
