"""Tests that run in an event loop, each in one of its own that is watched."""

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
"""Seconds after which a test that hangs has failed."""

SOON = SECOND / 5

driver_and_hold = pytest.mark.parametrize(
    ("loop_engine", "held"),
    [("psycopg", {}), ("asyncpg", {"lease": LEASE})],
    ids=["psycopg-transaction", "asyncpg-lease"],
    indirect=True,
)
"""Runs a test with each driver and each way to hold jobs, but not with all combinations."""


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an ``async def`` test in an event loop; no complaint and no task may be left in it.

    The AsyncEngines among its fixtures are disposed of with the loop.
    """

    @wraps(test)
    def run(**fixtures: Any) -> None:
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
            try:
                async with asyncio.timeout(LIMIT):
                    await test(**fixtures)
                    await until(lambda: not others())
            finally:
                for fixture in fixtures.values():
                    if isinstance(fixture, AsyncEngine):
                        await fixture.dispose()

        asyncio.run(main())
        gc.collect()  # what nobody retrieved is told now
        assert complaints == []

    return run


def others() -> set[asyncio.Task[Any]]:
    """Return the tasks beside the one that asks."""
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


def connections(engine: Engine, name: str) -> int:
    """Return how many connections a worker has."""
    count = text("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE :name")
    with engine.connect() as connection:
        return int(connection.scalar(count, {"name": f"{name}%"}) or 0)


async def drained(bind: Any, handlers: Any, **options: Any) -> int:
    """Run what is due with a worker of its own, and return how many runs that took."""
    return await AsyncQueueWorker(bind, handlers, **options).drain()


def all_is_due_again(engine: Engine, attempts: int = 0) -> bool:
    """Tell whether every job is queued, due, uncounted and free, and no marker is left."""
    with engine.begin() as connection:
        free = connection.execute(text("SELECT 1 FROM proletarian.job FOR UPDATE SKIP LOCKED"))
        jobs = queued(engine)
        return (
            len(free.all()) == len(jobs) > 0
            and all(job.attempts == attempts and job.process_at <= utcnow() for job in jobs)
            and rows(engine, RunningJob) == []
        )
