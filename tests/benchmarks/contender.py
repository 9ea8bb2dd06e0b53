"""What the harness asks of a contender: the floor, the library itself, and each peer.

This module and those of the contenders import no library at their head: a worker process must not
carry what another contender needs, since its memory is measured.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

Kind = Literal["noop", "stamp", "write", "wait"]
"""``wait`` is a job that waits for the network, say: :data:`WAIT` seconds of ``asyncio.sleep``."""

Backlog = Literal["due", "future", "archived"]

WAIT = 0.1

# Where the jobs of the "write" kind put their row: in every contender's database.
RESULT_TABLE = "CREATE TABLE bench_result (id bigserial PRIMARY KEY, job bigint NOT NULL)"
RESULT_INSERT = "INSERT INTO bench_result (job) VALUES (%s)"


class Role(StrEnum):
    """What a contender is in a comparison."""

    FLOOR = "floor"
    OURS = "ours"
    PEER = "peer"


class NotOfferedError(Exception):
    """The contender has no such thing."""


class FailedError(Exception):
    """The contender could not be measured; the message says why."""


@dataclass(frozen=True)
class Settings:
    """How a worker runs. None: the contender's own choice."""

    batch_size: int | None = None
    threads: int = 1
    concurrency: int | None = None
    """Asks for a worker in an event loop that runs so many jobs at a time."""


class Contender:
    """One way to run jobs out of PostgreSQL.

    The harness calls ``open`` … ``close`` in its own process, where jobs are produced, and ``work``
    in a worker process, where it runs until the process is killed. Handlers are those of ``marks``.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    role: ClassVar[Role] = Role.PEER
    settings: ClassVar[str] = ""
    """What was set, and why, in one line for the reader of the report."""
    atomic: ClassVar[bool] = False
    """Does the row that a handler writes commit with the job's completion?"""
    requires: ClassVar[Sequence[str]] = ()
    """Distributions that it needs, to ask for their versions."""
    unfinished: ClassVar[str]
    """SQL that counts the jobs that have not durably ended."""
    backlogs: ClassVar[dict[str, str]] = {}
    """SQL that adds ``:n`` rows of a kind of backlog."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.database = urlsplit(dsn).path.removeprefix("/")

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Ask for the versions of the distributions it needs.

        :raises importlib.metadata.PackageNotFoundError: if one is not installed.
        """
        return {name: importlib.metadata.version(name) for name in cls.requires}

    def offers(self, kind: Kind, settings: Settings) -> bool:
        """Tell whether it runs such jobs in such a way."""
        return kind != "wait" and settings.concurrency is None

    def install(self) -> None:
        """Create the contender's schema in its empty database."""
        raise NotImplementedError

    def open(self) -> None:
        """Connect the producer."""
        raise NotImplementedError

    def close(self) -> None:
        """Disconnect the producer."""
        raise NotImplementedError

    def enqueue_one(self, kind: Kind, i: int, at: datetime | None = None) -> None:
        """Enqueue one job and commit."""
        raise NotImplementedError

    def enqueue_many(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs in the contender's fastest way, and commit."""
        raise NotImplementedError

    def enqueue_each(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs one after the other, each with a commit of its own."""
        for i in range(n):
            self.enqueue_one(kind, i)

    def work(self, settings: Settings) -> None:
        """Run jobs until the process is killed."""
        raise NotImplementedError

    def execute(self, *statements: str) -> None:
        """Run SQL on a connection of its own, committed one by one."""
        import psycopg

        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


class AsyncContender(Contender):
    """A contender whose producer is an asyncio program: one event loop for all its calls."""

    _runner: asyncio.Runner

    def open(self) -> None:
        """Connect the producer."""
        self._runner = asyncio.Runner(loop_factory=self.loop_factory())
        self.run(self.aopen())

    def close(self) -> None:
        """Disconnect the producer."""
        try:
            self.run(self.aclose())
        finally:
            self._runner.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the producer's event loop."""
        return self._runner.run(coroutine)

    def enqueue_each(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs without leaving the event loop in between."""
        self.run(self._enqueue_each(kind, n))

    async def _enqueue_each(self, kind: Kind, n: int) -> None:
        for i in range(n):
            await self.aenqueue(kind, i)

    def enqueue_one(self, kind: Kind, i: int, at: datetime | None = None) -> None:
        """Enqueue one job and commit."""
        self.run(self.aenqueue(kind, i, at))

    def work(self, settings: Settings) -> None:
        """Run jobs until the process is killed."""
        with asyncio.Runner(loop_factory=self.loop_factory()) as runner:
            runner.run(self.awork(settings))

    @staticmethod
    def loop_factory() -> Any:
        """Name the event loop to use: None for asyncio's own."""
        return None

    async def aopen(self) -> None:
        """Connect the producer."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Disconnect the producer."""
        raise NotImplementedError

    async def aenqueue(self, kind: Kind, i: int, at: datetime | None = None) -> None:
        """Enqueue one job and commit."""
        raise NotImplementedError

    async def awork(self, settings: Settings) -> None:
        """Run jobs until the process is killed."""
        raise NotImplementedError
