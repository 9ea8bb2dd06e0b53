"""One run of a job in a worker, and its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from threading import Lock
from typing import Any, Final

from ..telemetry.observers import ObservedRun
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
    call: Call | None = None
    """The call that runs it with others, if its handler is a batch handler."""
    observed: ObservedRun | None = None
    """What observers see of it; None if it did not start, or is not observed."""

    @property
    def members(self) -> Sequence[Run]:
        """The runs that the call of the handler performs: this one."""
        return (self,)

    @property
    def completing(self) -> Sequence[Run]:
        """The runs whose jobs complete in the transaction of the handler's session."""
        return (self,)

    @property
    def sole(self) -> Run | None:
        """The run, if the handler runs no other job."""
        return self

    def keep_ended(self) -> bool:
        """Keep only what was requested to end before it began; return whether there is anything."""
        return self.end_reason is not None

    def about(self) -> dict[str, Any]:
        """Return the data of events about the call of the handler."""
        return self.job.about()

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

    def leave_settling(self, state: RunState) -> None:
        """Enter a state if the run was settling its job itself."""
        if self.state is RunState.SETTLING:
            self.advance(state)


@dataclass(slots=True, eq=False)
class Call(Run):
    """One call of the function of a batch handler, which performs several runs.

    ``job`` is the job of the first one.

    :param most: how many runs it may have.
    """

    most: int = 1
    runs: list[Run] = field(default_factory=list)
    ready: list[Run] = field(default_factory=list)
    """The runs whose payloads are passed to the function."""
    errors: dict[Run, Exception] = field(default_factory=dict)
    """Why attempts have failed, so far as it is known."""

    @property
    def members(self) -> Sequence[Run]:
        """The runs that the call performs."""
        return self.runs

    @property
    def completing(self) -> Sequence[Run]:
        """The runs whose jobs complete in the transaction of the handler's session."""
        return [run for run in self.ready if run not in self.errors]

    @property
    def sole(self) -> Run | None:
        """The only run of the call; None if there are several."""
        return self.runs[0] if len(self.runs) == 1 else None

    def keep_ended(self) -> bool:
        """Keep only the runs that were requested to end; return whether there are any."""
        self.runs = [run for run in self.runs if run.end_reason is not None]
        return bool(self.runs)

    def about(self) -> dict[str, Any]:
        """Return the data of events about the call: those of the first job, and how many."""
        return {**self.job.about(), "jobs": len(self.ready)}

    def request_end(self, reason: Exception) -> None:
        """Request that all of its runs end."""
        for run in self.runs:
            run.request_end(reason)

    def leave_settling(self, state: RunState) -> None:
        """Enter a state with the runs that were settling their jobs themselves."""
        for run in self.runs:
            run.leave_settling(state)
