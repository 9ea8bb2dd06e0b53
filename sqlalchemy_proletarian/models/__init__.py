"""The mapped tables: mixins for your own declarative base, and the default models."""

from .mixins import (
    SCHEMA,
    ArchivedJob,
    ArchivedJobMixin,
    Base,
    Job,
    JobMixin,
    RunningJob,
    RunningJobMixin,
    Status,
)

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
