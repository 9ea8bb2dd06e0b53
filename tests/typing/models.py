"""Job classes that the other modules use."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy.orm import DeclarativeBase, Mapped

from sqlalchemy_proletarian import ArchivedJobMixin, JobMixin, RecurringJobMixin


class Base(DeclarativeBase):
    pass


class ShopJob(JobMixin, Base):
    __tablename__ = "shop_job"

    order_id: Mapped[UUID | None]


class ArchivedShopJob(ArchivedJobMixin, Base):
    __tablename__ = "archived_shop_job"


class SendInvoice(ShopJob):
    __mapper_args__: Any = {"polymorphic_identity": "send-invoice"}  # noqa: RUF012


class NotAJob(Base):
    __tablename__ = "not_a_job"

    name: Mapped[str]


class RecurringShopJob(RecurringJobMixin, Base):
    __tablename__ = "recurring_shop_job"

    shop: Mapped[int | None]
