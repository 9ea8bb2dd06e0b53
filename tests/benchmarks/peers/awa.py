"""awa: a worker written in Rust that calls Python handlers; it rotates append-only tables.

Best documented settings: more workers per queue, COPY to enqueue, claimers with large batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from tests.benchmarks import marks
from tests.benchmarks.contender import RESULT_INSERT, RESULT_TABLE, AsyncContender, Kind, Settings


@dataclass
class Noop:
    """The arguments of a job that does nothing."""

    i: int


@dataclass
class Stamp:
    """The arguments of a job that records its start."""

    i: int


@dataclass
class Write:
    """The arguments of a job that inserts a row."""

    i: int


ARGUMENTS: dict[str, Any] = {"noop": Noop, "stamp": Stamp, "write": Write}


class Awa(AsyncContender):
    """awa with the settings of its quick start: four workers for a queue."""

    name = "awa"
    label = "awa"
    settings = "as in its quick start: 4 workers"
    requires = ("awa-pg", "psycopg")
    queue: ClassVar[Any] = ("default", 4)
    start: ClassVar[dict[str, Any]] = {}

    # Its view of all jobs would work, too, but takes seconds, which would count against awa.
    unfinished = (
        "SELECT (SELECT count(*) FROM awa.ready_entries)"
        " - (SELECT coalesce(sum(completed_count), 0) FROM awa.receipt_completion_batches)"
        " - (SELECT count(*) FROM awa.done_entries)"
    )

    _client: Any

    def install(self) -> None:
        """Create the peer's schema."""
        self.open()
        try:
            self.run(self._client.migrate())
            self.run(self._client.install_queue_storage())
        finally:
            self.close()
        self.execute(RESULT_TABLE)

    async def aopen(self) -> None:
        """Connect the producer."""
        from awa import AsyncClient

        self._client = AsyncClient(self._url())

    def _url(self) -> str:
        """Return the URL with a host, which the driver requires even with a socket directory."""
        return self.dsn.replace("@/", "@localhost/").replace(":///", "://localhost/")

    async def aclose(self) -> None:
        """Disconnect the producer."""
        await self._client.close()

    async def aenqueue(self, kind: Kind, i: int, at: datetime | None = None) -> None:
        """Enqueue one job and commit."""
        await self._client.insert(ARGUMENTS[kind](i), queue="default", run_at=at)

    def enqueue_many(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs with COPY and commit."""
        self.run(self._enqueue_many(kind, n))

    async def _enqueue_many(self, kind: Kind, n: int) -> None:
        arguments = ARGUMENTS[kind]
        await self._client.enqueue_many_copy([arguments(i) for i in range(n)], queue="default")

    async def awork(self, settings: Settings) -> None:  # noqa: ARG002 - not configurable
        """Run jobs until the process is killed."""
        import asyncio

        import psycopg_pool
        from awa import AsyncClient

        client = AsyncClient(self._url())
        pool = psycopg_pool.AsyncConnectionPool(
            self.dsn, max_size=5, open=False, kwargs={"autocommit": True}
        )
        await pool.open()

        @client.task(Noop, queue="default")
        async def noop(job: Any) -> None:
            marks.noop(job.args.i)

        @client.task(Stamp, queue="default")
        async def stamp(job: Any) -> None:
            marks.stamp(job.args.i)

        @client.task(Write, queue="default")
        async def write(job: Any) -> None:
            async with pool.connection() as connection:
                await connection.execute(RESULT_INSERT, [job.args.i])
            marks.noop(job.args.i)

        await client.start([self.queue], **self.start)
        await asyncio.Event().wait()


class AwaBest(Awa):
    """awa with many workers for the queue."""

    name = "awa-best"
    label = "awa, tuned"
    settings = "256 workers, 2 claimers, claims of 512"
    queue: ClassVar[Any] = {
        "name": "default",
        "max_workers": 256,
        "claimers": 2,
        "claim_batch_size": 512,
    }
