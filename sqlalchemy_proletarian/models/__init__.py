"""The mapped tables: mixins for your own declarative base, and the default models."""

from .defaults import (
    SCHEMA,
    ArchivedJob,
    Base,
    Job,
    LimitPlace,
    PausedQueue,
    RecurringJob,
    RunningJob,
)
from .limits import LimitPlaceMixin
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
    "LimitPlace",
    "LimitPlaceMixin",
    "PausedQueue",
    "PausedQueueMixin",
    "RecurringJob",
    "RecurringJobMixin",
    "RunningJob",
    "RunningJobMixin",
    "Status",
]
