"""A worker process that keeps results, for tests of those who wait in another process.

Usage: ``python -m tests.integration.results_program URL MODE DIRECTORY``. A handler of "slow" jobs
prints "half way", and waits until the directory contains a file ``go``.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from time import sleep

from sqlalchemy import create_engine

from sqlalchemy_proletarian import Handlers, QueueWorker

LEASE = timedelta(seconds=2)
"""How long the jobs of a killed worker wait in lease mode."""


def handlers(directory: Path | None = None) -> Handlers:
    """Return the handlers.

    :param directory: where slow jobs look for ``go``; None if they do not wait.
    """
    registry = Handlers()

    @registry("square", keep_result=True)
    def square(payload: int) -> int:
        return payload * payload

    @registry("slow", keep_result=True)
    def slow(payload: str) -> str:
        if directory is not None:
            os.write(1, b"half way\n")
            while not (directory / "go").exists():
                sleep(0.01)
        return f"{payload} by {os.getpid()}"

    return registry


def main(url: str, mode: str, directory: str) -> None:
    """Run a worker until it is stopped."""
    options = {"lease": LEASE} if mode == "lease" else {}
    worker = QueueWorker(
        create_engine(url), handlers(Path(directory)), threads=2, batch_size=1, **options
    )
    with worker:
        os.write(1, b"started\n")
        sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
