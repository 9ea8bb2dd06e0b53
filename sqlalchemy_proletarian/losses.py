"""Jobs under which the connection was lost: nobody's fault, unless it happens again and again.

A database that restarts costs no job an attempt. But a job may be the cause: its query crashes the
server's process, or its handler closes the line. It would run for ever, and hold up those behind
it.
"""

from __future__ import annotations

from typing import Any

TOLERATED = 4
"""How many connections a job may lose one after the other before that costs it an attempt."""

_MOST = 1000
"""So many jobs are remembered: those that others have run since are never heard of again."""


class Losses:
    """Counts, for one worker, the connections that were lost while a job's handler ran."""

    def __init__(self) -> None:
        self._counted: dict[Any, int] = {}

    def blame(self, job_id: Any) -> bool:
        """Note that the connection was lost under a job; tell whether its attempt has failed."""
        count = self._counted.pop(job_id, 0) + 1
        if count > TOLERATED:
            return True
        self._counted[job_id] = count
        if len(self._counted) > _MOST:
            del self._counted[next(iter(self._counted))]
        return False

    def forget(self, job_id: Any) -> None:
        """Note that a run of a job has ended, as a success or otherwise, and lost nothing."""
        if self._counted:
            self._counted.pop(job_id, None)
