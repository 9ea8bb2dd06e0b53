"""A class for each type of job: typed columns and relationships instead of a payload."""

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
    """One of your models."""

    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    invoiced: Mapped[bool] = mapped_column(default=False)


class ShopJob(JobMixin, Base):
    """The queue: the base class of all jobs of the shop."""

    __tablename__ = "shop_job"
    __mapper_args__ = {"polymorphic_on": "job_type"}


class SendInvoice(ShopJob):
    """A type of job that adds a column to the table of the queue."""

    __mapper_args__ = {"polymorphic_identity": "send-invoice"}

    order_id: Mapped[int | None] = mapped_column(
        ForeignKey("shop_order.id", ondelete="CASCADE"), index=True
    )
    order: Mapped[Order] = relationship()


class PrintLabel(ShopJob):
    """A type of job with its own table, joined to the table of the queue."""

    __tablename__ = "print_label"
    __mapper_args__ = {"polymorphic_identity": "print-label"}
    __queue__ = "printer"

    job_id: Mapped[Any] = mapped_column(
        ForeignKey("shop_job.job_id", ondelete="CASCADE"), primary_key=True
    )
    address: Mapped[str]
    copies: Mapped[int] = mapped_column(default=1)


class ArchivedShopJob(ArchivedJobMixin, Base):
    """The archive: columns of the same name are copied, from both tables."""

    __tablename__ = "archived_shop_job"

    order_id: Mapped[int | None]
    address: Mapped[str | None]


class RunningShopJob(RunningJobMixin, Base):
    """The markers of running jobs."""

    __tablename__ = "running_shop_job"


@handlers(SendInvoice, retry=RetryStrategy(retries=3))
def send_invoice(job: SendInvoice) -> None:
    """Receive the job itself; it is in the session whose transaction completes it."""
    print(f"invoice for {job.order.customer}")
    job.order.invoiced = True


@handlers(PrintLabel)
def print_label(job: PrintLabel, session: Session) -> None:
    """Take further parameters, like any other handler."""
    print(f"{job.copies} labels for {job.address}")


def main() -> None:
    """Enqueue jobs by adding them to the session, and run them."""
    Base.metadata.create_all(engine)  # or use Alembic's autogenerate
    with Session(engine) as session, session.begin():
        ada = Order(customer="Ada")
        session.add(SendInvoice(order=ada))  # also adds the order
        session.add(PrintLabel(address="12 St James's Square", copies=2))
        session.add(SendInvoice(order=Order(customer="Bob")))

    with Session(engine) as session, session.begin():
        bob = session.scalars(select(Order).where(Order.customer == "Bob")).one()
        session.delete(bob)  # ON DELETE CASCADE also deletes his job

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
