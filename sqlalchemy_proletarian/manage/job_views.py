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
    """The job waits for a worker."""
    RUNNING = "running"
    """A worker runs the job."""
    WAITING = "waiting"
    """The job is due and waits for a limit of its type."""
    SCHEDULED = "scheduled"
    """The job is not due yet and has not run before."""
    RETRYING = "retrying"
    """The job is not due yet and has failed before."""
    REFUSED = "refused"
    """The job has ended, but the archive rejects its row."""


@dataclass(frozen=True)
class ListedJob:
    """A job in a list; see :func:`list_jobs`.

    .. versionadded:: 0.1
    """

    job_id: Any
    """The id of the job."""
    queue: str
    """The name of the queue."""
    job_type: str
    """The type of the job."""
    status: str
    """For a queued job a :class:`JobState`, for an archived job a :class:`.Status`."""
    attempts: int
    """How many attempts were counted."""
    priority: int
    """The priority, 0 (first) to 9 (last)."""
    enqueued_at: datetime
    """When the job was enqueued, an aware datetime."""
    process_at: datetime
    """When the job is due; for a running job in lease mode, when its lease expires."""
    unique_key: str | None
    """The unique key; None if the job has none."""
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
    """The jobs of the page."""
    after: str | None
    """For the next page; None if there is none. If the page is not full, the search has read its
    maximum number of rows, and the next page continues it."""


@dataclass(frozen=True)
class JobDetails:
    """All about a job; see :func:`get_job`.

    .. versionadded:: 0.1
    """

    job: ListedJob
    """What a list shows of the job."""
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
