"""Logging with the standard library: problems to stderr, and a file with a line for each job."""

import logging
import logging.config
import os
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker, enqueue, migrate

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()


class JobFinished(logging.Filter):
    """Lets only the lines of finished jobs pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is such a line."""
        return getattr(record, "event", None) == "job-finished"


CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"finished": {"()": JobFinished}},
    "formatters": {
        "text": {"format": "%(asctime)s %(levelname)s %(message)s"},
        "job": {"format": "%(asctime)s %(outcome)s %(job_type)s %(job_id)s %(duration).3f"},
    },
    "handlers": {
        "problems": {
            "class": "logging.StreamHandler",
            "formatter": "text",
            "level": "WARNING",
        },
        "jobs": {
            "class": "logging.FileHandler",
            "filename": os.environ.get("JOBS_LOG", "jobs.log"),
            "delay": True,
            "formatter": "job",
            "filters": ["finished"],
        },
    },
    "loggers": {"sqlalchemy_proletarian": {"level": "INFO", "handlers": ["problems", "jobs"]}},
}


@handlers("greet")
def greet(name: str) -> None:
    """Greet somebody, but not everybody."""
    if name == "Mallory":
        raise PermissionError("no greeting for you")


def main() -> None:
    """Run two jobs, one of which fails, and print the file."""
    logging.config.dictConfig(CONFIG)
    migrate.upgrade(url)
    with Session(engine) as session, session.begin():
        greet.enqueue(session, "Ada")
        enqueue(session, "greet", "Mallory")
    QueueWorker(engine, handlers).drain()
    print(Path(os.environ.get("JOBS_LOG", "jobs.log")).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
