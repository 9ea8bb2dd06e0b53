"""Where a member of a worker runs jobs: what each way to hold them has in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sqlalchemy import Connection

from ..lifecycle.claimed import NextDue
from ..lifecycle.run import Run


class Desk(Protocol):
    """Where a member runs jobs: see :class:`.TransactionDesk` and :class:`.LeaseDesk`."""

    due: NextDue
    ran: int
    tainted: Connection | None
    """A connection in a state that no other job may get: the next poll needs another one."""

    @property
    def busy(self) -> bool:
        """Whether it holds jobs between two polls."""
        ...

    def poll(self, connection: Connection) -> bool:
        """Do what there is to do; tell whether it is worth another look at once."""
        ...

    def patience(self) -> float | None:
        """Return the most seconds until the next poll; None for as long as the worker likes."""
        ...

    def running(self) -> Iterable[Run]:
        """Return what runs at the moment."""
        ...

    def held(self) -> Iterable[Run]:
        """Return what is in its hands, begun or not."""
        ...

    def give_up(self) -> int:
        """Let go of what is running; return how many handlers that leaves behind."""
        ...
