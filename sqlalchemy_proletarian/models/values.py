"""The values in the columns of jobs and recurring jobs: defaults, limits and enumerations."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5
NO_PAYLOAD = "null"
"""The value of ``payload`` for a job whose data is in columns of its own."""
PRIORITIES = range(10)
"""The valid priorities; jobs with the lowest number run first."""
WAITING_AT = datetime(9000, 1, 1, tzinfo=UTC)
"""The ``process_at`` of jobs that wait for a limit. No claim reads them, because they are never
due."""


QUEUED = "queued"
"""The value of ``unique_while`` for a job whose key is taken only while it is waiting."""

UTC_ZONE = "UTC"
"""The default time zone of recurring jobs."""


class CatchUp(StrEnum):
    """Which of several ticks that are due at once are enqueued: ``recurring.catch_up``.

    Ticks are due together after a downtime of all workers.

    .. versionadded:: 0.1
    """

    LAST = "last"
    """The last one."""
    NONE = "none"
    """The last one, unless it is more than a minute late."""
    ALL = "all"
    """All of them."""


class Status(StrEnum):
    """How a job ended: the values of ``archived_job.status``.

    .. versionadded:: 0.1
    """

    SUCCESS = "success"
    """The handler returned."""
    FAILURE = "failure"
    """The last attempt failed and no retry was left."""
    CANCELLED = "cancelled"
    """The job was cancelled."""
