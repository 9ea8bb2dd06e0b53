"""How many connections a worker needs, compared with how many the server accepts."""

from __future__ import annotations

from sqlalchemy import Connection

from ..database.connections import is_behind_transaction_pooling
from ..errors import TooManyConnectionsError
from .behind_pooler import require_no_session
from .options import WorkerSettings


def connections_of(settings: WorkerSettings) -> int:
    """Return how many connections a worker opens at the most, outside of the engine's pool.

    One for each job that runs at the same time (one for all jobs in lease mode), one to listen or
    to show that the worker is alive, in transaction mode one for the running markers, one to prune
    the archive, one for recurring jobs, and one for the starts of jobs with a rate. The connection
    that measures the queues is not counted: a worker that nobody asks does not open it, and works
    as well without it.
    """
    jobs = 1 if settings.lease is not None else settings.concurrency
    has_service = (
        settings.running is not None
        if settings.database.liveness_by == "locks"
        else (settings.notify and settings.database.notifies)
    )
    has_markers = settings.running is not None and settings.lease is None
    has_recurring = settings.recurring is not None
    has_rates = settings.lease is None and any(
        handler.limit is not None and handler.limit.rate is not None
        for handler in settings.handlers
    )
    beside = has_service, has_markers, bool(settings.retention), has_recurring, has_rates
    return jobs + sum(beside)


def require_connections(connection: Connection, settings: WorkerSettings) -> None:
    """Raise an error if the server, or a pooler before it, can never serve the worker.

    :raises TooManyConnectionsError: if the server can never accept as many connections.
    :raises PoolerError: if a pooler gives each transaction another session, and the worker needs
        sessions.
    """
    limit = settings.database.max_connections
    if limit is None:
        return
    found, *pid = connection.execute(limit).one()
    if is_behind_transaction_pooling(connection, *pid or [None]):
        require_no_session(settings, connection)
        return  # many connections share few sessions
    needed, accepted = connections_of(settings), int(found or 0)
    if needed > accepted:
        msg = (
            f"the worker {settings.name} runs {settings.concurrency} jobs at a time and needs "
            f"{needed} connections, but the server accepts only {accepted}: use lease=…, with "
            f"which all jobs share one connection, run fewer jobs at a time, or raise the server's "
            f"max_connections"
        )
        raise TooManyConnectionsError(msg)
