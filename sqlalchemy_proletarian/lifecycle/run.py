"""One run of a job, and how it is asked to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .claimed import ClaimedJob


class Run:
    """A job in a worker's hands.

    :param row: the job's mapped object, for a handler that asks for it.
    """

    __slots__ = (
        "abandoned",
        "asked",
        "cancel",
        "changed",
        "in_doubt",
        "job",
        "lost",
        "row",
        "row_error",
        "settled",
        "settling",
    )

    def __init__(self, job: ClaimedJob, row: Any = None) -> None:
        self.job = job
        self.row = row
        self.row_error: Exception | None = None
        """Why there is no row, though the handler asks for it."""
        self.asked: Exception | None = None
        """Why it is to end, once somebody has asked."""
        self.cancel: Callable[[], object] | None = None
        """Cancels the handler, from the thread of its event loop; None while nothing can."""
        self.changed = False
        """Whether its handler changed state of the connection that cannot be undone in place."""
        self.abandoned = False
        """Whether the worker waits for it no longer: it must not complete."""
        self.lost = False
        """Whether the worker has noticed, and said, that somebody else has the job."""
        self.in_doubt = False
        """Whether a commit that settles it has failed, or may yet: it may have taken effect."""
        self.settling = False
        """Whether it is about to settle its job itself, with its own writes."""
        self.settled = False
        """Whether it has."""

    def ask(self, reason: Exception) -> None:
        """Ask the run to end; the first reason counts."""
        if self.asked is None:
            self.asked = reason
            if self.cancel is not None:
                self.cancel()
