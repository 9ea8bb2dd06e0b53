"""The interface of a contender: the floor, the library itself and each peer.

This module and the contenders' modules import no library at module level: the memory of a worker
process is measured, so it must not contain the libraries of other contenders.
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
"""A ``wait`` job waits :data:`WAIT` seconds with ``asyncio.sleep``, as if for the network."""

Backlog = Literal["due", "future", "archived"]

WAIT = 0.1

# The table, in each contender's database, into which jobs of the kind "write" insert a row.
RESULT_TABLE = "CREATE TABLE bench_result (id bigserial PRIMARY KEY, job bigint NOT NULL)"
RESULT_INSERT = "INSERT INTO bench_result (job) VALUES (%s)"


class Role(StrEnum):
    """The role of a contender in the comparison."""

    FLOOR = "floor"
    OURS = "ours"
    VARIANT = "variant"
    """The library in another mode, or what it is compared with. Only measurements that name it run
    it."""
    PEER = "peer"


class NotOfferedError(Exception):
    """The contender does not offer the measured feature."""


class FailedError(Exception):
    """The contender could not be measured; the message has the reason."""


@dataclass(frozen=True)
class Settings:
    """The settings of a worker; None is the default of the contender."""

    batch_size: int | None = None
    threads: int = 1
    concurrency: int | None = None
    """If set, a worker in an event loop runs this number of jobs at a time."""


class Contender:
    """A way to run jobs that are stored in PostgreSQL.

    The harness calls ``open``, ``close`` and the methods that enqueue jobs in its own process. It
    calls ``work`` in a worker process, which runs until it is killed. All contenders use the
    handlers of ``marks``.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    role: ClassVar[Role] = Role.PEER
    settings: ClassVar[str] = ""
    """The settings and their reason, as one line of the report."""
    atomic: ClassVar[bool] = False
    """Whether the row that a handler inserts is committed together with the job's completion."""
    requires: ClassVar[Sequence[str]] = ()
    """The required distributions, whose versions are reported."""
    unfinished: ClassVar[str]
    """SQL that counts the jobs that have not durably finished."""
    backlogs: ClassVar[dict[str, str]] = {}
    """For each kind of backlog, SQL that inserts ``:n`` rows."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.database = urlsplit(dsn).path.removeprefix("/")

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Return the versions of the required distributions.

        :raises importlib.metadata.PackageNotFoundError: if one is not installed.
        """
        return {name: importlib.metadata.version(name) for name in cls.requires}

    def offers(self, kind: Kind, settings: Settings) -> bool:
        """Return whether the contender supports the kind of job and the settings."""
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
        """Enqueue ``n`` jobs in the contender's fastest way and commit."""
        raise NotImplementedError

    def enqueue_each(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs one after the other, each with its own commit."""
        for i in range(n):
            self.enqueue_one(kind, i)

    def work(self, settings: Settings) -> None:
        """Run jobs until the process is killed."""
        raise NotImplementedError

    def steps(self, n: int) -> dict[str, float]:  # noqa: ARG002 - for those that offer it
        """Run ``n`` jobs in this process, and return the microseconds of each step of one job."""
        raise NotOfferedError

    def execute(self, *statements: str) -> None:
        """Execute statements on a new connection, with a commit after each."""
        import psycopg

        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


class AsyncContender(Contender):
    """A contender whose producer uses asyncio, with one event loop for all calls."""

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
        """Enqueue ``n`` jobs in one run of the event loop."""
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
        """Return the factory of the event loop, or None for asyncio's default."""
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
