"""The values in the columns of a job: their defaults and limits, and the final statuses."""

from __future__ import annotations

from enum import StrEnum

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5
NO_PAYLOAD = "null"
"""The value of ``payload`` for a job whose data is in columns of its own."""
PRIORITIES = range(10)
"""The valid priorities; jobs with the lowest number run first."""


class Status(StrEnum):
    """How a job ended: the values of ``archived_job.status``.

    .. versionadded:: 0.1
    """

    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"
