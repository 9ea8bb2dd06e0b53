"""A payload is what the handler's annotation says: a dataclass, a TypedDict, a pydantic model."""

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
    """A pydantic model, where pydantic is installed."""

    name: str = Field(min_length=1)


@handlers("invoice")
def invoice(payload: Invoice) -> None:
    """Get the dataclass back."""
    print(f"{payload.amount} due on {payload.due:%A}")


@handlers("reminder")
def reminder(payload: Reminder) -> None:
    """Get the dict back, with its date."""
    print(f"reminder for {payload['due']:%A}")


@handlers("signup")
def signup(payload: Signup) -> None:
    """Get the model back."""
    print(f"hello {payload.name}")


def main() -> None:
    """Send one of each, and one that no JSON can hold."""
    migrate.upgrade(url)
    with Session(engine) as session, session.begin():
        # Typed: the checker knows what each handler takes.
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
