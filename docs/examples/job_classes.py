"""A class for each type of job: typed columns and relationships in the place of a payload."""

import os
from typing import Any

from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    Handlers,
    JobMixin,
    QueueWorker,
    RetryStrategy,
    RunningJobMixin,
)

engine = create_engine(os.environ["DATABASE_URL"])
handlers = Handlers()


class Base(DeclarativeBase):
    """Your own declarative base: your metadata, your migrations."""


class Order(Base):
    """A model of yours."""

    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    invoiced: Mapped[bool] = mapped_column(default=False)


class ShopJob(JobMixin, Base):
    """The queue: what all the jobs of the shop have in common."""

    __tablename__ = "shop_job"
    __mapper_args__ = {"polymorphic_on": "job_type"}


class SendInvoice(ShopJob):
    """A type of job, with a column of its own in the table of the queue."""

    __mapper_args__ = {"polymorphic_identity": "send-invoice"}

    order_id: Mapped[int | None] = mapped_column(
        ForeignKey("shop_order.id", ondelete="CASCADE"), index=True
    )
    order: Mapped[Order] = relationship()


class PrintLabel(ShopJob):
    """A type of job with a table of its own, which is joined to that of the queue."""

    __tablename__ = "print_label"
    __mapper_args__ = {"polymorphic_identity": "print-label"}
    __queue__ = "printer"

    job_id: Mapped[Any] = mapped_column(
        ForeignKey("shop_job.job_id", ondelete="CASCADE"), primary_key=True
    )
    address: Mapped[str]
    copies: Mapped[int] = mapped_column(default=1)


class ArchivedShopJob(ArchivedJobMixin, Base):
    """The archive: columns of the same name are carried over, from both tables."""

    __tablename__ = "archived_shop_job"

    order_id: Mapped[int | None]
    address: Mapped[str | None]


class RunningShopJob(RunningJobMixin, Base):
    """The markers of jobs that a worker has in its hands."""

    __tablename__ = "running_shop_job"


@handlers(SendInvoice, retry=RetryStrategy(retries=3))
def send_invoice(job: SendInvoice) -> None:
    """Get the job itself; it is in the session in whose transaction it completes."""
    print(f"invoice for {job.order.customer}")
    job.order.invoiced = True


@handlers(PrintLabel)
def print_label(job: PrintLabel, session: Session) -> None:
    """Take further parameters as any other handler does."""
    print(f"{job.copies} labels for {job.address}")


def main() -> None:
    """Enqueue by adding to the session, and run."""
    Base.metadata.create_all(engine)  # or your Alembic's autogenerate
    with Session(engine) as session, session.begin():
        ada = Order(customer="Ada")
        session.add(SendInvoice(order=ada))  # adds the order, too
        session.add(PrintLabel(address="12 St James's Square", copies=2))
        session.add(SendInvoice(order=Order(customer="Bob")))

    with Session(engine) as session, session.begin():
        bob = session.scalars(select(Order).where(Order.customer == "Bob")).one()
        session.delete(bob)  # ON DELETE CASCADE: his job is gone, too

    worker = QueueWorker(
        engine,
        handlers,
        queues=["default", "printer"],
        job_model=ShopJob,
        archived_job_model=ArchivedShopJob,
        running_job_model=RunningShopJob,
    )
    worker.drain()

    with Session(engine) as session:
        for order in session.scalars(select(Order)):
            print(f"{order.customer} was invoiced: {order.invoiced}")
        for done in session.scalars(select(ArchivedShopJob).order_by(ArchivedShopJob.job_type)):
            print(f"{done.job_type}: {done.status}, {done.order_id or done.address}")


if __name__ == "__main__":
    main()
