"""The jobs of a shop, for ``proletarian worker shop_jobs:handlers``; run it to enqueue some."""

import os
from dataclasses import dataclass

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, migrate

handlers = Handlers()


@dataclass
class Receipt:
    """The payload of the jobs."""

    order: int
    email: str


@handlers("send-receipt")
def send_receipt(receipt: Receipt, session: Session) -> None:
    """Send a receipt; what the session writes commits when the job completes."""
    print(f"receipt for order {receipt.order} to {receipt.email}", flush=True)


@handlers("charge-card", queue="critical")
def charge_card(order: int) -> None:
    """Charge a card, before any receipt is sent."""
    print(f"charged order {order}", flush=True)


def main() -> None:
    """Enqueue what an application would enqueue."""
    url = os.environ["PROLETARIAN_URL"]
    migrate.upgrade(url)
    with Session(create_engine(url)) as session, session.begin():
        for order in range(1, 4):
            send_receipt.enqueue(session, Receipt(order, "ada@example.com"))
            charge_card.enqueue(session, order)


if __name__ == "__main__":
    main()
