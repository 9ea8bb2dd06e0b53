"""Pruning an archive: deleting the rows of jobs that finished some time ago."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, scoped_session

from ..arguments import at_least_one
from ..clock import Clock, as_timedelta, require_aware, utcnow
from ..database.dialects import database_of
from ..models.defaults import ArchivedJob
from ..models.job_classes import bind_arguments
from ..models.mixins import ArchivedJobMixin
from ..models.requirements import TableUse, explained
from ..models.values import Status
from ..producer.sessions import immediate_session
from ..store.pruning import Pruning


def prune(
    session: Session | scoped_session[Any] | Engine,
    *,
    older_than: timedelta,
    status: Status | str | Collection[Status | str] | None = None,
    batch_size: int = 1000,
    progress: Callable[[int], object] | None = None,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> int:
    """Delete the archived jobs that finished some time ago.

    Rows are deleted in batches, in the order in which the jobs finished. The deletion waits for no
    row, and no worker waits for it: rows that another transaction has locked are skipped.

    :param session: an Engine, to commit after each batch; or a Session or scoped_session, to delete
        in its transaction, which the caller commits. For an AsyncEngine or AsyncSession use
        ``sqlalchemy_proletarian.asyncio.prune``.
    :param older_than: the time since the jobs finished, a timedelta.
    :param status: delete only jobs with this status, or with one of these; by default all.
    :param batch_size: how many rows a batch has; 1,000 by default.
    :param progress: called after each batch with the number of rows deleted so far; with an Engine,
        the batch is committed then. None by default.
    :param archived_job_model: the mapped class of the archive.
    :param clock: returns the time as an aware datetime.
    :return: the number of rows that were deleted.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if ``older_than`` is negative, ``batch_size`` is less than 1, or there is no
        such status.

    .. versionadded:: 0.1
    """
    age = as_timedelta("older_than", older_than)
    table = sa_inspect(archived_job_model).local_table
    pruning = Pruning(
        table,
        require_aware("clock()", clock()) - age,
        _statuses(status),
        at_least_one("batch_size", batch_size),
    )
    deleted = 0
    use = TableUse(table, ("SELECT", "UPDATE", "DELETE"))
    with _opened(session, archived_job_model) as (connection, commits), explained(connection, use):
        done: int | None = 0
        while done is not None:
            if commits:
                with connection.begin():
                    database_of(connection.dialect).begun(connection)
                    done = pruning.step(connection)
            else:
                done = pruning.step(connection)
            deleted += done or 0
            if progress is not None and done is not None:
                progress(deleted)
    return deleted


@contextmanager
def _opened(session: Any, model: type[Any]) -> Generator[tuple[Connection, bool]]:
    """Yield a connection, and whether to commit after each batch."""
    if isinstance(session, Engine):
        level = database_of(session.dialect).isolation_level
        with session.connect() as connection:
            if level is not None:
                connection.execution_options(isolation_level=level)
            yield connection, True
        return
    unit = immediate_session(session, "prune", arguments="older_than=...")
    connection = unit.connection(bind_arguments=bind_arguments(model))
    database = database_of(connection.dialect)
    if not database.locks:  # SQLite rejects the first write after a read, if others have written
        database.begun(connection)
    yield connection, False


def _statuses(given: Any) -> list[str] | None:
    if given is None:
        return None
    return [Status(one).value for one in ([given] if isinstance(given, str) else given)]
