"""Retries: decided by a strategy, by a function of (job, exception), or by the handler."""

import os
from datetime import timedelta
from time import sleep

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Discard,
    Handlers,
    Job,
    QueueWorker,
    RetryAfter,
    RetryStrategy,
    Snooze,
    enqueue,
    migrate,
)

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()


class QuotaError(Exception):
    """The quota of requests to the partner service is used up."""


@handlers("always-fails", retry=RetryStrategy(retries=3, delays=[timedelta(0)]))
def always_fails(payload: None) -> None:
    """Fail in each of the four attempts."""
    raise ConnectionError


@handlers(
    "flaky",
    retry=RetryStrategy.exponential(retries=8, first=1, on=(ConnectionError, TimeoutError)),
)
def flaky(payload: str, job: Job) -> None:
    """Fail until the partner answers; the job has the last error. ``first=1`` is 1 millisecond."""
    if payload == "broken":
        raise ValueError(payload)
    if job.error is None:
        raise ConnectionError("no answer")
    print(f"attempt {job.attempts} knows: {job.error.splitlines()[-1]}")


@handlers("depends")
def depends(payload: str) -> None:
    """Raise an exception that the retry strategy checks."""
    raise QuotaError if payload == "quota" else ValueError(payload)


@handlers.retry_strategy("depends")
def depends_strategy(job: Job, exception: Exception) -> RetryStrategy | None:
    """Retry if the quota is used up, and never otherwise."""
    return RetryStrategy(retries=1) if isinstance(exception, QuotaError) else None


@handlers("decides")
def decides(payload: str, job: Job) -> None:
    """Decide in the handler what happens to the job."""
    if payload == "hopeless":
        raise Discard("the account is closed")
    if payload == "not-today":
        raise Snooze(timedelta(days=1))
    if job.attempts == 1:
        raise RetryAfter(timedelta(0), "the partner said: try again at once")


def main() -> None:
    """Run one job of each kind and print how it ended."""
    migrate.upgrade(url)
    with Session(engine) as session, session.begin():
        enqueue(session, "always-fails")
        enqueue(session, "flaky", "partner")
        enqueue(session, "flaky", "broken")
        enqueue(session, "depends", "quota")
        enqueue(session, "depends", "broken")
        enqueue(session, "decides", "hopeless")
        enqueue(session, "decides", "not-today")
        enqueue(session, "decides", "again")

    worker = QueueWorker(engine, handlers, batch_size=1)
    while worker.drain():
        sleep(0.05)  # longer than the delays of this example

    with Session(engine) as session:
        for job in session.scalars(select(ArchivedJob).order_by(ArchivedJob.job_id)):
            print(f"{job.job_type} {job.payload}: {job.status} after {job.attempts}")
        for waiting in session.scalars(select(Job)):
            print(f"{waiting.job_type} {waiting.payload}: waits, {waiting.attempts} attempts")


if __name__ == "__main__":
    main()
