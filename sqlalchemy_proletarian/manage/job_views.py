"""What the lists and pages of :mod:`.browse` say about a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from ..models.values import Status
from .running import Running


class JobState(StrEnum):
    """The state of a queued job; see :class:`.JobCounts`.

    .. versionadded:: 0.1
    """

    DUE = "due"
    RUNNING = "running"
    WAITING = "waiting"
    SCHEDULED = "scheduled"
    RETRYING = "retrying"
    REFUSED = "refused"


@dataclass(frozen=True)
class ListedJob:
    """A job in a list; see :func:`list_jobs`.

    .. versionadded:: 0.1
    """

    job_id: Any
    queue: str
    job_type: str
    status: str
    """For a queued job a :class:`JobState`, for an archived job a :class:`.Status`."""
    attempts: int
    priority: int
    enqueued_at: datetime
    process_at: datetime
    """When the job is due; for a running job in lease mode, when its lease expires."""
    unique_key: str | None
    finished_at: datetime | None
    """When the job ended; None if it is queued, unless the archive rejects it."""
    retried_at: datetime | None
    """When the archived job was enqueued again; None if it was not."""
    error: str | None
    """The last line of the error."""

    @property
    def is_archived(self) -> bool:
        """Whether the job is in the archive."""
        return self.status in set(Status)


@dataclass(frozen=True)
class JobPage:
    """A page of a list; see :func:`list_jobs`.

    .. versionadded:: 0.1
    """

    jobs: Sequence[ListedJob]
    after: str | None
    """For the next page; None if there is none. If the page is not full, the search has read its
    maximum number of rows, and the next page continues it."""


@dataclass(frozen=True)
class JobDetails:
    """All about a job; see :func:`get_job`.

    .. versionadded:: 0.1
    """

    job: ListedJob
    payload: str
    """The encoded payload."""
    error: str | None
    """The whole error: the last attempt's traceback, or the reason of a cancellation."""
    deaths: int
    """The number of consecutive workers that crashed while the job ran."""
    refusal: str | None
    """The database's error, if the archive rejects the job."""
    running: Running | None
    """Where the job runs; None if it does not run."""
    headers: Mapping[str, Any] | None
    """The headers of the job."""
    waits_for: str | None
    """The limit for which the job waits; None if it does not."""
    result: str | None
    """The encoded result of the handler, if it is kept."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The values of the columns that are not the library's."""
