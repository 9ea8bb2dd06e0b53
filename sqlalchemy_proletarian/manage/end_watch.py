"""Watching for the end of jobs, for all who wait in one process.

One thread or task looks for all jobs that somebody waits for, with one query. It looks when it is
notified, and at growing intervals. It ends some time after the last one has stopped waiting.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import Any, Final

from sqlalchemy import CompoundSelect, Engine

from ..database.connections import cannot_connect
from ..errors import JobInterruptedError
from ..models.job_classes import job_table
from ..runtime.base import Flag, Runtime
from ..runtime.doorbell import Doorbell
from ..telemetry.events import Events
from ..wakeup.announce import DEBOUNCE, ring_at_ends
from ..wakeup.channels import end_channel_of
from ..wakeup.listener import Listener

_FIRST_PAUSE: Final = 2 * DEBOUNCE
"""Seconds after which it looks again when it was woken: a process that ends several jobs in a short
time announces only the first one at once."""

_LONGEST_PAUSE: Final = 1.0
_LONGEST_LISTENING: Final = 5.0
"""Seconds between two looks, without notifications and with them."""

_LINGER: Final = 1.0
"""Seconds for which it listens when nobody waits: a connection takes longer to open than many jobs
to run."""

_MOST: Final = 500
"""How many jobs one query looks for."""


def look(engine: Engine, ends: CompoundSelect[Any], ids: Sequence[Any]) -> dict[Any, Any]:
    """Return the rows of jobs by id, as the committed state is now."""
    with engine.connect() as connection:
        # The transaction has only this statement, which sees what was committed before. It is not
        # AUTOCOMMIT: asyncpg would send the statement in two transactions, and a connection pooler
        # gives the second one another session.
        return {row.job_id: row for row in connection.execute(ends, {"ids": ids})}


class Waiter:
    """Somebody who waits for the end of a job."""

    def __init__(self, job_id: Any, flag: Flag) -> None:
        self.job_id = job_id
        self.flag = flag
        """Set when the wait is over."""
        self.row: Any = None
        """The row of the job that has ended; None if the job is gone."""
        self.error: Exception | None = None
        """Why the last look has failed."""


class _QuietListener(Listener):
    """A listener whose loss is not reported: looking at intervals takes its place."""

    def _report_loss(self, error: Exception) -> None:
        pass


class _Watch:
    """Watches one pair of tables."""

    def __init__(
        self, key: Any, engine: Engine, ends: CompoundSelect[Any], channel: str, runtime: Runtime
    ) -> None:
        self.waiters: set[Waiter] = set()
        self.runtime = runtime
        self.doorbell = Doorbell(runtime.flag)
        self._key = key
        self._engine = engine
        self._ends = ends
        self._listener: Listener | None = None
        if Listener.supports(engine):
            self._listener = _QuietListener(
                engine,
                channels=(channel,),
                name=f"proletarian results {os.getpid()}",
                events=Events(None),
                runtime=runtime,
                receive=lambda _channel, _payload: self.doorbell.ring(),
            )

    def run(self) -> None:
        """Look until nobody has waited for some time."""
        ring_at_ends(self.doorbell)
        error: Exception = JobInterruptedError("the event loop ends")
        try:
            if self._listener is not None:
                self._listener.start()
            while self._watch():
                pass
        except Exception as raised:
            error = raised
        finally:
            for waiter in self.close():
                waiter.error = error
                waiter.flag.set()
            if self._listener is not None:
                self._listener.stop()

    def close(self) -> set[Waiter]:
        """Let the next one who waits begin another watch; return those who wait for this one."""
        with _lock:
            if _watches.get(self._key) is self:
                del _watches[self._key]
            left, self.waiters = self.waiters, set()
            return left

    def _watch(self) -> bool:
        """Look until nobody waits; return whether somebody waits again, after some time."""
        pause, last, looked = _FIRST_PAUSE, 0.0, 0.0
        while True:
            rings, last, looked = self.doorbell.rings(), looked, monotonic()
            if not (waiters := self._waiting()):
                break
            self._look_for(waiters)
            self.doorbell.wait(rings, pause)
            if self.doorbell.rings() > rings:
                pause = _FIRST_PAUSE
                if (early := last + DEBOUNCE - monotonic()) > 0:
                    self.runtime.flag().wait(early)
            else:
                is_listening = self._listener is not None and self._listener.active
                pause = min(2 * pause, _LONGEST_LISTENING if is_listening else _LONGEST_PAUSE)
        until = monotonic() + _LINGER
        while (left := until - monotonic()) > 0:
            rings = self.doorbell.rings()
            if self._waiting():
                break
            self.doorbell.wait(rings, left)
        with _lock:
            if not self.waiters and _watches.get(self._key) is self:
                del _watches[self._key]
            return bool(self.waiters)

    def _waiting(self) -> list[Waiter]:
        with _lock:
            return list(self.waiters)

    def _look_for(self, waiters: Sequence[Waiter]) -> None:
        for n in range(0, len(waiters), _MOST):
            part = waiters[n : n + _MOST]
            try:
                rows = look(self._engine, self._ends, list({one.job_id for one in part}))
            except Exception as error:
                if not cannot_connect(error):
                    raise
                for waiter in part:
                    waiter.error = error
                continue
            for waiter in part:
                waiter.row, waiter.error = rows.get(waiter.job_id), None
                if waiter.row is None or waiter.row.status is not None:
                    self._end(waiter)

    def _end(self, waiter: Waiter) -> None:
        with _lock:
            self.waiters.discard(waiter)
        waiter.flag.set()


_lock: Final = Lock()
_watches: Final[dict[Any, _Watch]] = {}
"""What this process watches. It is global, because all who wait share a connection."""


@contextmanager
def waiting(
    engine: Engine,
    ends: CompoundSelect[Any],
    job_id: Any,
    models: tuple[type[Any], type[Any]],
    *,
    runtime: Runtime,
    loop: Any = None,
) -> Generator[Waiter]:
    """Watch for the end of a job in the block; the flag of the waiter is set when it has ended.

    :param ends: the query for these models: those of the jobs and of their archive.
    :param loop: the running event loop, or None in threads.
    """
    key = engine, os.getpid(), loop, models
    waiter = Waiter(job_id, runtime.flag())
    with _lock:
        watch = _watches.get(key)
        is_new = watch is None
        if watch is None:
            channel = end_channel_of(str(job_table(models[0])))
            watch = _watches[key] = _Watch(key, engine, ends, channel, runtime)
        watch.waiters.add(waiter)
    try:
        if is_new:
            try:
                watch.runtime.spawn(watch.run, "results")
            except RuntimeError:  # the system cannot start another thread
                watch.close()
                raise
        watch.doorbell.ring()
        yield waiter
    finally:
        with _lock:
            watch.waiters.discard(waiter)
            is_last = not watch.waiters
        if is_last:
            watch.doorbell.ring()
