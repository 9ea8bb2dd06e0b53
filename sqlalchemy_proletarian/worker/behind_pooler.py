"""What a worker cannot do behind a connection pooler that pools transactions."""

from __future__ import annotations

from sqlalchemy import Connection

from ..database.poolers import is_per_transaction, loses_prepared, prepared_remedy, unfit
from .options import WorkerSettings


def require_no_session(settings: WorkerSettings, connection: Connection | None = None) -> None:
    """Raise :class:`.PoolerError` if a worker needs sessions of the server for itself.

    :param connection: a connection of the engine, to find out whether prepared statements work.
    """
    features, options, engine = [], [], ""
    if settings.notify:
        features.append("LISTEN")
        options.append("notify=False")
    if settings.running is not None:
        # Other workers see by the names of its connections that a worker is alive.
        features.append("running markers")
        options.append("running_job_model=None")
    if connection is not None and loses_prepared(connection):
        features.append("prepared statements")
        engine = prepared_remedy(connection.dialect)
    if features:
        raise unfit(settings.name, features, options, engine=engine)


def check_connection(connection: Connection, settings: WorkerSettings) -> None:
    """Do that if one of the worker's own connections is behind such a pooler."""
    if is_per_transaction(connection):
        require_no_session(settings)
