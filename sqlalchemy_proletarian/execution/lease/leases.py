"""The leases of one worker: which runs hold one, and when they are extended."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from time import monotonic
from typing import Final

from sqlalchemy import Connection

from ...clock import Clock
from ...lifecycle.run import Run, RunState
from ...store.base import Store

_EXTENSIONS_PER_LEASE: Final = 3


class Leases:
    """The runs that hold a lease, in the order in which they started.

    :param duration: the duration of a lease.
    :param shared_time: the clock by which all workers measure leases; see :class:`.SharedClock`.
    """

    def __init__(self, store: Store, duration: timedelta, shared_time: Clock) -> None:
        self.held: dict[Run, None] = {}
        self.first_end: datetime | None = None
        """When the first lease of the running jobs expires."""
        self.extend_at: float = monotonic()
        """When leases are extended next, on the monotonic clock."""
        self.interval: float = duration.total_seconds() / _EXTENSIONS_PER_LEASE
        """Seconds between two extensions."""
        self._store = store
        self._shared_time = shared_time

    def extension_is_due(self) -> bool:
        """Return whether to extend leases now."""
        # The monotonic clock stands still while the computer sleeps, so check the other one, too.
        expired = self.first_end is not None and self._shared_time() >= self.first_end
        return expired or monotonic() >= self.extend_at

    def extend(self, connection: Connection, running: Iterable[Run], until: datetime) -> list[Run]:
        """Extend the leases of runs, and return the runs whose lease is lost."""
        runs = {run.job: run for run in running if run.state is not RunState.LOST}
        lost = [runs[job] for job in self._store.extend(connection, list(runs), until)]
        # A run that settles its job itself has deleted the row.
        return [run for run in lost if run.state not in (RunState.SETTLING, RunState.SETTLED)]
