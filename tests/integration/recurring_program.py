"""A process with workers that enqueue ticks, for tests that kill it.

Usage: ``python -m tests.integration.recurring_program URL CLOCK MODE [SKEW …]``. ``CLOCK`` is a
file with the time. There is a worker for each ``SKEW``, the seconds by which its clock is wrong.
``MODE`` is "work", or "die before" or "die after" the commit of the first tick.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, make_url

from sqlalchemy_proletarian import Handlers, QueueWorker

SECOND = timedelta(seconds=1)
POLLING = SECOND / 50


def write_time(file: Path, time: datetime) -> None:
    """Set the clock of all processes."""
    with file.open("r+b" if file.exists() else "wb") as stream:
        stream.write(struct.pack("d", time.timestamp()))


def clock_of(file: Path, skew: float) -> Callable[[], datetime]:
    """Return a clock that is wrong by ``skew`` seconds."""

    def clock() -> datetime:
        (seconds,) = struct.unpack("d", file.read_bytes())
        return datetime.fromtimestamp(seconds + skew, UTC)

    return clock


def recurring() -> Handlers:
    """Return handlers for two recurring jobs with a tick each minute."""
    handlers = Handlers()

    @handlers.recurring("interval", every=60 * SECOND, catch_up="all")
    @handlers.recurring("cron", cron="* * * * *", timezone="Europe/Oslo", catch_up="all")
    @handlers("report")
    def report(payload: None) -> None: ...

    return handlers


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(url: str, clock: str, mode: str, *skews: str) -> None:
    engine = create_engine(make_url(url))
    inserting: set[int] = set()

    def executed(connection: Connection, _: Any, statement: str, *__: Any) -> None:
        if statement.startswith("INSERT INTO proletarian.job "):
            inserting.add(id(connection))

    def commit(connection: Connection) -> None:
        if mode == "die before" and id(connection) in inserting:
            die()

    def log(name: str, _: Mapping[str, Any]) -> None:
        if mode == "die after" and name == "recurring-enqueued":
            die()

    event.listen(engine, "after_cursor_execute", executed)
    event.listen(engine, "commit", commit)
    workers = [
        QueueWorker(
            engine,
            recurring(),
            clock=clock_of(Path(clock), float(skew)),
            polling_interval=POLLING,
            log=log,
        )
        for skew in skews
    ]
    for worker in workers[1:]:
        worker.start()
    workers[0].run()


if __name__ == "__main__":
    main(*sys.argv[1:])
