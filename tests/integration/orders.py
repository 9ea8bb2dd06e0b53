"""Jobs of the shop with one class for each job type, in one queue table."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, ForeignKey
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from sqlalchemy_proletarian import ArchivedJobMixin, Handlers, JobMixin, RunningJobMixin

from .support import Customer, Name, Shop, rows


class Order(AsyncAttrs, Shop):
    """An order to which jobs belong."""

    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customer.id"))
    invoiced: Mapped[int] = mapped_column(default=0)
    customer: Mapped[Customer | None] = relationship()
    jobs: Mapped[list[SendInvoice]] = relationship(back_populates="order", passive_deletes=True)


class ShopJob(AsyncAttrs, JobMixin, Shop):
    """The queue table and the base class of its jobs."""

    __tablename__ = "shop_job"
    __mapper_args__ = {"polymorphic_on": "job_type"}  # noqa: RUF012 - as SQLAlchemy documents


class SendInvoice(ShopJob):
    """A job type with columns in the queue table."""

    __mapper_args__ = {"polymorphic_identity": "send-invoice"}  # noqa: RUF012

    order_id: Mapped[int | None] = mapped_column(
        ForeignKey("shop_order.id", ondelete="CASCADE"), index=True
    )
    note: Mapped[Name | None]
    order: Mapped[Order] = relationship(back_populates="jobs")


class PackParcel(ShopJob):
    """A job type with a joined table and an eagerly loaded relationship."""

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
    """The archive of both job types."""

    __tablename__ = "archived_shop_job"

    order_id: Mapped[int | None] = mapped_column(ForeignKey("shop_order.id", ondelete="SET NULL"))
    note: Mapped[Name | None]
    weight: Mapped[int | None]


class PlainArchive(ArchivedJobMixin, Shop):
    """Another archive, with the id of the order but without a foreign key."""

    __tablename__ = "plain_archive"

    order_id: Mapped[int | None]


class RunningShopJob(RunningJobMixin, Shop):
    """The markers of running jobs."""

    __tablename__ = "running_shop_job"


ORDERS: Any = {
    "job_model": ShopJob,
    "archived_job_model": ArchivedShopJob,
    "running_job_model": RunningShopJob,
    "queues": ["default", "parcels"],
}
"""The options of a worker for these models."""


def add(engine: Engine, *jobs: Any) -> list[Any]:
    """Add jobs to a session and commit; return their ids."""
    with Session(engine) as session, session.begin():
        session.add_all(jobs)
        session.flush()
        return [job.job_id for job in jobs]


def only_order(engine: Engine) -> Order:
    """Return the only order."""
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
