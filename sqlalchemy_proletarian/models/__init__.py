"""The mapped tables: mixins for your own declarative base, and the default models."""

from .defaults import SCHEMA, ArchivedJob, Base, Job, RecurringJob, RunningJob
from .mixins import ArchivedJobMixin, JobMixin, RunningJobMixin
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
    "RecurringJob",
    "RecurringJobMixin",
    "RunningJob",
    "RunningJobMixin",
    "Status",
]
