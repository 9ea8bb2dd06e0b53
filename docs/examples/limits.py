"""Limits of job types, which all workers together keep."""

import os
from datetime import timedelta
from threading import Lock
from time import monotonic, sleep

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker, enqueue, manage, migrate

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()
lock = Lock()
running: dict[str, int] = {}
most: dict[str, int] = {}
sent: list[float] = []

JOBS = 8
"""How many jobs of each type there are."""


def work(name: str) -> None:
    """Work for a moment, and count how many do so at the same time."""
    with lock:
        running[name] = running.get(name, 0) + 1
        most[name] = max(most.get(name, 0), running[name])
    sleep(0.05)
    with lock:
        running[name] -= 1


@handlers("export", concurrency=2)
def export(payload: int) -> None:
    """Run at most twice at a time."""
    work("export")


@handlers("sync", concurrency_key=lambda payload: payload["customer_id"])
def sync(payload: dict[str, int]) -> None:
    """Run once at a time for each customer."""
    work(f"customer {payload['customer_id']}")


@handlers("mail", rate="5/second")
def mail(payload: str) -> None:
    """Start at most five times in any second."""
    sent.append(monotonic())


def main() -> None:
    """Enqueue jobs of each type, and run them with two workers."""
    migrate.upgrade(url)
    with Session(engine) as session, session.begin():
        for n in range(JOBS):
            enqueue(session, "export", n)
            enqueue(session, "sync", {"customer_id": n % 2})
            enqueue(session, "mail", f"customer-{n}@example.com")
    interval = timedelta(milliseconds=200)
    workers = [
        QueueWorker(engine, handlers, threads=4, polling_interval=interval) for _ in range(2)
    ]
    with workers[0], workers[1]:
        while True:
            with Session(engine) as session:
                if manage.stats(session).queues["default"].succeeded == 3 * JOBS:
                    break
            sleep(0.1)
    for name in ("export", "customer 0", "customer 1"):
        print(f"{name}: at most {most[name]} at a time")
    sent.sort()
    print(f"there is a second between the first mail and the sixth: {sent[5] - sent[0] >= 1}")


if __name__ == "__main__":
    main()
