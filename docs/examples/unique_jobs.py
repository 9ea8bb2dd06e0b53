"""Unique jobs: one job for many changes, a reminder that is postponed, and an error."""

import os
from datetime import timedelta

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    JobExistsError,
    QueueWorker,
    enqueue_unique,
    migrate,
)

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()
runs: list[int] = []


@handlers("index", unique_key=lambda page: f"page {page}", unique_while="queued")
def index(page: int, session: Session) -> None:
    """Index a page. While this runs, a change of the page enqueues it again."""
    runs.append(page)
    if runs == [1, 2]:
        again = index.enqueue_unique(session, 2)
        print(f"page 2 changes while it is indexed, a new job: {again.created}")


if __name__ == "__main__":
    migrate.upgrade(url)

    for page in (1, 2, 1, 1, 2):  # five changes, each in a transaction of its own
        with Session(engine) as session, session.begin():
            index.enqueue(session, page)
    QueueWorker(engine, handlers).drain()
    print(f"indexed: {runs}")

    with Session(engine) as session, session.begin():
        first, later = (
            enqueue_unique(
                session,
                "remind",
                name,
                process_in=timedelta(days=days),
                unique_key="remind-ada",
                on_conflict="replace",
            )
            for name, days in [("Ada", 1), ("Ada!", 2)]
        )
        print(f"postponed: {later.replaced}, the same job: {later.job is first.job}")
        print(f"its payload: {later.job.payload}")
        try:
            enqueue_unique(session, "remind", unique_key="remind-ada", on_conflict="raise")
        except JobExistsError as error:
            print(f"refused: {error.unique_key}, the job is known: {error.job_id is not None}")
