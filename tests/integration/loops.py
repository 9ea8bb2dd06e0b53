"""Helpers for tests that run in an event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from functools import wraps
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine

from sqlalchemy_proletarian import RunningJob, utcnow
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

from .kinds import LEASE
from .support import PATIENCE, SECOND, queued, rows

LIMIT = 30.0
"""Seconds after which a test that hangs fails."""

SOON = SECOND / 5

driver_and_hold = pytest.mark.parametrize(
    ("loop_engine", "held"),
    [("psycopg", {}), ("asyncpg", {"lease": LEASE})],
    ids=["psycopg-transaction", "asyncpg-lease"],
    indirect=True,
)
"""Runs a test with each driver and in each mode, but not with all combinations."""


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an ``async def`` test in its own event loop.

    The test fails if the loop reports an error or if a task is left. The AsyncEngines among its
    fixtures are disposed of at the end.
    """

    @wraps(test)
    def run(**fixtures: Any) -> None:
        errors: list[dict[str, Any]] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: errors.append(context))
            try:
                async with asyncio.timeout(LIMIT):
                    await test(**fixtures)
                    await until(lambda: not others())
            finally:
                for fixture in fixtures.values():
                    if isinstance(fixture, AsyncEngine):
                        await fixture.dispose()

        asyncio.run(main())
        gc.collect()  # reports exceptions that were never retrieved
        assert errors == []

    return run


def others() -> set[asyncio.Task[Any]]:
    """Return all tasks except the current one."""
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, "the condition never became true"
        await asyncio.sleep(0.005)


def connections(engine: Engine, name: str) -> int:
    """Return the number of connections of a worker."""
    count = text("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE :name")
    with engine.connect() as connection:
        return int(connection.scalar(count, {"name": f"{name}%"}) or 0)


async def drained(bind: Any, handlers: Any, **options: Any) -> int:
    """Run due jobs with a new worker, and return the number of runs."""
    return await AsyncQueueWorker(bind, handlers, **options).drain()


def all_is_due_again(engine: Engine, attempts: int = 0) -> bool:
    """Return whether all jobs are queued, due and unlocked, and no marker is left.

    :param attempts: the number of attempts that each job must have.
    """
    with engine.begin() as connection:
        free = connection.execute(text("SELECT 1 FROM proletarian.job FOR UPDATE SKIP LOCKED"))
        jobs = queued(engine)
        return (
            len(free.all()) == len(jobs) > 0
            and all(job.attempts == attempts and job.process_at <= utcnow() for job in jobs)
            and rows(engine, RunningJob) == []
        )
