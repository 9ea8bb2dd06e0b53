"""Recurring jobs: of code and of users, when clocks go back, and after a downtime."""

import os
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, RecurringJob, manage, migrate

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()
OSLO = ZoneInfo("Europe/Oslo")


@handlers.recurring("nightly-report", cron="30 2 * * *", timezone="Europe/Oslo", payload="sales")
@handlers("report")
def report(subject: str, job: Job) -> None:
    """Report on a subject; ``unique_key`` says for which tick."""
    print(f"report on {subject} ({job.unique_key})")


@handlers.recurring("clean-up", every=timedelta(hours=6))
def clean_up(payload: None) -> None:
    """Handle jobs of the type "clean-up"."""
    print("cleaned up")


class Clock:
    """A clock for this example; leave the option out in your program."""

    now = datetime(2026, 10, 24, 23, 59, tzinfo=OSLO)

    def __call__(self) -> datetime:
        """Return the time of the example."""
        return self.now


if __name__ == "__main__":
    migrate.upgrade(url)
    clock = Clock()
    worker = QueueWorker(engine, handlers, clock=clock)
    worker.drain()  # writes the rows of the recurring jobs

    with Session(engine) as session, session.begin():  # a user of the application
        manage.schedule(
            session,
            "report-for-ada",
            "report",
            "invoices",
            cron="0 8 * * MON",
            timezone="Europe/Oslo",
            clock=clock,
        )

    print("clocks go back at 3 o'clock:")
    for hour in range(8):  # 2:30 twice: in the summer time, and in the winter time
        clock.now = datetime(2026, 10, 24, 22, 31, tzinfo=ZoneInfo("UTC")) + timedelta(hours=hour)
        worker.drain()

    print("a week without a worker:")
    clock.now = datetime(2026, 11, 2, 9, tzinfo=OSLO)
    worker.drain()

    with Session(engine) as session, session.begin():
        manage.unschedule(session, "report-for-ada")
        for row in session.scalars(select(RecurringJob).order_by(RecurringJob.name)):
            assert row.next_at is not None
            print(f"{row.name}: next at {row.next_at.astimezone(OSLO):%d %B %H:%M}")
