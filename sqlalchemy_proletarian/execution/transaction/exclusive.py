"""Letting a job run while the worker runs no other: a job that one more crash would fail.

Each runner of a worker marks the jobs of its own transaction, and a crash ends the jobs of all of
them. So a job may have a death that another job has caused, but not the one that fails it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Final

from ...lifecycle.claimed import ClaimedJob
from ...liveness.poison import deaths_to_fail, is_last_chance
from ...runtime.base import Runtime
from ...runtime.doorbell import Doorbell

_CHECK_STOP: Final = 0.2
"""Seconds between two checks whether the worker stops."""


class ExclusiveRuns:
    """Decides which runners of a worker may poll, so that one can run a job while no other does.

    A runner waits for the others between two transactions, where it holds no lock: the handlers for
    which it waits may need that lock.

    :param max_deaths: returns the ``max_deaths`` of a job.
    """

    def __init__(
        self,
        runtime: Runtime,
        stopping: Callable[[], bool],
        max_deaths: Callable[[ClaimedJob], int],
    ) -> None:
        self.waiting: set[Any] = set()
        """The runners that wait until they may poll."""
        self._stopping = stopping
        self._max_deaths = max_deaths
        self._lock = Lock()
        self._changed = Doorbell(runtime.flag)
        self._polling: set[Any] = set()
        self._requests: list[Any] = []
        """The runners that have a job to run alone. The others wait for the first one."""
        self._alone: Any = None
        """The runner that polls while no other does, as it has requested."""

    @property
    def is_requested(self) -> bool:
        """Whether a runner has to run a job alone."""
        return bool(self._requests)

    def max_deaths(self, job: ClaimedJob) -> int:
        """Return how many deaths fail a job."""
        # The marker of a leased job counts all jobs of the worker.
        return deaths_to_fail(self._max_deaths(job), may_share=not job.expired)

    def must_wait(self, runner: Any, jobs: Sequence[ClaimedJob]) -> bool:
        """Return whether jobs must not run now, but in the next poll, while no other runner polls.

        Then the next call of :meth:`enter` waits for the other runners.
        """
        if self._alone is runner:
            return False
        if not any(job.deaths and is_last_chance(job, self.max_deaths(job)) for job in jobs):
            return False
        with self._lock:
            self._requests.append(runner)
        return True

    def enter(self, runner: Any) -> bool:
        """Wait until a runner may poll; return False if it may not, because the worker stops."""
        if self._may_enter(runner):
            return True
        self.waiting.add(runner)
        try:
            while not self._stopping():
                changes = self._changed.rings()
                if self._may_enter(runner):
                    return True
                self._changed.wait(changes, _CHECK_STOP)
        finally:
            self.waiting.discard(runner)
        return False

    def leave(self, runner: Any) -> None:
        """Note that the poll of a runner has ended."""
        with self._lock:
            self._polling.discard(runner)
            requested = self.is_requested
            if self._alone is runner:
                self._alone = None
                del self._requests[0]
        if requested:
            self._changed.ring(everybody=True)

    def _may_enter(self, runner: Any) -> bool:
        with self._lock:
            if self._requests:
                if self._requests[0] is not runner or self._polling:
                    return False
                self._alone = runner
            self._polling.add(runner)
        return True
