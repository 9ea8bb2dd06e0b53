"""Releasing jobs that wait for a limit.

Usually the worker that held a place releases the next jobs. The others are found here: those that
wait for a rate, those whose worker was killed before it could release them, and those whose type
has lost its limit in a deploy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from threading import Lock
from time import monotonic
from typing import Final

from sqlalchemy import Connection

from ..clock import Clock
from ..lifecycle.limits import rate_name
from ..runtime.interval import Interval
from ..store.base import Store
from ..store.places import PlaceTable
from ..store.waiting import WaitingJobs
from ..wakeup.announce import announce_on
from .places import Places
from .rates import RateStarts
from .rules import LimitRules

INTERVAL: Final = 1.0
"""Seconds between two looks of a worker whose handlers have limits."""

_NAMES: Final = 50
"""For how many limits one look releases jobs."""

_MOST: Final = 1000
"""How many jobs are released at once whose type has no limit any more."""

_CLEAN_UP: Final = 300.0
"""Seconds between two deletions of places that are no longer used."""

_SOON: Final = 0.05


class Look:
    """Looks for waiting jobs that may run; shared by the members of a worker.

    :param table: the table of places; None if no handler of the worker has a limit.
    :param interval: seconds between two looks.
    """

    def __init__(
        self,
        store: Store,
        rules: LimitRules,
        *,
        waiting: WaitingJobs,
        table: PlaceTable | None,
        now: Clock,
        shared_time: Clock,
        stopping: Callable[[], bool],
        interval: float = INTERVAL,
    ) -> None:
        self._store = store
        self._rules = rules
        self._waiting = waiting
        self._table = table
        self._now = now
        self._shared_time = shared_time
        self._stopping = stopping
        self._places = None if table is None else Places(table, now, leased=store.leased)
        self._rates = None if table is None else RateStarts(table, now, shared_time)
        self._interval = Interval(interval)
        self._clean_up = Interval(_CLEAN_UP)
        self._clean_up.has_passed()  # not at the start of each worker
        self._after = ""
        self._times: dict[str, float] = {}
        self._lock = Lock()

    # Regularly.

    def __call__(self, connection: Connection) -> None:
        """Release jobs, if it is time for it.

        :param connection: one that is not in a transaction.
        """
        if self._times and min(self._times.values(), default=0) <= monotonic():
            for name in self._take_due():
                self._visit(connection, name)
        if self._interval.has_passed():
            self._visit_all(connection)
        if self._table is not None and self._clean_up.has_passed():
            with self._store.begin(connection):
                self._table.delete_old(connection, self._now(), self._shared_time())

    def _take_due(self) -> list[str]:
        with self._lock:
            due = [name for name, at in self._times.items() if at <= monotonic()]
            for name in due:
                del self._times[name]
        return due

    def _visit_all(self, connection: Connection) -> None:
        with self._store.begin(connection):
            names = self._waiting.names(connection, self._after, _NAMES)
        self._after = names[-1] if len(names) == _NAMES else ""
        for name in names:
            self._visit(connection, name)

    def _visit(self, connection: Connection, name: str) -> None:
        """Release the jobs that may run and wait for one limit."""
        with self._store.begin(connection):
            job_type = self._waiting.type_of(connection, name)
            if job_type is None or not self._rules.knows(job_type):
                return  # workers of another release may have its limit
            count = self._count(connection, name, job_type)
            released = self._release(connection, name, count, announced=True) if count else 0
        if count is not None and released == _MOST:
            self._interval.end()

    def _count(self, connection: Connection, name: str, job_type: str) -> int:
        """Return how many of the jobs that wait for a limit may run."""
        limit = self._rules.limit_of(job_type)
        if limit is None or self._places is None or self._rates is None:
            return _MOST
        if name == rate_name(job_type):
            if limit.rate is None:
                return _MOST
            count, at = self._rates.available(connection, job_type, limit.rate)
            soon = max(_SOON, limit.rate.period.total_seconds() / 20)
            self._look_in(name, soon if count > 0 else self._seconds_to(at))
            return max(count, 0)
        if limit.concurrency is None:
            return _MOST
        return self._places.free(connection, name, limit.concurrency, self._shared_time)

    def look_at(self, name: str, at: datetime) -> None:
        """Look at a time for jobs that wait for a rate."""
        self._look_in(name, self._seconds_to(at))

    def _look_in(self, name: str, seconds: float) -> None:
        with self._lock:
            at = monotonic() + max(seconds, _SOON)
            self._times[name] = min(at, self._times.get(name, at))

    def _seconds_to(self, at: datetime) -> float:
        return (at - self._shared_time()).total_seconds()

    def patience(self) -> float | None:
        """Return the number of seconds until the next look for a rate; None if there is none."""
        with self._lock:
            at = min(self._times.values(), default=None)
        return None if at is None else max(0.0, at - monotonic())

    # After a commit.

    def hand_over(
        self, connection: Connection, freed: Mapping[str, int], parked: Iterable[str]
    ) -> bool:
        """Release the next jobs for places that have become free; return whether there were any.

        :param freed: how many jobs to release, by name.
        :param parked: names for which this worker has parked jobs; a place may have become free
            before others could see these.
        """
        released = 0
        if freed:
            with self._store.begin(connection):
                if self._waiting.any_of(connection, list(freed)):
                    for name, count in freed.items():
                        stopping = self._stopping()
                        released += self._release(connection, name, count, announced=stopping)
        for name in parked:
            self._store.forget_starts()  # the next claim finds out where the other jobs are
            if name not in freed:
                self._visit(connection, name)
        return released > 0

    def _release(self, connection: Connection, name: str, count: int, *, announced: bool) -> int:
        rows = self._waiting.release(connection, name, count)
        if rows:
            self._store.forget_starts()
        for queue in _to_announce({row.queue for row in rows}, self._store.queues, announced):
            announce_on(connection, self._store.job_model, queue)
        return len(rows)


def _to_announce(
    queues: Collection[str], own: Collection[str], everything: bool
) -> Collection[str]:
    """Return the queues of released jobs whose workers are to be woken.

    This worker claims next anyway, but only from its own queues.
    """
    return queues if everything else [queue for queue in queues if queue not in own]
