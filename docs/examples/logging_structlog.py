"""Events among the log of a program that uses structlog, with the same keys."""

import logging
import os
import sys
from collections.abc import Iterator

import structlog
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, migrate

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()
log = structlog.get_logger()


@handlers.middleware
def bind_job(jobs: list[Job]) -> Iterator[None]:
    """Add the id of the job to all lines that its handler logs."""
    structlog.contextvars.bind_contextvars(job_id=jobs[0].job_id)
    yield


@handlers("greet")
def greet(name: str) -> None:
    """Greet somebody."""
    log.info("greeted", length=len(name))


def set_up_logging() -> None:
    """Render the program's lines and those of other libraries by one formatter."""
    shared = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # ExtraAdder adds the data of an event, and replaces the message by its name.
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),  # or dev.ConsoleRenderer()
            ],
        )
    )
    logging.basicConfig(level="INFO", handlers=[handler])
    logging.getLogger("alembic").setLevel("WARNING")


def main() -> None:
    """Run a job."""
    set_up_logging()
    migrate.upgrade(url)
    with Session(engine) as session, session.begin():
        greet.enqueue(session, "Ada")
    QueueWorker(engine, handlers).drain()


if __name__ == "__main__":
    main()
