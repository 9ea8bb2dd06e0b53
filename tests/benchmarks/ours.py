"""The library itself, used through its public interface and an ordinary Session."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import datetime, timedelta
from typing import Any, ClassVar

from .contender import Contender, Kind, Role, Settings
from .floors import BACKLOGS, install_schema


class Proletarian(Contender):
    """The library with its default settings, except those that a measurement sets."""

    name = "proletarian"
    label = "sqlalchemy_proletarian"
    role = Role.OURS
    settings = "defaults"
    atomic = True
    requires = ("sqlalchemy-proletarian", "SQLAlchemy", "psycopg")
    unfinished = "SELECT count(*) FROM proletarian.job"
    backlogs = BACKLOGS
    lease: ClassVar[float | None] = None

    _session: Any

    def install(self) -> None:
        """Create the library's tables."""
        install_schema(self)

    def _engine(self) -> Any:
        from sqlalchemy import create_engine, make_url

        return create_engine(make_url(self.dsn).set(drivername="postgresql+psycopg"))

    def open(self) -> None:
        """Connect the producer."""
        from sqlalchemy.orm import Session

        self._session = Session(self._engine())

    def close(self) -> None:
        """Disconnect the producer."""
        self._session.close()
        self._session.bind.dispose()

    def enqueue_one(self, kind: Kind, i: int, at: datetime | None = None) -> None:
        """Enqueue one job in a Session and commit."""
        from sqlalchemy_proletarian import enqueue

        enqueue(self._session, kind, {"i": i}, process_at=at)
        self._session.commit()

    def enqueue_many(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs with one call and commit."""
        from sqlalchemy_proletarian import enqueue_many

        enqueue_many(self._session, [(kind, {"i": i}) for i in range(n)])
        self._session.commit()

    def steps(self, n: int) -> dict[str, float]:
        """Run ``n`` jobs in this process, and return the microseconds of each step of one job."""
        from .steps import run_worker

        return run_worker(self.dsn, n, self.lease)

    def work(self, settings: Settings) -> None:
        """Run a QueueWorker until the process is killed."""
        from sqlalchemy_proletarian import QueueWorker

        from .application import handlers

        logging.basicConfig(level=logging.WARNING)
        options: dict[str, Any] = {"threads": settings.threads}
        if settings.batch_size is not None:
            options["batch_size"] = settings.batch_size
        if self.lease is not None:
            options["lease"] = timedelta(seconds=self.lease)
        QueueWorker(self._engine(), handlers, **options).run()


class ProletarianLeased(Proletarian):
    """The library in lease mode, with threads."""

    name = "proletarian-lease"
    label = "sqlalchemy_proletarian, lease"
    role = Role.VARIANT
    settings = "QueueWorker, lease=30 s"
    lease = 30.0


class ProletarianOnConnection(Proletarian):
    """The library's producer on a Core Connection, which inserts at once."""

    name = "proletarian-connection"
    label = "sqlalchemy_proletarian, Connection"
    role = Role.VARIANT
    settings = "enqueue(connection, …) and enqueue_many(connection, …), without a Session"

    def open(self) -> None:
        """Connect the producer."""
        self._session = self._engine().connect()

    def close(self) -> None:
        """Disconnect the producer."""
        self._session.close()
        self._session.engine.dispose()


class PlainRow(Proletarian):
    """No queue: a row like a job that is added to a Session, without a wake-up."""

    name = "session-add"
    label = "plain row, session.add"
    role = Role.VARIANT
    settings = "a mapped class with the columns and the index of a job; no job, no NOTIFY"
    requires = ("SQLAlchemy", "psycopg")

    def install(self) -> None:
        """Create the table."""
        from .application import Plain

        engine = self._engine()
        Plain.metadata.create_all(engine)
        engine.dispose()

    def enqueue_one(self, kind: Kind, i: int, at: datetime | None = None) -> None:  # noqa: ARG002
        """Add one row to a Session and commit."""
        self._session.add(self._row(kind, i))
        self._session.commit()

    def enqueue_many(self, kind: Kind, n: int) -> None:
        """Add ``n`` rows to a Session with one call and commit."""
        self._session.add_all([self._row(kind, i) for i in range(n)])
        self._session.commit()

    @staticmethod
    def _row(kind: Kind, i: int) -> Any:
        """Return a row with the values that a job has."""
        from sqlalchemy_proletarian.clock import utcnow, uuid7

        from .application import Plain

        now = utcnow()
        return Plain(
            job_id=uuid7(),
            queue="default",
            job_type=kind,
            payload=json.dumps({"i": i}),
            attempts=0,
            enqueued_at=now,
            process_at=now,
            priority=5,
        )


class ProletarianInALoop(Proletarian):
    """The library in an event loop, in lease mode."""

    name = "proletarian-asyncio"
    label = "sqlalchemy_proletarian, asyncio"
    role = Role.VARIANT
    settings = (
        "AsyncQueueWorker, lease=30 s, concurrency=100 (unless noted otherwise), asyncpg, pool of 5"
    )
    requires = ("sqlalchemy-proletarian", "SQLAlchemy", "asyncpg")

    def offers(self, kind: Kind, settings: Settings) -> bool:  # noqa: ARG002 - all kinds
        """Return whether the contender supports the kind of job and the settings."""
        return settings.threads == 1 and settings.batch_size is None

    def work(self, settings: Settings) -> None:
        """Run an AsyncQueueWorker until the process is killed."""
        logging.basicConfig(level=logging.WARNING)
        asyncio.run(self._work(settings.concurrency or 100))

    async def _work(self, concurrency: int) -> None:
        from sqlalchemy import make_url
        from sqlalchemy.ext.asyncio import create_async_engine

        from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

        from .application import in_a_loop

        url = make_url(self.dsn).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, pool_size=5, max_overflow=0)
        lease = timedelta(seconds=30)
        await AsyncQueueWorker(engine, in_a_loop, concurrency=concurrency, lease=lease).run()
