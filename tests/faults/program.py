"""The worker process of the fault tests: ``python -m tests.faults.program URL KIND EFFECTS …``.

Its handlers insert a row into the ledger through their session, and append a line to a file, the
external effect. The tests check that the row exists exactly once and the line at least once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta, tzinfo
from typing import Any, Self
from uuid import UUID

from sqlalchemy import (
    URL,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    Uuid,
    create_engine,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, clock
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker
from sqlalchemy_proletarian.database.dialects import database_of
from tests.databases.places import WITHOUT_SCHEMA

log = logging.getLogger(__name__)

LEDGER = Table(
    "ledger",
    MetaData(),
    Column("job_id", Uuid),
    Column("worker", Integer),
    Column("attempt", Integer),
)
STOCK = Table(
    "stock", LEDGER.metadata, Column("name", String(20), primary_key=True), Column("taken", Integer)
)
"""Rows for which jobs compete."""
ACCOUNT = Table(
    "account",
    LEDGER.metadata,
    Column("name", String(60), primary_key=True),
    Column("bookings", Integer),
)
"""Rows that one job each updates and keeps locked."""

ENTER = insert(LEDGER)

RETRIES: Any = {"retries": 2}
MANY_RETRIES: Any = {"retries": 50}
"""For jobs that must succeed even if faults use up attempts."""
OFTEN_KILLED: Any = {"retry": MANY_RETRIES, "max_deaths": 50}
"""For jobs that must succeed even if the tests kill several workers in a row that run them."""


POOLED: Any = {
    "psycopg": {"prepare_threshold": None},
    "asyncpg": {
        "prepared_statement_name_func": str,
        "prepared_statement_cache_size": 0,
        "statement_cache_size": 0,
    },
}
"""By driver, the ``connect_args`` with which it works behind transaction pooling."""

BEGUN = ".begun"
"""The suffix of the file that lists the runs that have begun."""


def outside(path: str, job: Job) -> None:
    """Cause the external effect, which no rollback undoes."""
    _write_line(path, job.job_id)


def begun(path: str, job: Job) -> None:
    """Record that a run has begun."""
    _write_line(path + BEGUN, job.job_id, job.queue, job.attempts, os.getpid())


def _write_line(path: str, *words: object) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(file)


def engine_options(url: URL) -> dict[str, Any]:
    """Return the options for an engine on a database."""
    return {"execution_options": WITHOUT_SCHEMA} if url.get_backend_name() == "sqlite" else {}


def entry(job: Job) -> dict[str, Any]:
    """Return the ledger row of a run."""
    return {"job_id": job.job_id, "worker": os.getpid(), "attempt": job.attempts}


def handlers(effects: str, *, in_a_loop: bool) -> Handlers:
    """Return the handlers; the payload of most jobs is their duration in seconds."""
    registry = Handlers()

    if in_a_loop:

        @registry("effect", **OFTEN_KILLED)
        async def effect_in_a_loop(payload: float, session: AsyncSession, job: Job) -> None:
            await session.execute(ENTER, entry(job))
            begun(effects, job)
            if payload:
                await asyncio.sleep(payload)
            outside(effects, job)

        @registry("late", retry=MANY_RETRIES)
        async def late_in_a_loop(payload: float, session: AsyncSession, job: Job) -> None:
            begun(effects, job)
            await asyncio.sleep(payload)
            await session.execute(ENTER, entry(job))
            outside(effects, job)

        @registry("stubborn", retry=MANY_RETRIES)
        async def stubborn_in_a_loop(payload: float, session: AsyncSession, job: Job) -> None:
            await session.execute(ENTER, entry(job))
            until = time.monotonic() + payload
            while (left := until - time.monotonic()) > 0:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(left)
            outside(effects, job)

    else:

        @registry("effect", **OFTEN_KILLED)
        def effect(payload: float, session: Session, job: Job) -> None:
            session.execute(ENTER, entry(job))
            begun(effects, job)
            if payload:
                time.sleep(payload)
            outside(effects, job)

        @registry("late", retry=MANY_RETRIES)
        def late(payload: float, session: Session, job: Job) -> None:
            begun(effects, job)
            time.sleep(payload)
            session.execute(ENTER, entry(job))
            outside(effects, job)

    @registry("stuck", retry=MANY_RETRIES)
    def stuck(payload: float, session: Session, job: Job) -> None:
        session.execute(ENTER, entry(job))
        time.sleep(payload)
        outside(effects, job)

    @registry("alone", retry=MANY_RETRIES)
    def alone(payload: float, job: Job) -> None:
        time.sleep(payload)
        outside(effects, job)

    @registry("poison", retry=RETRIES)
    def poison(payload: Any, session: Session, job: Job) -> None:
        session.execute(ENTER, entry(job))
        time.sleep(payload or 0)
        os.kill(os.getpid(), signal.SIGKILL)

    @registry("fails", retry=RETRIES)
    def fails(payload: Any, session: Session, job: Job) -> None:
        session.execute(ENTER, entry(job))
        raise ValueError(payload)

    return registry


def takings(registry: Handlers, effects: str) -> None:
    """Add a handler that updates the stock rows named in its payload, in that order."""

    @registry("take", retry=MANY_RETRIES)
    def take(payload: list[str], session: Session, job: Job) -> None:
        session.execute(ENTER, entry(job))
        for name in payload:
            with session.begin_nested():
                one_more = update(STOCK).where(STOCK.c.name == name)
                session.execute(one_more.values(taken=STOCK.c.taken + 1))
            time.sleep(0.002)
        outside(effects, job)


def bookings(registry: Handlers, effects: str, linger: float) -> None:
    """Add a handler that locks business data for some time.

    :param linger: seconds that the first run of a job in this process lasts; the payload says what
        the handler does meanwhile.
    """
    known: set[UUID] = set()

    @registry("booking", retry=MANY_RETRIES)
    def booking(payload: dict[str, str], session: Session, job: Job) -> None:
        seconds = 0.0 if job.job_id in known else linger
        known.add(job.job_id)
        try:
            booked = update(ACCOUNT).where(ACCOUNT.c.name == payload["account"])
            session.execute(booked.values(bookings=ACCOUNT.c.bookings + 1))
            session.execute(ENTER, entry(job))
            if payload["while"] == "the job's row is locked":
                job.error = "half way"
                session.flush()
            begun(effects, job)
            sleep_in_server = database_of(session.connection().dialect).sleep
            match payload["while"]:
                case "an answer comes":
                    session.scalar(select(sleep_in_server(min(seconds, 2.0))))
                case "a query runs":
                    session.scalar(select(sleep_in_server(seconds)))
                case "computing" | "the job's row is locked":
                    time.sleep(seconds)
        except Exception:
            log.info("gave up %s", job.job_id)
            raise
        outside(effects, job)


class _AnyTime(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, datetime)  # also those that a database returns


class _WrongClock(datetime, metaclass=_AnyTime):
    ahead = 0.0

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(seconds=cls.ahead)


def set_clock(ahead: float) -> None:
    """Make the library see a wrong clock on this host."""
    _WrongClock.ahead = ahead
    clock.datetime = _WrongClock  # type: ignore[misc]  # the only module that reads the clock


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a worker until it is told to stop.

    :param arguments: the arguments, by default those of the command line.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("url", type=make_url)
    parser.add_argument("kind", choices=["threads", "asyncio"])
    parser.add_argument("effects", help="the file of external effects")
    parser.add_argument("--places", type=int, default=2)
    parser.add_argument("--lease", type=float, default=None)
    parser.add_argument("--driver", required=True)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--batch-window", type=float, default=0.05)
    parser.add_argument("--timeout", type=float, default=10.0)
    parser.add_argument("--name", default=None)
    parser.add_argument("--queue", action="append", help="a queue to serve (default: default)")
    parser.add_argument("--linger", type=float, default=0.0, help="seconds that bookings take here")
    parser.add_argument(
        "--ahead", type=float, default=0.0, help="seconds that this host's clock is ahead"
    )
    parser.add_argument("--later", action="store_true", help="set the clock only on SIGUSR1")
    parser.add_argument("--polling", type=float, default=0.5)
    parser.add_argument("--verbose", action="store_true", help="log when the worker polls for jobs")
    parser.add_argument("--pooled", action="store_true", help="behind transaction pooling")
    parser.add_argument("--pool-size", type=int, default=None)
    parser.add_argument("--pool-timeout", type=float, default=30.0)
    given = parser.parse_args(arguments)
    set_clock(0.0 if given.later else given.ahead)
    if given.later:
        signal.signal(signal.SIGUSR1, lambda *_: set_clock(given.ahead))
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    if given.verbose:
        logging.getLogger("sqlalchemy_proletarian").setLevel(logging.DEBUG)
    url = given.url.set(drivername=f"{given.url.get_backend_name()}+{given.driver}")
    options: Any = {
        "lease": None if given.lease is None else timedelta(seconds=given.lease),
        "batch_size": given.batch_size,
        "batch_window": timedelta(seconds=given.batch_window),
        "shutdown_timeout": timedelta(seconds=given.timeout),
        "polling_interval": timedelta(seconds=given.polling),
        "name": given.name,
        "queues": given.queue or "default",
    }
    pool: Any = {"pool_timeout": given.pool_timeout, **engine_options(url)}
    if given.pool_size is not None:
        pool |= {"pool_size": given.pool_size, "max_overflow": 0}
    if given.pooled:
        pool["connect_args"] = POOLED[given.driver]
        options |= {"notify": False, "running_job_model": None}
    registry = handlers(given.effects, in_a_loop=given.kind == "asyncio")
    bookings(registry, given.effects, given.linger)
    takings(registry, given.effects)
    if given.kind == "threads":
        engine = create_engine(url, **pool)
        QueueWorker(engine, registry, threads=given.places, **options).run()
        return

    async def work() -> None:
        engine = create_async_engine(url, **pool)
        await AsyncQueueWorker(engine, registry, concurrency=given.places, **options).run()
        await engine.dispose()

    asyncio.run(work())


if __name__ == "__main__":
    main()
