"""The handler's annotation is the payload's type: a dataclass, TypedDict or pydantic model."""

import os
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import TypedDict

from pydantic import BaseModel, Field
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, PayloadError, QueueWorker, enqueue, migrate

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()


@dataclass
class Invoice:
    """A dataclass: its fields may be dates, decimals, UUIDs and other dataclasses."""

    amount: Decimal
    due: date


class Reminder(TypedDict):
    """A TypedDict: a plain dict for the handler, checked when it is decoded."""

    due: date


class Signup(BaseModel):
    """A pydantic model, if pydantic is installed."""

    name: str = Field(min_length=1)


@handlers("invoice")
def invoice(payload: Invoice) -> None:
    """Receive the dataclass."""
    print(f"{payload.amount} due on {payload.due:%A}")


@handlers("reminder")
def reminder(payload: Reminder) -> None:
    """Receive the dict, with its date."""
    print(f"reminder for {payload['due']:%A}")


@handlers("signup")
def signup(payload: Signup) -> None:
    """Receive the model."""
    print(f"hello {payload.name}")


def main() -> None:
    """Enqueue a payload of each type, and one that JSON cannot represent."""
    migrate.upgrade(url)
    with Session(engine) as session, session.begin():
        # The type checker knows the payload type of each handler.
        invoice.enqueue(session, Invoice(Decimal("9.90"), date(2030, 1, 1)))
        reminder.enqueue(session, {"due": date(2030, 1, 2)})
        signup.enqueue(session, Signup(name="Ada"))
        try:
            enqueue(session, "invoice", {"lines": [{"amount": Decimal("9.90")}]})
        except PayloadError as error:
            print(f"refused: {error}")

    QueueWorker(engine, handlers).drain()


if __name__ == "__main__":
    main()
