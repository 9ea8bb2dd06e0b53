"""What is wrong when a worker starts: a look at the database, and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, QueuePool, Row, select

from ...models.job_classes import job_table
from ...store import statistics
from ...worker.options import WorkerSettings
from .build import Built
from .parameters import duration_text
from .target import names

_ROWS: Final = 1000
"""How many jobs of each queue are read."""
_QUEUES: Final = 100
"""How many queues are read; one statement counts them."""


@dataclass(frozen=True)
class Waiting:
    """Due jobs of one type in one queue."""

    queue: str
    job_type: str
    jobs: int
    """Exact up to a limit."""
    age: timedelta

    @property
    def count(self) -> str:
        """The number of jobs as text."""
        if self.jobs >= _ROWS:
            return f"{_ROWS} or more jobs"
        return "1 job" if self.jobs == 1 else f"{self.jobs} jobs"


def survey(built: Built) -> list[str]:
    """Check the tables, and return warnings of what is probably not intended.

    :raises DatabaseNotReadyError: if the tables or the privileges of the role do not fit.
    """
    built.core._check_tables()
    settings = built.core.settings
    with settings.engine.connect() as connection:
        waiting = _waiting(connection, settings)
        paused = _paused(connection, settings)
    unserved = {found.queue for found in waiting} - set(settings.queues)
    return [
        *_unserved(unserved, waiting),
        *_without_handler(settings, waiting),
        *_handlers_elsewhere(settings, unserved),
        *paused,
        *_pool(built),
    ]


def _waiting(connection: Connection, settings: WorkerSettings) -> list[Waiting]:
    job, now = job_table(settings.job_model), settings.now()
    queues = connection.scalars(statistics.queue_names(job)).all()[:_QUEUES]
    if not queues:
        return []
    rows = connection.execute(statistics.queued(job, None, queues, _ROWS, now)).all()
    return [_as_waiting(row, now) for row in rows if row.state == statistics.DUE]


def _as_waiting(row: Row[Any], now: datetime) -> Waiting:
    return Waiting(row.queue, row.job_type, row.jobs, max(now - row.first, timedelta()))


def _unserved(queues: set[str], waiting: list[Waiting]) -> Iterator[str]:
    for queue in sorted(queues):
        found = [one for one in waiting if one.queue == queue]
        jobs = Waiting(queue, "", sum(one.jobs for one in found), max(one.age for one in found))
        age = duration_text(timedelta(seconds=int(jobs.age.total_seconds())))
        yield (
            f"this worker does not serve the queue {queue!r}, in which {jobs.count} "
            f"{_is_due(jobs)}, the oldest for {age}"
        )


def _without_handler(settings: WorkerSettings, waiting: list[Waiting]) -> Iterator[str]:
    for found in waiting:
        is_served = found.queue in settings.queues
        if is_served and settings.handlers.find(found.job_type, settings.job_model) is None:
            yield (
                f"there is no handler of the type {found.job_type!r}, of which {found.count} "
                f"{_is_due(found)} in the queue {found.queue!r}"
            )


def _is_due(found: Waiting) -> str:
    return "is due" if found.jobs == 1 else "are due"


def _handlers_elsewhere(settings: WorkerSettings, known: set[str]) -> Iterator[str]:
    elsewhere: dict[str, list[str]] = {}
    if settings.handlers.types(settings.job_model) is None:  # a callable for every type
        return
    for handler in settings.handlers:
        if handler.queue not in known.union(settings.queues):
            elsewhere.setdefault(handler.queue, []).append(handler.job_type)
    for queue, types in elsewhere.items():
        yield (
            f"this worker does not serve the queue {queue!r}, to which {names(types)} "
            f"{'is' if len(types) == 1 else 'are'} enqueued"
        )


def _paused(connection: Connection, settings: WorkerSettings) -> list[str]:
    if settings.paused is None:
        return []
    paused = settings.paused.c
    statement = select(paused.queue).where(paused.queue.in_(settings.queues))
    found = connection.scalars(statement.order_by(paused.queue)).all()
    return [f"the queue {queue!r} is paused" for queue in found]


def _pool(built: Built) -> Iterator[str]:
    """Compare the pool with the jobs at a time: only leased handlers' sessions use it."""
    settings, pool = built.core.settings, built.engine.pool
    if settings.lease is None or not isinstance(pool, QueuePool):
        return
    if not any(handler.needs_session for handler in settings.handlers):
        return
    most = pool.size() + pool._max_overflow
    if pool._max_overflow >= 0 and most < settings.concurrency:
        remedy = f"--pool-size {settings.concurrency}" if built.own_engine else "pool_size="
        yield (
            f"{settings.concurrency} handlers at a time may need more than the {most} connections "
            f"of the engine's pool, and then wait for one: {remedy}"
        )
