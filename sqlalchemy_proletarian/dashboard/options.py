"""The options of a dashboard."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..models.defaults import ArchivedJob, Job, PausedQueue, RecurringJob
from ..models.job_classes import check_models
from ..models.mixins import ArchivedJobMixin, JobMixin, PausedQueueMixin, RunningJobMixin
from ..models.recurring import RecurringJobMixin

if TYPE_CHECKING:
    from starlette.requests import Request

    Authorize: TypeAlias = Callable[[Request], bool | Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class JobTables:
    """A job table and the tables that belong to it: a tab of the dashboard.

    .. versionadded:: 0.1
    """

    name: str = "Jobs"
    """What the tab is called."""
    job_model: type[JobMixin] = Job
    """The mapped class of the job table."""
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob
    """The mapped class of its archive."""
    running_job_model: type[RunningJobMixin] | Literal["default"] | None = "default"
    """The mapped class of running markers; as for :func:`.running`."""
    paused_queue_model: type[PausedQueueMixin] | Literal["default"] | None = "default"
    """By default :class:`.PausedQueue` if ``job_model`` is :class:`.Job`, otherwise None: queues
    cannot be paused."""
    recurring_job_model: type[RecurringJobMixin] | Literal["default"] | None = "default"
    """By default :class:`.RecurringJob` if ``job_model`` is :class:`.Job`, otherwise None."""

    def __post_init__(self) -> None:
        check_models(self.job_model, self.archived_job_model)
        if not self.slug:
            msg = f"the name of a tab must have a letter or a digit, not {self.name!r}"
            raise ValueError(msg)

    @property
    def slug(self) -> str:
        """The name in addresses."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def of_jobs(self) -> dict[str, Any]:
        """The arguments of functions for queued jobs and their archive."""
        return {"job_model": self.job_model, "archived_job_model": self.archived_job_model}

    @property
    def of_running(self) -> dict[str, Any]:
        """The arguments of functions for running jobs."""
        return {"job_model": self.job_model, "running_job_model": self.running_job_model}

    @property
    def paused(self) -> type[PausedQueueMixin] | None:
        """The class of paused queues, if there is one."""
        if self.paused_queue_model == "default":
            return PausedQueue if self.job_model is Job else None
        return self.paused_queue_model

    @property
    def recurring(self) -> type[RecurringJobMixin] | None:
        """The class of recurring jobs, if there is one."""
        if self.recurring_job_model == "default":
            return RecurringJob if self.job_model is Job else None
        return self.recurring_job_model


@dataclass(frozen=True)
class Action:
    """What somebody has done in the dashboard; it is logged, and passed to ``on_action``.

    .. versionadded:: 0.1
    """

    name: str
    """"retry", "cancel", "discard", "reschedule", "pause", "resume", "run-recurring",
    "pause-recurring" or "resume-recurring"."""
    by: str
    """Who has done it, as ``actor`` says."""
    tables: str
    """The name of the tab."""
    targets: Sequence[str]
    """The ids of the jobs, or the name of the queue or recurring job."""
    done: int
    """For how many of them it had an effect."""


@dataclass(frozen=True, kw_only=True)
class DashboardOptions:
    """The checked options of :func:`.dashboard`."""

    tables: Sequence[JobTables]
    authorize: Authorize | None
    insecure_local: bool
    read_only: bool
    actor: Callable[[Request], str]
    on_action: Callable[[Action], object] | None
    redact: Callable[[str, Any], Any] | None
    show_related: bool
    trace_url: str | None
    title: str
    timeout: timedelta
