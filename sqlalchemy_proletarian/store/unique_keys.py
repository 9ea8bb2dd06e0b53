"""The SQL on the job that has a unique key: who has it, locking that row, and freeing the key."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, select, update

from ..database.column_types import MYSQL
from ..database.dialects import database_of
from .locking import PAUSES

AnyRow: TypeAlias = Row[*tuple[Any, ...]]


def holder_of(connection: Connection, job: Table, queue: str, key: str) -> AnyRow | None:
    """Return the id of the job that has a key, locked or not, and what says if it waits or runs."""
    columns = job.c.job_id, job.c.unique_while, job.c.lease_id, job.c.ended_as
    wanted = select(*columns).where(*_has_key(job, queue, key))
    return connection.execute(wanted).one_or_none()


def current_holder(connection: Connection, job: Table, queue: str, key: str) -> Any:
    """Return the id of the job that has a key, on MySQL or MariaDB after a duplicate key.

    A snapshot may be too old to show the job. A locking read shows it, and does not wait for the
    job's worker: it reads only the index of the key, whose entry the INSERT has locked.
    """
    wanted = _of_key_index(select(job.c.job_id).where(*_has_key(job, queue, key)), job)
    return connection.scalar(wanted.with_for_update(read=True))


def lock_holder(
    connection: Connection,
    job: Table,
    job_id: Any,
    queue: str,
    key: str,
    *,
    shared: bool = False,
    wait: bool = True,
) -> AnyRow | None:
    """Lock a job and return its row; None if it no longer has the key, or is still locked.

    :param shared: let other transactions lock it in the same way; a worker cannot claim it.
    :param wait: wait for as long as another transaction has locked it. Otherwise give up at once
        if ``shared``, and else when a worker that only claims a job would have committed.
    """
    wanted = select(job).where(job.c.job_id == job_id, *_has_key(job, queue, key))
    for dialect in MYSQL:  # the entry of the key is not locked: a worker may wait for it
        wanted = wanted.with_hint(job, "FORCE INDEX (PRIMARY)", dialect)
    if wait:
        return connection.execute(wanted.with_for_update(read=shared)).one_or_none()
    sleep = database_of(connection.dialect).sleep
    for pause in (*PAUSES, None):
        locking = wanted.with_for_update(read=shared, skip_locked=True)
        row = connection.execute(locking).one_or_none()
        if row is not None or shared or sleep is None:
            return row
        if pause is not None:  # sleeping in the server does not block an event loop
            connection.scalar(select(sleep(pause)))
    return None


def free_keys(
    connection: Connection,
    job: Table,
    queues: Sequence[str],
    keys: Collection[str | None],
    ids: Collection[Any],
) -> set[Any]:
    """Set the keys of jobs that the transaction has locked to NULL, and return their ids.

    On MySQL and MariaDB an INSERT that met a key keeps its entry in the index locked until the
    transaction ends. Such a job is left out, because the worker would have to wait.
    """
    wanted = select(job.c.job_id).where(
        job.c.queue.in_(queues), job.c.unique_key.in_(keys), job.c.job_id.in_(ids)
    )
    locking = _of_key_index(wanted, job).with_for_update(skip_locked=True)
    freed = set(connection.scalars(locking))
    if freed:
        connection.execute(update(job).where(job.c.job_id.in_(freed)).values(unique_key=None))
    return freed


def _has_key(job: Table, queue: str, key: str) -> tuple[ColumnElement[bool], ...]:
    return job.c.queue == queue, job.c.unique_key == key


def _of_key_index(wanted: Select[Any], job: Table) -> Select[Any]:
    """Make MySQL and MariaDB read the index of the key, and so lock its entries."""
    columns = [job.c.queue, job.c.unique_key]
    index = next(index for index in job.indexes if index.unique and list(index.columns) == columns)
    for dialect in MYSQL:
        wanted = wanted.with_hint(job, f"FORCE INDEX (`{index.name}`)", dialect)
    return wanted
