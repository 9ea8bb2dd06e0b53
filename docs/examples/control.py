"""Control of jobs and queues, in transactions of your own."""

import os

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    PausedQueue,
    QueueWorker,
    manage,
    migrate,
)

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()


@handlers("newsletter", queue="mail")
def newsletter(payload: str) -> None:
    """Send a newsletter."""
    print(f"newsletter to {payload}")


def pause_a_queue() -> None:
    """Pause a queue, enqueue a job in it, and resume it."""
    worker = QueueWorker(engine, handlers, queues=["default", "mail"])
    with Session(engine) as session, session.begin():
        manage.pause(session, "mail", reason="the mail server is down", paused_by="Ada")
        newsletter.enqueue(session, "bob@example.com")
    print(f"while paused: {worker.drain()} runs")
    with Session(engine) as session, session.begin():
        for row in session.scalars(select(PausedQueue)):
            print(f"{row.queue} was paused by {row.paused_by}: {row.reason}")
        manage.resume(session, "mail")
    print(f"resumed: {worker.drain()} runs")


def main() -> None:
    """Show each group of functions."""
    migrate.upgrade(url)
    pause_a_queue()


if __name__ == "__main__":
    main()
