"""Each event as a JSON object, by python-json-logger."""

import logging
import os
import sys

from pythonjsonlogger.json import JsonFormatter
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker, migrate

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()


@handlers("greet")
def greet(name: str) -> None:
    """Greet somebody."""


def set_up_logging() -> None:
    """Log the attributes of each record, of which the event's data are some."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter("{asctime}{levelname}{name}{message}", style="{"))
    logging.basicConfig(level="INFO", handlers=[handler])
    logging.getLogger("alembic").setLevel("WARNING")


def main() -> None:
    """Run a job."""
    set_up_logging()
    migrate.upgrade(url)
    with Session(engine) as session, session.begin():
        greet.enqueue(session, "Ada", headers={"request": "r-1"})
    QueueWorker(engine, handlers).drain()


if __name__ == "__main__":
    main()
