"""Control of jobs and queues, in transactions of your own."""

import os
from datetime import timedelta

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
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


@handlers("invoice")
def invoice(payload: int) -> None:
    """Fail until the exchange rates are there."""
    if not rates:
        raise LookupError("no exchange rates")
    print(f"invoice {payload}: {rates[0]}")


rates: list[str] = []


def retry_failures() -> None:
    """Retry failed jobs, and change jobs that wait."""
    worker = QueueWorker(engine, handlers)
    with Session(engine) as session, session.begin():
        invoice.enqueue(session, 1)
        invoice.enqueue(session, 2)
        later = invoice.enqueue(session, 3, process_in=timedelta(days=1)).job_id
        never = invoice.enqueue(session, 4, process_in=timedelta(days=1)).job_id
    worker.drain()
    rates.append("1.08")
    with Session(engine) as session, session.begin():
        count = manage.retry_where(
            session, ArchivedJob.job_type == "invoice", ArchivedJob.status == "failure"
        )
        print(f"retried: {count}")
        print(manage.reschedule(session, later, process_in=timedelta(0)))
        print(manage.discard(session, never, reason="paid in cash"))
    worker.drain()


def look() -> None:
    """Print the numbers of each job type, and which jobs are running."""
    with Session(engine) as session, session.begin():
        newsletter.enqueue(session, "eve@example.com")
    with Session(engine) as session:
        for counts in manage.stats(session).job_types:
            ended = f"{counts.succeeded} succeeded, {counts.failed} failed"
            print(f"{counts.queue}: {counts.job_type}: {counts.due} due, {ended}")
        for job in manage.running(session):
            print(f"{job.job_type} on {job.worker} since {job.started_at}")


def prune_the_archive() -> None:
    """Delete successful jobs at once, and keep the others for 90 days."""
    pruned = manage.prune(engine, older_than=timedelta(0), status="success")
    print(f"pruned: {pruned}")
    worker = QueueWorker(engine, handlers, archive_retention={"failure": timedelta(days=90)})
    with worker:
        print("the worker prunes in the background")


def main() -> None:
    """Show each group of functions."""
    migrate.upgrade(url)
    pause_a_queue()
    retry_failures()
    look()
    prune_the_archive()


if __name__ == "__main__":
    main()
