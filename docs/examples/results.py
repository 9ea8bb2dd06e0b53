"""Results of jobs, and headers that travel with them."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    JobFailedError,
    QueueWorker,
    RetryStrategy,
    manage,
    migrate,
)

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()


@dataclass
class Total:
    """What a report returns."""

    month: str
    amount: int


@handlers("report", keep_result=True)
def report(payload: str, job: Job) -> Total:
    """Compute a report for the tenant in the headers."""
    tenant = (job.headers or {}).get("tenant", "nobody")
    print(f"computing {payload} for {tenant}")
    if payload == "Smarch":
        raise ValueError("no such month")
    return Total(payload, 42)


def log(event: str, data: Mapping[str, Any]) -> None:
    """Print the events of jobs with headers."""
    if "headers" in data:
        print(f"{event}: request {data['headers']['request']}, attempt {data['attempt']}")


def enqueue_report(month: str, request: str) -> Any:
    """Enqueue and commit a report, and return its id."""
    headers = {"tenant": "acme", "request": request}
    with Session(engine) as session, session.begin():
        return report.enqueue(session, month, headers=headers).job_id


def main() -> None:
    """Wait for a report, and for one that fails."""
    migrate.upgrade(url)
    logging.getLogger("sqlalchemy_proletarian").setLevel(logging.CRITICAL)
    strategy = RetryStrategy(retries=1)
    with QueueWorker(engine, handlers, retry_strategy=strategy, log=log):
        job_id = enqueue_report("May", "r-1")
        total = manage.wait_for(engine, job_id, timeout=timedelta(seconds=30), handler=report)
        print(f"{total.value.month}: {total.value.amount}, after {total.attempts} attempts")

        job_id = enqueue_report("Smarch", "r-2")
        try:
            manage.wait_for(engine, job_id, timeout=timedelta(seconds=30), handler=report)
        except JobFailedError as error:
            print(f"{error.status}: {(error.error or '').splitlines()[-1]}")

    with Session(engine) as session:
        of_acme = ArchivedJob.headers["tenant"].as_string() == "acme"
        for job in session.scalars(select(ArchivedJob).where(of_acme).order_by("finished_at")):
            print(f"{job.headers}: {job.status}, {job.result}")


if __name__ == "__main__":
    main()
