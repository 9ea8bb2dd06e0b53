"""The mapped tables: mixins for your own declarative base, and the default models."""

from .defaults import SCHEMA, ArchivedJob, Base, Job, PausedQueue, RunningJob
from .mixins import ArchivedJobMixin, JobMixin, PausedQueueMixin, RunningJobMixin
from .values import Status

__all__ = [
    "SCHEMA",
    "ArchivedJob",
    "ArchivedJobMixin",
    "Base",
    "Job",
    "JobMixin",
    "PausedQueue",
    "PausedQueueMixin",
    "RunningJob",
    "RunningJobMixin",
    "Status",
]
