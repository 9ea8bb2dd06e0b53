"""chancy: asyncio, psycopg; it claims a job per free slot and writes completions every second.

Best documented settings: ``eager_polling`` (it polls again when a job ends; without it, a backlog
is drained at ``concurrency`` jobs per ``polling_interval``), the asyncio executor (according to its
docs for many waiting jobs) with a high ``concurrency``, and the smallest polling interval.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any, ClassVar

from tests.benchmarks import marks
from tests.benchmarks.contender import RESULT_INSERT, RESULT_TABLE, AsyncContender, Kind, Settings


@cache
def connection(dsn: str) -> Any:
    """Return the connection of the process."""
    import psycopg

    return psycopg.connect(dsn, autocommit=True)


@cache
def async_pool(dsn: str) -> Any:
    """Return the connection pool of the process."""
    import psycopg_pool

    return psycopg_pool.AsyncConnectionPool(
        dsn, max_size=5, open=False, kwargs={"autocommit": True}
    )


def noop(*, i: int) -> None:
    """Do nothing, in the process executor."""
    marks.noop(i)


def stamp(*, i: int) -> None:
    """Record the start, in the process executor."""
    marks.stamp(i)


def write(*, dsn: str, i: int) -> None:
    """Insert a row, in the process executor, on a connection that the process keeps."""
    connection(dsn).execute(RESULT_INSERT, [i])
    marks.noop(i)


async def anoop(*, i: int) -> None:
    """Do nothing, in the asyncio executor."""
    marks.noop(i)


async def astamp(*, i: int) -> None:
    """Record the start, in the asyncio executor."""
    marks.stamp(i)


async def awrite(*, dsn: str, i: int) -> None:
    """Insert a row, in the asyncio executor, on a connection of a separate pool."""
    pool = async_pool(dsn)
    await pool.open()
    async with pool.connection() as connection:
        await connection.execute(RESULT_INSERT, [i])
    marks.noop(i)


class Chancy(AsyncContender):
    """chancy with the settings of its quick start: the process executor."""

    name = "chancy"
    label = "chancy"
    settings = "defaults: processes, one per core; polls every 5 s"
    requires = ("chancy", "psycopg")
    unfinished = (
        "SELECT count(*) FROM chancy_jobs WHERE state IN ('pending', 'running', 'retrying')"
    )
    functions: ClassVar[dict[str, Any]] = {"noop": noop, "stamp": stamp, "write": write}
    queue: ClassVar[dict[str, Any]] = {}

    _app: Any

    def install(self) -> None:
        """Create the peer's schema and queue."""
        self.open()
        try:
            self.run(self._migrate())
        finally:
            self.close()
        self.execute(RESULT_TABLE)

    async def _migrate(self) -> None:
        from chancy import Queue

        await self._app.migrate()
        await self._app.declare(Queue(name="default", **self.queue), upsert=True)

    async def aopen(self) -> None:
        """Connect the producer."""
        self._app = self._make()
        await self._app.__aenter__()

    def _make(self) -> Any:
        import logging

        from chancy import Chancy as App

        logger = logging.getLogger("chancy")
        logger.setLevel(logging.WARNING)
        return App(self.dsn, log=logger)

    async def aclose(self) -> None:
        """Disconnect the producer."""
        await self._app.__aexit__(None, None, None)

    def _job(self, kind: Kind, i: int, at: datetime | None = None) -> Any:
        from chancy import Job

        function = self.functions[kind]
        kwargs: dict[str, Any] = {"i": i}
        if kind == "write":
            kwargs["dsn"] = self.dsn
        options = {} if at is None else {"scheduled_at": at}
        return Job.from_func(function, kwargs=kwargs, queue="default", **options)

    async def aenqueue(self, kind: Kind, i: int, at: datetime | None = None) -> None:
        """Enqueue one job and commit."""
        await self._app.push(self._job(kind, i, at))

    def enqueue_many(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs with the bulk call, by default 1,000 per transaction."""
        self.run(self._push_many([self._job(kind, i) for i in range(n)]))

    async def _push_many(self, jobs: list[Any]) -> None:
        async for _ in self._app.push_many(jobs):
            pass

    async def awork(self, settings: Settings) -> None:  # noqa: ARG002 - not configurable
        """Run jobs until the process is killed."""
        from chancy import Worker

        async with self._make() as app, Worker(app) as worker:
            await worker.wait_for_shutdown()


class ChancyBest(Chancy):
    """chancy with the asyncio executor, eager polling and a high concurrency."""

    name = "chancy-best"
    label = "chancy, tuned"
    settings = "asyncio executor, concurrency=1000, eager_polling, polling_interval=1"
    functions: ClassVar[dict[str, Any]] = {"noop": anoop, "stamp": astamp, "write": awrite}
    queue: ClassVar[dict[str, Any]] = {
        "executor": "chancy.executors.asyncex.AsyncExecutor",
        "concurrency": 1000,
        "eager_polling": True,
        "polling_interval": 1,
    }
