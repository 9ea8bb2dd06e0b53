"""The default models, on the library's own declarative base.

They map the tables ``job``, ``archived_job``, ``running``, ``paused_queue``, ``recurring`` and
``limit_place`` of the schema ``proletarian``.
"""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase

from .limits import LimitPlaceMixin
from .mixins import ArchivedJobMixin, JobMixin, PausedQueueMixin, RunningJobMixin
from .recurring import RecurringJobMixin

SCHEMA = "proletarian"


class Base(DeclarativeBase):
    """The declarative base of the default models, with its own metadata.

    .. versionadded:: 0.1
    """

    metadata: ClassVar[MetaData] = MetaData(schema=SCHEMA)


class Job(JobMixin, Base):
    """A queued job: a row of ``proletarian.job``.

    .. versionadded:: 0.1
    """

    __tablename__ = "job"


class ArchivedJob(ArchivedJobMixin, Base):
    """A finished job: a row of ``proletarian.archived_job``.

    .. versionadded:: 0.1
    """

    __tablename__ = "archived_job"


class RunningJob(RunningJobMixin, Base):
    """A job that a worker is running: a row of ``proletarian.running``.

    .. versionadded:: 0.1
    """

    __tablename__ = "running"


class PausedQueue(PausedQueueMixin, Base):
    """A queue that workers do not claim jobs of: a row of ``proletarian.paused_queue``.

    .. versionadded:: 0.1
    """

    __tablename__ = "paused_queue"


class RecurringJob(RecurringJobMixin, Base):
    """A job that is enqueued again and again: a row of ``proletarian.recurring``.

    .. versionadded:: 0.1
    """

    __tablename__ = "recurring"


class LimitPlace(LimitPlaceMixin, Base):
    """A place of a limit: a row of ``proletarian.limit_place``.

    .. versionadded:: 0.1
    """

    __tablename__ = "limit_place"
