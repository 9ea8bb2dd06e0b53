"""Jobs during which the connection was lost: an accident, unless it happens again and again.

A restart of the database costs a job nothing. But a job may be the cause: its query crashes the
server process, or its handler closes the connection. It would run forever and delay the jobs behind
it. So a job fails when it lost several connections in a row in one worker.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import WorkerDiedError

MAX_LOSSES: Final = 5
"""How many connections in a row a job may lose; it fails with the last one."""

_MAX_COUNTED: Final = 1000
"""How many jobs are counted. Jobs that other workers have completed since are not removed."""


class ConnectionLosses:
    """Counts, for one worker, the connections that were lost while a job's handler ran."""

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}
        """The number of losses by job id."""

    def count(self, job_id: Any, error: BaseException | None) -> WorkerDiedError | None:
        """Count a connection that was lost during a job.

        :param error: the error that reported the loss.
        :return: the error with which the job fails, if it lost too many connections.
        """
        count = self.counts.pop(job_id, 0) + 1
        if count >= MAX_LOSSES:
            failure = WorkerDiedError(
                f"the connection was lost {count} times in a row under this job"
            )
            failure.__cause__ = error
            return failure
        self.counts[job_id] = count
        if len(self.counts) > _MAX_COUNTED:
            del self.counts[next(iter(self.counts))]
        return None

    def forget(self, job_id: Any) -> None:
        """Reset the count of a job: a run of it ended without a loss."""
        self.counts.pop(job_id, None)
