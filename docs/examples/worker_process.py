"""A worker as a separate process: it logs, runs until SIGTERM, and lets running jobs finish."""

import logging
import os
from datetime import timedelta

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker, migrate

handlers = Handlers()


@handlers("tidy-up")
def tidy_up(payload: None, session: Session) -> None:
    """Do the work."""


def main() -> None:
    """Work until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    url = os.environ["DATABASE_URL"]
    migrate.upgrade(url)
    worker = QueueWorker(
        create_engine(url),
        handlers,
        queues=["critical", "default"],  # strictly in this order
        threads=4,
        shutdown_timeout=timedelta(seconds=25),
    )
    worker.run()


if __name__ == "__main__":
    main()
