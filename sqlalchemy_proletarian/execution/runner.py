"""The interface of what runs jobs: one implementation for each way to hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sqlalchemy import Connection

from ..lifecycle.claimed import NextDue
from ..lifecycle.run import Run


class Runner(Protocol):
    """Claims, runs and settles jobs; see :class:`.TransactionRunner` and :class:`.LeaseRunner`."""

    next_due: NextDue
    """When to look for jobs again, after a poll that found none."""
    ran: int
    """The number of runs that have ended."""
    tainted: Connection | None
    """A connection that no other job may use; the next poll needs another one."""
    reached: bool
    """Whether the last poll has used the database."""

    @property
    def busy(self) -> bool:
        """Whether it holds jobs between two polls."""
        ...

    def poll(self, connection: Connection) -> bool:
        """Do what is due; return whether to poll again at once."""
        ...

    def patience(self) -> float | None:
        """Return the number of seconds until the next poll at the latest; None for no limit."""
        ...

    @property
    def in_handler(self) -> bool:
        """Whether the thread or task that polls runs a handler, or waits for those of others."""
        ...

    def handling(self) -> int:
        """Return how many jobs have a handler that runs; any thread may ask."""
        ...

    def running(self) -> Iterable[Run]:
        """Return the runs whose handlers are running."""
        ...

    def held(self) -> Iterable[Run]:
        """Return the runs of all jobs that it holds, whether they have begun or not."""
        ...

    def give_up(self) -> int:
        """Stop waiting for running handlers; return how many are left behind."""
        ...
