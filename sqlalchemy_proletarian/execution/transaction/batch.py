"""The jobs of one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ...lifecycle.claimed import ClaimedJob
from ...lifecycle.outcomes import SUCCEEDED
from ...lifecycle.run import Run
from ...liveness.markers import BatchMarkers
from ..report import Report
from .session import BatchSession

if TYPE_CHECKING:
    from ...limits.limiter import Admission


@dataclass
class Batch(Report):
    """What one transaction claims, runs and settles, updated while it happens."""

    claimed: int = 0
    """How many jobs were claimed."""
    claimed_at: datetime | None = None
    is_own: bool = True
    """Whether the runner commits the transaction; otherwise its caller does."""
    has_savepoint: bool = False
    """Whether there is a SAVEPOINT behind the claim, for the first handler that needs one."""
    marked: Sequence[ClaimedJob] = ()
    """The jobs that this worker marked as running."""
    stale: Sequence[Any] = ()
    """The ids of jobs with markers of other workers, which the commit removes."""
    settled_first: Report = field(default_factory=Report)
    """What was settled before any handler ran."""
    run: Run | None = None
    """The run whose handler is running."""
    suspect: ClaimedJob | None = None
    """The job to blame if the transaction fails: the running one, or the only one."""
    tainting_run: Run | None = None
    """The run that changed the state of the connection permanently; it is the last one."""
    admission: Admission | None = None
    """Which jobs may run by their limits; None if no claimed job has a limit."""
    session: BatchSession | None = None
    """The session of the handlers; None if no handler has taken one."""

    def clear(self) -> None:
        """Remove all results, because the transaction was rolled back."""
        super().clear()
        self.settled_first.clear()

    def successes_only(self) -> list[Any] | None:
        """Return the ids of its jobs if they only have to be archived; otherwise None."""
        if self.stale:
            return None
        ids = [job.job_id for job, outcome in self.results if outcome is SUCCEEDED]
        if len(ids) < len(self.results) or not set(BatchMarkers.ids_of(self.marked)) <= set(ids):
            return None
        return ids
