"""Limits of job types."""

from __future__ import annotations

from models import Base, NotAJob, SendInvoice
from sqlalchemy import create_engine

from sqlalchemy_proletarian import Handlers, LimitPlace, LimitPlaceMixin, QueueWorker

handlers = Handlers()
engine = create_engine("postgresql+psycopg://")


class ShopPlace(LimitPlaceMixin, Base):
    __tablename__ = "shop_place"


@handlers("sync", concurrency=2, concurrency_key=lambda payload: payload["customer"], rate="1/day")
def sync(payload: dict[str, int]) -> None: ...


@handlers(SendInvoice, concurrency_key=lambda job: job.order_id)
def invoice(job: SendInvoice) -> None: ...


def options() -> None:
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers("a", concurrency="2")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers("a", concurrency_key="customer")
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers("a", rate=5)


def workers() -> None:
    QueueWorker(engine, handlers, limit_place_model=ShopPlace)
    QueueWorker(engine, handlers, limit_place_model="default")
    # error: mypy=arg-type pyright=reportArgumentType,reportCallIssue
    QueueWorker(engine, handlers, limit_place_model=NotAJob)


def places(place: LimitPlace) -> tuple[str, int]:
    return place.name, place.number
