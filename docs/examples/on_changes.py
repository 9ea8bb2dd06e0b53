"""Jobs for changes of objects, in the flush that writes them."""

import os

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqlalchemy_proletarian import Handlers, QueueWorker, migrate

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()


class Base(DeclarativeBase):
    """The base of the application's tables."""


class Order(Base):
    """An order in a shop."""

    __tablename__ = "order_of_a_shop"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(server_default="new")
    comment: Mapped[str | None]


@handlers("confirm")
def confirm(order_id: int) -> None:
    """Confirm an order."""
    print(f"confirm order {order_id}")


@handlers("tell")
def tell(status: str) -> None:
    """Tell the customer the new status."""
    print(f"the order is {status}")


@handlers("refund")
def refund(order_id: int) -> None:
    """Refund an order that was deleted."""
    print(f"refund order {order_id}")


handlers.on_insert(Order, confirm, payload=lambda order: order.id)
handlers.on_update(Order, tell, payload=lambda order: order.status, columns=[Order.status])
handlers.on_delete(
    Order, refund, payload=lambda order: order.id, when=lambda order: order.status == "paid"
)

AppSession = handlers.listen(sessionmaker(engine))

if __name__ == "__main__":
    migrate.upgrade(url)
    Base.metadata.create_all(engine)
    worker = QueueWorker(engine, handlers)

    with AppSession() as session:
        order = Order()
        session.add(order)
        session.commit()  # the order and its job
        session.add(Order())
        session.flush()
        session.rollback()  # no order, no job
        worker.drain()

        order.status = "paid"
        session.commit()
        order.comment = "with a ribbon"  # no change of the status
        session.commit()
        worker.drain()

        session.delete(order)
        session.commit()
    worker.drain()
