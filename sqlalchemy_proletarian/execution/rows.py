"""Loading the mapped objects of claimed jobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ..database.connections import is_lost
from ..database.error_codes import code_of
from ..errors import DatabaseNotReadyError
from ..lifecycle.claimed import ClaimedJob
from ..store.base import Store


def load_row(store: Store, connection: Connection, job: ClaimedJob) -> tuple[Any, Exception | None]:
    """Return the mapped object of a job, or the error that its values caused."""
    try:
        return store.rows.load(connection, [job]).get(job.job_id), None
    except Exception as error:
        if not is_error_of_row(error):
            raise
        return None, error


def is_error_of_row(error: Exception) -> bool:
    """Return whether an error was caused by values that were read, and not by the database."""
    if isinstance(error, DBAPIError):
        return code_of(error) is None and not is_lost(error)
    return not isinstance(error, DatabaseNotReadyError)
