"""Your models, and job tables of another name and schema in a metadata of their own."""

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_proletarian import ArchivedJobMixin, JobMixin, RunningJobMixin


class Base(DeclarativeBase):
    """Your own declarative base."""


class Customer(Base):
    """A model of yours."""

    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)


class JobBase(DeclarativeBase):
    """Another, for tables that autogenerate does not care for."""

    metadata = MetaData(schema="mail")


class EmailJob(JobMixin, JobBase):
    """A queue."""

    __tablename__ = "email_job"


class ArchivedEmailJob(ArchivedJobMixin, JobBase):
    """Its archive."""

    __tablename__ = "archived_email_job"


class RunningEmailJob(RunningJobMixin, JobBase):
    """The markers of jobs that a worker has in its hands."""

    __tablename__ = "running_email_job"
