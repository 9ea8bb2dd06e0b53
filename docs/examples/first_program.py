"""Commit a new user and a welcome job together, then run the job."""

import os
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import Handlers, QueueWorker, RetryStrategy, migrate

url = os.environ["DATABASE_URL"]  # postgresql://user:password@host/database
engine = create_engine(url)
handlers = Handlers()


class Base(DeclarativeBase):
    """Your own declarative base."""


class User(Base):
    """One of your models; the library does not use it."""

    __tablename__ = "user_account"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    welcomed: Mapped[bool] = mapped_column(default=False)


@dataclass
class Welcome:
    """The payload of the job."""

    user_id: int


@handlers("welcome", retry=RetryStrategy(retries=2, delays=[timedelta(seconds=5)]))
def welcome(payload: Welcome, session: Session) -> None:
    """Welcome a user; the session commits when the job completes."""
    user = session.get_one(User, payload.user_id)
    print(f"Welcome, {user.email}!")
    user.welcomed = True


if __name__ == "__main__":
    migrate.upgrade(url)  # creates the job tables
    Base.metadata.create_all(engine)

    with Session(engine) as session, session.begin():
        user = User(email="ada@example.com")
        session.add(user)
        session.flush()  # assigns user.id
        welcome.enqueue(session, Welcome(user.id))

    worker = QueueWorker(engine, handlers)
    worker.drain()  # runs the due jobs; worker.run() runs until Ctrl-C or SIGTERM
