"""The shop's jobs that are objects of a class for each type, on the tables of one queue."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, ForeignKey
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from sqlalchemy_proletarian import ArchivedJobMixin, Handlers, JobMixin, RunningJobMixin

from .support import Customer, Name, Shop, rows


class Order(AsyncAttrs, Shop):
    """What a job is about."""

    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customer.id"))
    invoiced: Mapped[int] = mapped_column(default=0)
    customer: Mapped[Customer | None] = relationship()
    jobs: Mapped[list[SendInvoice]] = relationship(back_populates="order", passive_deletes=True)


class ShopJob(AsyncAttrs, JobMixin, Shop):
    """The queue, and what its jobs have in common."""

    __tablename__ = "shop_job"
    __mapper_args__ = {"polymorphic_on": "job_type"}  # noqa: RUF012 - as SQLAlchemy spells it


class SendInvoice(ShopJob):
    """A type whose columns are in the queue's table."""

    __mapper_args__ = {"polymorphic_identity": "send-invoice"}  # noqa: RUF012

    order_id: Mapped[int | None] = mapped_column(
        ForeignKey("shop_order.id", ondelete="CASCADE"), index=True
    )
    note: Mapped[Name | None]
    order: Mapped[Order] = relationship(back_populates="jobs")


class PackParcel(ShopJob):
    """A type with a table of its own, and a relationship that is loaded at once."""

    __tablename__ = "pack_parcel"
    __mapper_args__ = {"polymorphic_identity": "pack-parcel"}  # noqa: RUF012
    __queue__ = "parcels"
    __priority__ = 2

    job_id: Mapped[Any] = mapped_column(
        ForeignKey("shop_job.job_id", ondelete="CASCADE"), primary_key=True
    )
    parcel_order_id: Mapped[int] = mapped_column(ForeignKey("shop_order.id"))
    weight: Mapped[int]
    parcel_order: Mapped[Order] = relationship(lazy="selectin")


class ArchivedShopJob(ArchivedJobMixin, Shop):
    """The archive of both."""

    __tablename__ = "archived_shop_job"

    order_id: Mapped[int | None] = mapped_column(ForeignKey("shop_order.id", ondelete="SET NULL"))
    note: Mapped[Name | None]
    weight: Mapped[int | None]


class PlainArchive(ArchivedJobMixin, Shop):
    """Another archive, which remembers the order and does not refer to it."""

    __tablename__ = "plain_archive"

    order_id: Mapped[int | None]


class RunningShopJob(RunningJobMixin, Shop):
    """The markers of jobs that a worker has in its hands."""

    __tablename__ = "running_shop_job"


ORDERS: Any = {
    "job_model": ShopJob,
    "archived_job_model": ArchivedShopJob,
    "running_job_model": RunningShopJob,
    "queues": ["default", "parcels"],
}
"""The options of a worker that serves them."""


def add(engine: Engine, *jobs: Any) -> list[Any]:
    """Commit jobs that are added to a session as any other object is; return their ids."""
    with Session(engine) as session, session.begin():
        session.add_all(jobs)
        session.flush()
        return [job.job_id for job in jobs]


def only_order(engine: Engine) -> Order:
    """Return the one order."""
    (order,) = rows(engine, Order)
    return order  # type: ignore[no-any-return]


def invoicing(**options: Any) -> Handlers:
    """Return a handler that counts the invoices of an order."""
    handlers = Handlers()

    @handlers(SendInvoice, **options)
    def send_invoice(job: SendInvoice) -> None:
        job.order.invoiced += 1
        job.note = f"for {job.order.customer.name}" if job.order.customer else None

    return handlers
