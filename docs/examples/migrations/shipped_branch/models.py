"""Your models, and job tables with other names and schema in a separate metadata."""

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    JobMixin,
    RecurringJobMixin,
    RunningJobMixin,
)


class Base(DeclarativeBase):
    """Your own declarative base."""


class Customer(Base):
    """One of your models."""

    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)


class JobBase(DeclarativeBase):
    """A second base, for tables that autogenerate must ignore."""

    metadata = MetaData(schema="mail")


class EmailJob(JobMixin, JobBase):
    """A queue."""

    __tablename__ = "email_job"


class ArchivedEmailJob(ArchivedJobMixin, JobBase):
    """The archive."""

    __tablename__ = "archived_email_job"


class RunningEmailJob(RunningJobMixin, JobBase):
    """The markers of running jobs."""

    __tablename__ = "running_email_job"


class RecurringEmailJob(RecurringJobMixin, JobBase):
    """The recurring jobs."""

    __tablename__ = "recurring_email_job"
