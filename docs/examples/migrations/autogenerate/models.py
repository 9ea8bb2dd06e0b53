"""Your models and the job tables, in one metadata with a naming convention."""

from sqlalchemy import ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    JobMixin,
    RecurringJobMixin,
    RunningJobMixin,
)


class Base(DeclarativeBase):
    """Your own declarative base."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Customer(Base):
    """One of your models."""

    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)


class EmailJob(JobMixin, Base):
    """A queue with an additional column."""

    __tablename__ = "email_job"

    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customer.id"))
    customer: Mapped[Customer | None] = relationship()


class ArchivedEmailJob(ArchivedJobMixin, Base):
    """The archive."""

    __tablename__ = "archived_email_job"

    customer_id: Mapped[int | None]


class RunningEmailJob(RunningJobMixin, Base):
    """The markers of running jobs."""

    __tablename__ = "running_email_job"


class RecurringEmailJob(RecurringJobMixin, Base):
    """The recurring jobs."""

    __tablename__ = "recurring_email_job"
