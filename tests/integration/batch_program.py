"""A worker process with a batch handler, for tests that kill it.

Usage: ``python -m tests.integration.batch_program URL KIND MODE WHEN``. ``KIND`` is "threads" or
the driver of an event loop, ``MODE`` is "transaction" or "lease". The process kills itself in a
call that has the payload "poison", or, if ``WHEN`` is a number, in the call in which it has written
so many notes. Otherwise it runs until no job is queued.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from time import sleep
from typing import Any

from sqlalchemy import create_engine, func, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

NOTE = text("INSERT INTO note (text, transaction) VALUES (:text, 0)")


class Work:
    """What both kinds of handler do."""

    def __init__(self, when: str) -> None:
        self._when = int(when) if when.isdigit() else None
        self._written = 0

    def do(self, payloads: list[Any], session: Session) -> None:
        session.execute(NOTE, [{"text": str(payload)} for payload in payloads])
        self._written += len(payloads)
        if "poison" in payloads or (self._when is not None and self._written >= self._when):
            os.kill(os.getpid(), signal.SIGKILL)


def main(url: str, kind: str, mode: str, when: str) -> None:
    work = Work(when)
    handlers = Handlers()
    options: dict[str, Any] = {"polling_interval": timedelta(seconds=0.1)}
    if mode == "lease":
        options["lease"] = timedelta(seconds=1)
    places = 1 if when == "never" else 2
    left = select(func.count()).select_from(Job)
    engine = create_engine(make_url(url))
    if kind == "threads":

        @handlers.batch("write", size=20)
        def write(payloads: list[Any], session: Session) -> None:
            work.do(payloads, session)

        with (
            QueueWorker(engine, handlers, threads=places, **options),
            engine.connect() as connection,
        ):
            while connection.scalar(left):
                connection.rollback()
                sleep(0.02)
        return

    @handlers.batch("write", size=20)
    async def write_async(payloads: list[Any], session: AsyncSession) -> None:
        await session.run_sync(lambda plain: work.do(payloads, plain))

    async def run() -> None:
        awaited = create_async_engine(make_url(url).set(drivername=f"postgresql+{kind}"))
        async with AsyncQueueWorker(awaited, handlers, concurrency=places, **options):
            with engine.connect() as connection:
                while connection.scalar(left):
                    connection.rollback()
                    await asyncio.sleep(0.02)
        await awaited.dispose()

    asyncio.run(run())


if __name__ == "__main__":
    main(*sys.argv[1:])
