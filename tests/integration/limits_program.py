"""A worker process whose handlers have limits, for tests that kill it or freeze it.

Usage: ``python -m tests.integration.limits_program URL MODE DIRECTORY [LIMIT]``. ``MODE`` is
"transaction" or "lease". Each handler takes a lock on a file while it runs, of which there are as
many as its limit allows. The kernel releases it when the process dies. If there is no lock to take,
the handler writes a line to the file ``exceeded``.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from time import sleep, time_ns
from typing import Any

from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, QueueWorker

LEASE = timedelta(seconds=1.5)
RANDOM = Random()  # noqa: S311

RATE = 8
"""The number of starts per second."""


def append(file: Path, line: str) -> None:
    """Write a line at once, which a kill can neither tear nor lose."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


@contextmanager
def one_of(directory: Path, name: str, limit: int) -> Iterator[None]:
    """Hold one of ``limit`` locks in the block; note it in a file if there is none."""
    held = None
    for number in range(limit):
        descriptor = os.open(directory / f"{name}-{number}", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            held = descriptor
            break
    if held is None:
        append(directory / "exceeded", f"{name} {limit}")
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def limited(directory: Path, limit: int) -> Handlers:
    """Return handlers with limits."""
    handlers = Handlers()

    @handlers("sync", concurrency=limit)
    def sync(payload: int, session: Session) -> None:
        with one_of(directory, "sync", limit):
            sleep(RANDOM.random() / 50)

    @handlers("customer", concurrency_key=lambda payload: payload["customer"])
    def customer(payload: dict[str, int]) -> None:
        with one_of(directory, f"customer-{payload['customer']}", 1):
            sleep(RANDOM.random() / 50)

    @handlers("rated", rate=f"{RATE}/second")
    def rated(payload: int) -> None:
        append(directory / "starts", str(time_ns()))

    @handlers("slow", concurrency=1)
    def slow(payload: int) -> None:
        with one_of(directory, "slow", 1):
            (directory / f"slow-began-{payload}").touch()
            while not (directory / f"slow-go-{payload}").exists():
                sleep(0.02)

    return handlers


def main(url: str, mode: str, directory: str, limit: str = "3") -> None:
    options: dict[str, Any] = {"lease": LEASE} if mode == "lease" else {}
    (Path(directory) / f"started-{os.getpid()}").touch()
    QueueWorker(
        create_engine(make_url(url)),
        limited(Path(directory), int(limit)),
        threads=4,
        polling_interval=timedelta(seconds=0.2),
        max_deaths=1000,
        **options,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
