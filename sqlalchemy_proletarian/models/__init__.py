"""The mapped tables: mixins for your own declarative base, and the default models."""

from .defaults import SCHEMA, ArchivedJob, Base, Job, PausedQueue, RecurringJob, RunningJob
from .mixins import ArchivedJobMixin, JobMixin, PausedQueueMixin, RunningJobMixin
from .recurring import RecurringJobMixin
from .values import CatchUp, Status

__all__ = [
    "SCHEMA",
    "ArchivedJob",
    "ArchivedJobMixin",
    "Base",
    "CatchUp",
    "Job",
    "JobMixin",
    "PausedQueue",
    "PausedQueueMixin",
    "RecurringJob",
    "RecurringJobMixin",
    "RunningJob",
    "RunningJobMixin",
    "Status",
]
