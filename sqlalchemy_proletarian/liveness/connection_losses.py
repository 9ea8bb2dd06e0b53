"""Jobs under which the connection is lost: nobody's fault, unless it happens again and again.

A database that restarts costs a job nothing. But a job may be the cause: its query crashes the
server's process, or its handler closes the connection. It would run for ever, and hold up those
behind it. So it fails when that has happened several times in a row under one worker.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import WorkerDiedError

MAX_LOSSES: Final = 5
"""How many connections in a row a job may lose; it fails with the last."""

_MOST = 1000
"""So many jobs are remembered: those that others have run since are never heard of again."""


class Losses:
    """Counts, for one worker, the connections that were lost while a job's handler ran."""

    def __init__(self) -> None:
        self._counted: dict[Any, int] = {}

    def count(self, job_id: Any, error: BaseException | None) -> WorkerDiedError | None:
        """Count a connection that was lost under a job.

        :param error: the loss.
        :return: the error with which the job fails, if it has lost too many.
        """
        count = self._counted.pop(job_id, 0) + 1
        if count >= MAX_LOSSES:
            failure = WorkerDiedError(
                f"the connection was lost {count} times in a row under this job"
            )
            failure.__cause__ = error
            return failure
        self._counted[job_id] = count
        if len(self._counted) > _MOST:
            del self._counted[next(iter(self._counted))]
        return None

    def forget(self, job_id: Any) -> None:
        """Note that a run of a job has ended, as a success or otherwise, and lost nothing."""
        if self._counted:
            self._counted.pop(job_id, None)
