"""Test your own code in one transaction, which the test rolls back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, enqueue, migrate, process_next_job

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()
greeted: list[str] = []


@handlers("greet")
def greet(name: str) -> None:
    """Record a greeting."""
    greeted.append(name)


def sign_up(session: Session, name: str) -> None:
    """Enqueue a greeting: the code under test, which commits as in production."""
    enqueue(session, "greet", name)
    session.commit()


@contextmanager
def rolled_back_session() -> Iterator[Session]:
    """Yield a session whose commits are rolled back; use it as a fixture of your own."""
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()


def test_sign_up() -> None:
    """A sign-up enqueues a greeting, and the greeting runs."""
    with rolled_back_session() as session:
        sign_up(session, "Ada")
        assert [job.job_type for job in session.scalars(select(Job))] == ["greet"]
        assert process_next_job(session, handlers) is True
        assert process_next_job(session, handlers) is None  # no other job is due
        assert greeted == ["Ada"]


if __name__ == "__main__":
    migrate.upgrade(url)
    test_sign_up()
    print("passed")
