"""The gauges of queues: how many jobs they have, and for how long the oldest has been due."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable
from datetime import timedelta
from threading import Lock, get_ident
from time import monotonic
from typing import Any, Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from ..manage.stats import JobCounts, Stats, stats
from ..telemetry.limited import Limited
from .names import PROLETARIAN, QUEUE, STATE, SYSTEM

_STATES: Final = ("due", "running", "scheduled", "retrying", "waiting", "refused")

_FRESH: Final = 1.0
"""Seconds for which statistics are used again: one collection asks for each gauge."""

_TIMEOUT: Final = 10.0
"""Seconds to wait for an event loop."""

_WINDOW: Final = timedelta(seconds=1)
"""How far back ended jobs are counted, which no gauge shows."""

Read = Callable[[], Stats | None]


class Gauges:
    """Two observable gauges of one meter, which can be given another source or none."""

    def __init__(self, meter: Meter) -> None:
        self.read: Read | None = None
        """Returns statistics; None if there is nothing to report."""
        self._queues = Limited()
        self._seen: dict[str, None] = {}
        self._lock = Lock()
        self._read_at = -_FRESH
        self._found: Stats | None = None
        meter.create_observable_gauge(
            "proletarian.queue.jobs", [self._jobs], "{job}", "Jobs in a queue, by their state."
        )
        meter.create_observable_gauge(
            "proletarian.queue.oldest_due",
            [self._oldest],
            "s",
            "For how long the first due job of a queue has been due; 0 if none is due.",
        )

    def use(self, read: Read | None) -> None:
        """Report the statistics of this source from now on."""
        with self._lock:
            self.read, self._found, self._read_at = read, None, -_FRESH
            self._seen.clear()

    def _jobs(self, _options: CallbackOptions) -> Iterable[Observation]:
        totals: dict[tuple[str, str], int] = {}
        for name, counts in self._queues_now():
            for state in _STATES:
                key = name, state
                totals[key] = totals.get(key, 0) + getattr(counts, state)
        for (name, state), number in totals.items():
            yield Observation(number, {SYSTEM: PROLETARIAN, QUEUE: name, STATE: state})

    def _oldest(self, _options: CallbackOptions) -> Iterable[Observation]:
        oldest: dict[str, float] = {}
        for name, counts in self._queues_now():
            due = timedelta(0) if counts.oldest_due is None else counts.oldest_due
            oldest[name] = max(oldest.get(name, 0.0), due.total_seconds())
        for name, seconds in oldest.items():
            yield Observation(seconds, {SYSTEM: PROLETARIAN, QUEUE: name})

    def _queues_now(self) -> list[tuple[str, JobCounts]]:
        """Return what there is to report of each queue, also of those that have become empty."""
        with self._lock:
            if self.read is None:
                return []
            if monotonic() - self._read_at >= _FRESH:
                self._found = self.read()
                self._read_at = monotonic()
            if self._found is None:
                return []
            found = {name: (self._queues(name), c) for name, c in self._found.queues.items()}
            self._seen.update(dict.fromkeys(label for label, _ in found.values()))
            reported = {label for label, _ in found.values()}
            empty = [(name, JobCounts(name, None)) for name in self._seen if name not in reported]
            return [*found.values(), *empty]


def reader(engine: Any, **models: Any) -> Read:
    """Return a function that reads the statistics of a database.

    :param engine: an Engine, or an AsyncEngine of the running event loop.
    :param models: the arguments of :func:`.stats`.
    :raises RuntimeError: if it is an AsyncEngine, and no event loop is running.
    :raises TypeError: if it is something else.
    """
    if isinstance(engine, Engine):
        return lambda: _read(engine, models)
    # By its name, because a program without asyncio has no such class in memory.
    if not any(base.__name__ == "AsyncEngine" for base in type(engine).__mro__):
        msg = f"engine must be an Engine or an AsyncEngine, not {engine!r:.100}"
        raise TypeError(msg)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        msg = (
            "an AsyncEngine is used in the event loop in which instrument() is called, and none is "
            "running: call it in a coroutine, or pass an Engine"
        )
        raise RuntimeError(msg) from None
    return _InLoop(loop, get_ident(), engine, models)


def _read(engine: Engine, models: dict[str, Any]) -> Stats:
    with Session(engine) as session:
        return stats(session, window=_WINDOW, **models)


class _InLoop:
    """Reads statistics in an event loop, from another thread."""

    def __init__(
        self, loop: AbstractEventLoop, thread: int, engine: Any, models: dict[str, Any]
    ) -> None:
        self._loop = loop
        self._thread = thread
        self._engine = engine
        self._models = models
        self._last: Stats | None = None

    def __call__(self) -> Stats | None:
        """Return statistics; None if the event loop is closed.

        In the thread of the event loop, which must not wait for itself, return the last ones.
        """
        if self._loop.is_closed():
            return None
        if get_ident() == self._thread:
            return self._last
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        try:
            self._last = reading.result(_TIMEOUT)
        except TimeoutError:
            reading.cancel()
            raise
        return self._last

    async def _read(self) -> Stats:
        from sqlalchemy.ext.asyncio import AsyncSession

        from ..manage.awaitable import stats as read

        async with AsyncSession(self._engine) as session:
            found: Stats = await read(session, window=_WINDOW, **self._models)
            return found
