"""Oban for Python: asyncio, psycopg; it claims a job per free slot and acknowledges in batches.

Best documented settings: a larger queue limit. The limit is the number of jobs that run at a time,
and so also the size of a claim and of an acknowledgement.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.benchmarks import marks
from tests.benchmarks.contender import RESULT_INSERT, RESULT_TABLE, AsyncContender, Kind, Settings


class Oban(AsyncContender):
    """Oban with the settings of its quick start: a queue limit of ten."""

    name = "oban"
    label = "oban"
    settings = "as in its quick start: queues={default: 10}"
    requires = ("oban", "psycopg")
    unfinished = (
        "SELECT count(*) FROM oban_jobs "
        "WHERE state IN ('available', 'scheduled', 'executing', 'retryable')"
    )
    limit = 10

    _pool: Any
    _app: Any
    _workers: dict[str, Any]

    def _register(self, pool: Any) -> dict[str, Any]:
        from oban import worker

        @worker(queue="default")
        class Noop:
            async def process(self, job: Any) -> None:
                marks.noop(job.args["i"])

        @worker(queue="default")
        class Stamp:
            async def process(self, job: Any) -> None:
                marks.stamp(job.args["i"])

        @worker(queue="default")
        class Write:
            async def process(self, job: Any) -> None:
                async with pool.connection() as connection:
                    await connection.execute(RESULT_INSERT, [job.args["i"]])
                marks.noop(job.args["i"])

        return {"noop": Noop, "stamp": Stamp, "write": Write}

    def install(self) -> None:
        """Create the peer's schema."""
        self.open()
        try:
            self.run(self._install())
        finally:
            self.close()
        self.execute(RESULT_TABLE)

    async def _install(self) -> None:
        from oban.schema import install

        await install(self._pool)

    async def aopen(self) -> None:
        """Connect the producer."""
        from oban import Oban as App

        self._pool = await App.create_pool(self.dsn)
        self._workers = self._register(self._pool)
        self._app = App(pool=self._pool)

    async def aclose(self) -> None:
        """Disconnect the producer."""
        await self._pool.close()

    async def aenqueue(self, kind: Kind, i: int, at: datetime | None = None) -> None:
        """Enqueue one job and commit."""
        options = {} if at is None else {"scheduled_at": at}
        await self._app.enqueue(self._workers[kind].new({"i": i}, **options))

    def enqueue_many(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs with one call and commit."""
        new = self._workers[kind].new
        self.run(self._app.enqueue_many([new({"i": i}) for i in range(n)]))

    async def awork(self, settings: Settings) -> None:  # noqa: ARG002 - not configurable
        """Run jobs until the process is killed."""
        import asyncio

        from oban import Oban as App

        pool = await App.create_pool(self.dsn, max_size=10)
        self._register(pool)
        async with App(pool=pool, queues={"default": self.limit}):
            await asyncio.Event().wait()


class ObanBest(Oban):
    """Oban with a large queue limit."""

    name = "oban-best"
    label = "oban, tuned"
    settings = "queues={default: 1000}, uvloop"
    limit = 1000

    @staticmethod
    def loop_factory() -> Any:
        """Return uvloop's factory of event loops."""
        import uvloop

        return uvloop.new_event_loop
