"""A job is a row of your transaction: a job that is rolled back never runs."""

import os

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, enqueue, migrate

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()
ran: list[str] = []


@handlers("note")
def note(name: str) -> None:
    """Record that the job ran."""
    ran.append(name)


def main() -> None:
    """Enqueue four jobs, two of which are rolled back."""
    migrate.upgrade(url)
    with Session(engine) as session:
        enqueue(session, "note", "committed")
        session.commit()

        enqueue(session, "note", "rolled back")
        session.flush()  # even if the row has been sent to the database
        session.rollback()

        enqueue(session, "note", "outside the savepoint")
        savepoint = session.begin_nested()
        enqueue(session, "note", "inside the savepoint")
        savepoint.rollback()
        session.commit()

        print("queued:", session.scalar(select(func.count()).select_from(Job)))

    QueueWorker(engine, handlers).drain()
    print("ran:", ", ".join(ran))


if __name__ == "__main__":
    main()
