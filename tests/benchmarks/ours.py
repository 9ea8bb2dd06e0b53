"""The library itself, through its public interface and an ordinary Session."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from .contender import Contender, Kind, Role, Settings
from .floors import BACKLOGS, install_schema


class Proletarian(Contender):
    """The library with its default settings, but for those that a measurement names."""

    name = "proletarian"
    label = "sqlalchemy_proletarian"
    role = Role.OURS
    settings = "defaults"
    atomic = True
    requires = ("sqlalchemy-proletarian", "SQLAlchemy", "psycopg")
    unfinished = "SELECT count(*) FROM proletarian.job"
    backlogs = BACKLOGS

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
        """Commit a unit of work of one job."""
        from sqlalchemy_proletarian import enqueue

        enqueue(self._session, kind, {"i": i}, process_at=at)
        self._session.commit()

    def enqueue_many(self, kind: Kind, n: int) -> None:
        """One call and one commit."""
        from sqlalchemy_proletarian import enqueue_many

        enqueue_many(self._session, [(kind, {"i": i}) for i in range(n)])
        self._session.commit()

    def work(self, settings: Settings) -> None:
        """Run a QueueWorker until the process is killed."""
        from sqlalchemy_proletarian import QueueWorker

        from .application import handlers

        logging.basicConfig(level=logging.WARNING)
        options: dict[str, Any] = {"threads": settings.threads}
        if settings.batch_size is not None:
            options["batch_size"] = settings.batch_size
        QueueWorker(self._engine(), handlers, **options).run()
