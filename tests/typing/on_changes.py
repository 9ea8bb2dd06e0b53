"""Jobs for changes of objects."""

from __future__ import annotations

from typing import Any, assert_type

from models import Base, SendInvoice
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from sqlalchemy_proletarian import Handlers, Job

handlers = Handlers()


class Order(Base):
    __tablename__ = "order_with_jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]


@handlers("welcome")
def welcome(order_id: int, session: Session, job: Job) -> None: ...


@handlers(SendInvoice)
def send(job: SendInvoice) -> None: ...


def number(order: Order) -> int:
    return order.id


@handlers.listen
class OwnSession(Session):
    def own(self) -> None: ...


def triggers() -> None:
    handlers.on_insert(Order, welcome, payload=lambda order: order.id)
    handlers.on_insert(Order, welcome, payload=number, when=lambda order: order.id > 1, priority=2)
    handlers.on_update(Order, welcome, payload=number, columns=[Order.status, "id"])
    handlers.on_delete(Order, "gone", payload=lambda order: order.status)
    handlers.on_insert(Order, send, payload=lambda order: SendInvoice())
    maker = sessionmaker(class_=OwnSession)
    assert_type(handlers.listen(maker), sessionmaker[OwnSession])
    OwnSession().own()


def mistakes(anything: Any) -> None:
    # error: mypy=arg-type,return-value pyright=reportArgumentType,reportCallIssue
    handlers.on_insert(Order, welcome, payload=lambda order: order.status)
    # error: mypy=attr-defined pyright=reportAttributeAccessIssue
    handlers.on_insert(Order, welcome, payload=lambda order: order.number)
    # error: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    handlers.on_update(Order, 7, payload=anything)
