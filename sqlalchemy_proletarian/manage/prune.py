"""Pruning an archive: deleting the rows of jobs that finished some time ago."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, select
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
from ..store.partitions import (
    PartitionedArchive,
    drop_partitions,
    make_partitions,
    partitioned_archive,
)
from ..store.pruning import Pruning

_ATTEMPTS: Final = 5
"""How often one call tries to drop a partition."""
_PAUSE: Final = 1.0
"""Seconds between two attempts."""


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

    If the archive is partitioned by month, and an Engine is given, the partitions of the next
    months are made. If jobs of every status are deleted, the partitions of months that are over for
    ``older_than`` are dropped. Both need the role that owns the archive; with another role, all
    rows are deleted one by one.

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
    :return: the number of rows that were deleted. For a month that was dropped, it is the estimate
        of the server's statistics.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if ``older_than`` is negative, ``batch_size`` is less than 1, or there is no
        such status.

    .. versionadded:: 0.1
    """
    age = as_timedelta("older_than", older_than)
    table = sa_inspect(archived_job_model).local_table
    now = require_aware("clock()", clock())
    statuses, size = _statuses(status), at_least_one("batch_size", batch_size)
    use = TableUse(table, ("SELECT", "UPDATE", "DELETE"))
    with _opened(session, archived_job_model) as (connection, commits), explained(connection, use):
        deleted, archive = 0, None
        if commits:
            with connection.begin():
                archive = partitioned_archive(connection, table)
            if archive is not None and archive.may_make:
                make_partitions(connection, archive, now)
            if archive is not None and archive.may_drop and statuses is None:
                deleted = _drop_months(connection, archive, now - age)
                if progress is not None and deleted:
                    progress(deleted)
        pruning = Pruning(table, now - age, statuses, size, partitioned=archive is not None)
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


def _drop_months(connection: Connection, archive: PartitionedArchive, before: datetime) -> int:
    """Drop old partitions, and return how many rows they had.

    The rows of one that other sessions keep locked are deleted by the caller.
    """
    deleted = 0
    for attempt in range(_ATTEMPTS):
        if attempt:
            with connection.begin():  # by the database, which does not block an event loop
                connection.execute(select(database_of(connection.dialect).sleep(_PAUSE)))
        dropped, is_busy = drop_partitions(connection, archive, before)
        deleted += dropped
        if not is_busy:
            break
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
