"""Job tables of your own, with a foreign key that is copied to the archive."""

import os

from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    Handlers,
    JobMixin,
    QueueWorker,
    RunningJobMixin,
    enqueue,
)

engine = create_engine(os.environ["DATABASE_URL"])
handlers = Handlers()


class Base(DeclarativeBase):
    """Your own declarative base: your metadata, your migrations."""


class Customer(Base):
    """One of your models."""

    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class EmailJob(JobMixin, Base):
    """A queue with an additional column."""

    __tablename__ = "email_job"

    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customer.id"))
    customer: Mapped[Customer | None] = relationship()


class ArchivedEmailJob(ArchivedJobMixin, Base):
    """The archive; a column that both models have is copied."""

    __tablename__ = "archived_email_job"

    customer_id: Mapped[int | None]


class RunningEmailJob(RunningJobMixin, Base):
    """The markers of running jobs."""

    __tablename__ = "running_email_job"


@handlers("invoice")
def invoice(payload: dict[str, int], session: Session, job: EmailJob) -> None:
    """Receive the job itself, and use its relationship."""
    assert job.customer is not None
    print(f"{job.customer.name} owes {payload['amount']}")


def main() -> None:
    """Enqueue and run a job in these tables."""
    Base.metadata.create_all(engine)  # or use Alembic's autogenerate
    with Session(engine) as session, session.begin():
        ada = Customer(name="Ada")
        session.add(ada)
        enqueue(session, "invoice", {"amount": 7}, job_model=EmailJob, customer=ada)

    worker = QueueWorker(
        engine,
        handlers,
        job_model=EmailJob,
        archived_job_model=ArchivedEmailJob,
        running_job_model=RunningEmailJob,
    )
    worker.drain()

    with Session(engine) as session:
        done = session.scalars(select(ArchivedEmailJob)).one()
        print(f"archived for customer {done.customer_id}: {done.status}")


if __name__ == "__main__":
    main()
