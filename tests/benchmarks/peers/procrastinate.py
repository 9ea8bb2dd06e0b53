"""procrastinate: asyncio, psycopg; it claims and finishes each job with a stored function call.

Best documented settings: ``concurrency`` (according to its docs for asynchronous tasks), a large
enough pool of connections, and ``delete_jobs="successful"``, which deletes finished jobs.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, ClassVar

from tests.benchmarks import marks
from tests.benchmarks.contender import (
    RESULT_INSERT,
    RESULT_TABLE,
    WAIT,
    AsyncContender,
    Kind,
    Settings,
)

FILL = (
    "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, scheduled_at) "
    "SELECT 'default', 'noop', '{\"i\": 1}', 'STATUS', SCHEDULED FROM generate_series(1, :n)"
)


class Procrastinate(AsyncContender):
    """procrastinate with the settings of its quick start."""

    name = "procrastinate"
    label = "procrastinate"
    settings = "defaults: concurrency=1, finished jobs stay in the table"
    requires = ("procrastinate", "psycopg")
    unfinished = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
    backlogs: ClassVar[dict[str, str]] = {
        "due": FILL.replace("STATUS", "todo").replace("SCHEDULED", "NULL"),
        "future": FILL.replace("STATUS", "todo").replace("SCHEDULED", "now() + interval '1 day'"),
        "archived": FILL.replace("STATUS", "succeeded").replace("SCHEDULED", "NULL"),
    }
    options: ClassVar[dict[str, Any]] = {}
    pool: ClassVar[dict[str, Any]] = {}

    _app: Any
    _tasks: dict[str, Any]

    def _make(self) -> tuple[Any, dict[str, Any]]:
        import procrastinate

        connector = procrastinate.PsycopgConnector(conninfo=self.dsn, **self.pool)
        app = procrastinate.App(connector=connector)

        @app.task(name="noop")
        async def noop(i: int) -> None:
            marks.noop(i)

        @app.task(name="stamp")
        async def stamp(i: int) -> None:
            marks.stamp(i)

        @app.task(name="write")
        async def write(i: int) -> None:
            async with connector.pool.connection() as connection:
                await connection.execute(RESULT_INSERT, [i])
            marks.noop(i)

        @app.task(name="wait")
        async def wait(i: int) -> None:
            marks.noop(i)
            await asyncio.sleep(WAIT)

        return app, {"noop": noop, "stamp": stamp, "write": write, "wait": wait}

    def offers(self, kind: Kind, settings: Settings) -> bool:  # noqa: ARG002 - all kinds
        """Return whether the contender supports the kind of job and the settings."""
        return settings.threads == 1 and settings.batch_size is None

    def install(self) -> None:
        """Create the peer's schema."""
        self.open()
        try:
            self.run(self._app.schema_manager.apply_schema_async())
        finally:
            self.close()
        self.execute(RESULT_TABLE)

    async def aopen(self) -> None:
        """Connect the producer."""
        self._app, self._tasks = self._make()
        await self._app.open_async()

    async def aclose(self) -> None:
        """Disconnect the producer."""
        await self._app.close_async()

    async def aenqueue(self, kind: Kind, i: int, at: datetime | None = None) -> None:
        """Enqueue one job and commit."""
        task = self._tasks[kind]
        await (task if at is None else task.configure(schedule_at=at)).defer_async(i=i)

    def enqueue_many(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs with one call and commit."""
        self.run(self._tasks[kind].batch_defer_async(*({"i": i} for i in range(n))))

    async def awork(self, settings: Settings) -> None:
        """Run jobs until the process is killed."""
        app, _ = self._make()
        options = dict(self.options)
        if settings.concurrency is not None:
            options["concurrency"] = settings.concurrency
        async with app.open_async():
            await app.run_worker_async(install_signal_handlers=False, **options)


class ProcrastinateBest(Procrastinate):
    """procrastinate with concurrent tasks, which deletes finished jobs."""

    name = "procrastinate-best"
    label = "procrastinate, tuned"
    settings = "concurrency=20, pool of 20, delete_jobs=successful"
    options: ClassVar[dict[str, Any]] = {"concurrency": 20, "delete_jobs": "successful"}
    pool: ClassVar[dict[str, Any]] = {"min_size": 4, "max_size": 20}
