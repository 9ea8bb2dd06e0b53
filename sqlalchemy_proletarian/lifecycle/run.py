"""One run of a job in a worker, and its state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from threading import Lock
from typing import Any, Final

from .claimed import ClaimedJob
from .outcomes import SUCCEEDED, Succeeded


class RunState(Enum):
    """How far a run is; see :meth:`Run.advance` for the order."""

    RUNNING = auto()
    """Its handler runs, or is about to."""
    ABANDONED = auto()
    """The worker stopped waiting for it: it must not complete its job any more."""
    LOST = auto()
    """Another worker has the lease, or the job has left the queue."""
    SETTLING = auto()
    """It is completing its job itself, in the transaction of its handler's session."""
    SETTLED = auto()
    """That transaction was committed."""
    IN_DOUBT = auto()
    """A commit that completes its job failed, or may have taken effect."""


_BEFORE: Final = {
    RunState.RUNNING: {RunState.SETTLING},
    RunState.ABANDONED: {RunState.RUNNING},
    RunState.LOST: {RunState.RUNNING, RunState.ABANDONED},
    RunState.SETTLING: {RunState.RUNNING},
    RunState.SETTLED: {RunState.SETTLING},
    RunState.IN_DOUBT: {RunState.RUNNING, RunState.ABANDONED, RunState.SETTLING},
}
"""The states from which a run may enter a state. From SETTLING back to RUNNING: the transaction was
rolled back."""

_ADVANCING: Final = Lock()


@dataclass(slots=True, eq=False)
class Run:
    """A claimed job that a worker runs.

    :param handler: the handler of the job's type; None if there is none.
    :param row: the job's mapped object, if the handler asks for it.
    """

    job: ClaimedJob
    handler: Any = None
    row: Any = None
    row_error: Exception | None = None
    """Why the mapped object could not be loaded, or the key of the job's limit not computed."""
    end_reason: Exception | None = None
    """Why the run was requested to end."""
    cancel: Callable[[], object] | None = None
    """Cancels the handler; called in the thread of its event loop. None if nothing can cancel it.
    """
    state: RunState = RunState.RUNNING
    success: Succeeded = SUCCEEDED
    """The outcome if nothing fails any more."""

    def request_end(self, reason: Exception) -> None:
        """Request that the run ends; the first reason is kept."""
        if self.end_reason is None:
            self.end_reason = reason
            if self.cancel is not None:
                self.cancel()

    def advance(self, state: RunState) -> bool:
        """Enter a state, if it may follow the current one; return whether it did.

        The thread of the handler and the thread that polls may call this at the same time.
        """
        with _ADVANCING:
            if self.state not in _BEFORE[state]:
                return False
            self.state = state
            return True
