"""Test your own code in a transaction that is rolled back: run this file with pytest."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import Handlers, RetryStrategy, migrate
from sqlalchemy_proletarian.testing import (
    FrozenClock,
    Outcome,
    assert_enqueued,
    assert_not_enqueued,
    drain,
    perform,
)

# The application.


class Base(DeclarativeBase):
    """The base of the application's models."""


class User(Base):
    """Somebody who has signed up."""

    __tablename__ = "app_user"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    welcomed: Mapped[bool] = mapped_column(default=False)


@dataclass
class Welcome:
    """The payload of a job."""

    user_id: int


handlers = Handlers()
outbox: list[str] = []


@handlers("welcome", retry=RetryStrategy(retries=3, delays=[timedelta(minutes=5)]))
def welcome(payload: Welcome, session: Session) -> None:
    """Send an email, and remember that."""
    user = session.get_one(User, payload.user_id)
    if user.email.endswith(".invalid"):
        raise ConnectionError("the mail server does not answer")
    outbox.append(user.email)
    user.welcomed = True
    remind.enqueue(session, user.email, process_in=timedelta(days=7))


@handlers("remind")
def remind(email: str) -> None:
    """Send another email."""
    outbox.append(f"{email} again")


def sign_up(session: Session, email: str) -> User:
    """Add a user and a job, in one transaction: the code under test."""
    user = User(email=email)
    session.add(user)
    session.flush()
    welcome.enqueue(session, Welcome(user.id))
    session.commit()
    return user


# The fixtures: a session whose commits are rolled back.


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Yield the engine of a test database with all tables."""
    url = os.environ["DATABASE_URL"]
    migrate.upgrade(url)
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session in a transaction that is rolled back at the end."""
    outbox.clear()
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()


# The tests.


def test_a_sign_up_enqueues_a_welcome(session: Session) -> None:
    """The job has the id of the user."""
    user = sign_up(session, "ada@example.com")
    assert_enqueued(session, welcome, payload=Welcome(user.id), count=1)


def test_the_welcome_is_sent(session: Session) -> None:
    """The job runs in the transaction of the test."""
    user = sign_up(session, "ada@example.com")
    [run] = drain(session, handlers)
    assert run.outcome == Outcome.SUCCESS
    assert user.welcomed
    assert outbox == ["ada@example.com"]
    assert_enqueued(session, remind, payload="ada@example.com", process_in=timedelta(days=7))


def test_a_failed_welcome_is_sent_later(session: Session, proletarian_clock: FrozenClock) -> None:
    """A job that fails runs again after five minutes."""
    user = sign_up(session, "ada@nowhere.invalid")
    [run] = drain(session, handlers)
    assert run.outcome == Outcome.RETRIED
    assert isinstance(run.error, ConnectionError)
    assert run.process_at == proletarian_clock() + timedelta(minutes=5)

    user.email = "ada@example.com"
    proletarian_clock.advance(timedelta(minutes=5))
    [run] = drain(session, handlers, raise_errors=True)
    assert (run.attempt, run.outcome) == (2, Outcome.SUCCESS)


def test_a_reminder_follows_after_a_week(session: Session, proletarian_clock: FrozenClock) -> None:
    """A job that waits runs when the clock has moved."""
    sign_up(session, "ada@example.com")
    drain(session, handlers, raise_errors=True)
    proletarian_clock.advance(timedelta(days=7))
    drain(session, handlers, raise_errors=True)
    assert outbox == ["ada@example.com", "ada@example.com again"]
    assert_not_enqueued(session)


def test_one_handler_alone(session: Session) -> None:
    """A handler runs without a queue, and raises what it raises."""
    user = User(email="ada@nowhere.invalid")
    session.add(user)
    session.flush()
    with pytest.raises(ConnectionError):
        perform(welcome, Welcome(user.id), session=session)
    assert not user.welcomed
