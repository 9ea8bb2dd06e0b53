"""The mapped tables: mixins for your own declarative base, and the default models."""

from .defaults import SCHEMA, ArchivedJob, Base, Job, RunningJob
from .mixins import ArchivedJobMixin, JobMixin, RunningJobMixin
from .values import Status

__all__ = [
    "SCHEMA",
    "ArchivedJob",
    "ArchivedJobMixin",
    "Base",
    "Job",
    "JobMixin",
    "RunningJob",
    "RunningJobMixin",
    "Status",
]
