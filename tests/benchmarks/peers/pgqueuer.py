"""pgqueuer: asyncio, asyncpg; a claim is a write, and completions are logged in batches.

Best documented settings: a larger ``batch_size`` (the number of jobs of a claim and of completions
that are written together), uvloop (which its own command line uses) and the autovacuum settings
that it offers.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from tests.benchmarks import marks
from tests.benchmarks.contender import RESULT_TABLE, WAIT, AsyncContender, Kind, Settings


class PgQueuer(AsyncContender):
    """pgqueuer with the settings of its quick start: one asyncpg connection, all defaults."""

    name = "pgqueuer"
    label = "pgqueuer"
    settings = "defaults: batch_size=10, one asyncpg connection"
    requires = ("pgqueuer", "asyncpg")
    unfinished = "SELECT count(*) FROM pgqueuer"
    backlogs: ClassVar[dict[str, str]] = {
        "due": (
            "INSERT INTO pgqueuer (priority, status, entrypoint, payload) "
            "SELECT 0, 'queued', 'noop', '{\"i\": 1}'::bytea FROM generate_series(1, :n)"
        ),
        "future": (
            "INSERT INTO pgqueuer (priority, status, entrypoint, payload, execute_after) "
            "SELECT 0, 'queued', 'noop', '{\"i\": 1}'::bytea, now() + interval '1 day' "
            "FROM generate_series(1, :n)"
        ),
        "archived": (
            "INSERT INTO pgqueuer_log (job_id, status, priority, entrypoint, aggregated) "
            "SELECT g, 'successful', 0, 'noop', true FROM generate_series(1, :n) AS g"
        ),
    }
    batch_size = 10

    _connection: Any
    _queries: Any

    def offers(self, kind: Kind, settings: Settings) -> bool:  # noqa: ARG002 - all kinds
        """Return whether the contender supports the kind of job and the settings."""
        return settings.threads == 1

    def install(self) -> None:
        """Create the peer's schema."""
        self.open()
        try:
            self.run(self._queries.install())
        finally:
            self.close()
        self.execute(RESULT_TABLE)

    async def aopen(self) -> None:
        """Connect the producer."""
        import asyncpg
        from pgqueuer.queries import Queries

        self._connection = await asyncpg.connect(self.dsn)
        self._queries = Queries.from_asyncpg_connection(self._connection)

    async def aclose(self) -> None:
        """Disconnect the producer."""
        await self._connection.close()

    async def aenqueue(self, kind: Kind, i: int, at: datetime | None = None) -> None:
        """Enqueue one job and commit."""
        after = None if at is None else at - datetime.now(UTC)
        await self._queries.enqueue(kind, b'{"i": %d}' % i, 0, after)

    def enqueue_many(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs with one call and commit."""
        payloads = [b'{"i": %d}' % i for i in range(n)]
        self.run(self._queries.enqueue([kind] * n, payloads, [0] * n))

    async def awork(self, settings: Settings) -> None:
        """Run jobs until the process is killed."""
        import asyncpg
        from pgqueuer import PgQueuer as Worker
        from pgqueuer.models import Job

        connection = await asyncpg.connect(self.dsn)
        pool = await asyncpg.create_pool(self.dsn, min_size=1, max_size=5)
        worker = Worker.from_asyncpg_connection(connection)

        @worker.entrypoint("noop")
        async def noop(job: Job) -> None:
            marks.noop(json.loads(job.payload or b"")["i"])

        @worker.entrypoint("stamp")
        async def stamp(job: Job) -> None:
            marks.stamp(json.loads(job.payload or b"")["i"])

        @worker.entrypoint("write")
        async def write(job: Job) -> None:
            i = json.loads(job.payload or b"")["i"]
            await pool.execute("INSERT INTO bench_result (job) VALUES ($1)", i)
            marks.noop(i)

        @worker.entrypoint("wait", concurrency_limit=settings.concurrency or 0)
        async def wait(job: Job) -> None:
            marks.noop(json.loads(job.payload or b"")["i"])
            await asyncio.sleep(WAIT)

        await worker.run(
            dequeue_timeout=timedelta(seconds=30),
            batch_size=settings.batch_size or settings.concurrency or self.batch_size,
        )


class PgQueuerBest(PgQueuer):
    """pgqueuer with the settings that its documentation recommends for speed."""

    name = "pgqueuer-best"
    label = "pgqueuer, tuned"
    settings = "batch_size=500, uvloop, its own autovacuum settings"
    batch_size = 500

    def install(self) -> None:
        """Create the peer's schema, with its autovacuum settings."""
        super().install()
        self.open()
        try:
            self.run(self._queries.optimize_autovacuum())
        finally:
            self.close()

    @staticmethod
    def loop_factory() -> Any:
        """Return uvloop's factory of event loops."""
        import uvloop

        return uvloop.new_event_loop
