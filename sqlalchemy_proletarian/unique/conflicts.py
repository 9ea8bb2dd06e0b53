"""What becomes of a job whose key another job has.

The INSERT decides, by the unique index: it waits for open transactions that take or free the key.
What is found out about the other job may be out of date at once, so everything is tried again if
that job has ended, or has left its key.

A job whose key is taken only while it waits is locked before the call returns. A worker skips the
locked row, so the job starts after the caller's transaction, and sees what that has committed. On
SQLite the lock of the INSERT has this effect.

On MySQL and MariaDB the other job is locked first, if there is one. An INSERT that meets its key
would lock the gap before it in the index, and with it the INSERT of other jobs in the queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

from sqlalchemy import inspect as sa_inspect
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from ..errors import JobExistsError
from ..models.values import QUEUED
from ..producer.core import row_of
from ..store.unique_keys import AnyRow, current_holder, holder_of, lock_holder
from .caller import Caller

T_co = TypeVar("T_co", covariant=True)

_ROUNDS: Final = 10
"""How often a call tries again. Each time, another transaction has ended between two statements; or
there is a row that the role may not see."""


@dataclass(frozen=True, slots=True)
class Enqueued(Generic[T_co]):
    """The result of :func:`.enqueue_unique`.

    .. versionadded:: 0.1
    """

    job: T_co
    """The job that has the key now, new or not: the object, or the ``job_id`` with a Connection."""
    created: bool
    """Whether the call has enqueued the job."""
    replaced: bool = False
    """Whether the call has replaced the values of a job that was waiting."""


class _Holder(NamedTuple):
    """What is known of the job that has the key."""

    job_id: Any
    frees_key: bool = False
    """Whether its key is taken only while it waits, so that its row is locked for a short time."""
    runs: bool = False
    """Whether a worker has a lease on it, or it has ended."""


def insert_or_keep(caller: Caller, values: Mapping[str, Any]) -> Enqueued[Any]:
    """Insert a job unless its key is taken."""
    for _ in range(_ROUNDS):
        found = _locked_first(caller, values) or _inserted(caller, values)
        if not isinstance(found, _Holder):
            return found
        if found.frees_key and not _lock(caller, values, found.job_id, shared=True):
            continue
        job = caller.existing(found.job_id)
        if job is not None:
            return Enqueued(job, created=False)
    raise _exists(values)


def insert_or_raise(caller: Caller, values: Mapping[str, Any]) -> Enqueued[Any]:
    """Insert a job.

    :raises JobExistsError: if its key is taken.
    """
    found = _locked_first(caller, values) or _inserted(caller, values)
    if isinstance(found, _Holder):
        raise _exists(values, found.job_id)
    return found


def insert_or_replace(caller: Caller, values: Mapping[str, Any]) -> Enqueued[Any]:
    """Insert a job, or replace the values of the waiting job that has its key.

    :raises ValueError: if that job is of another mapped class.
    """
    known = _holder(caller, values)
    for _ in range(_ROUNDS):
        if known is not None and not known.runs:
            row = _lock(caller, values, known.job_id, wait=known.frees_key)
            if row is not None and row.lease_id is None and row.ended_as is None:
                _replace(caller, values, row)
                job = caller.existing(row.job_id, changed=True)
                return Enqueued(job, created=False, replaced=True)
        found = _inserted(caller, values)
        if not isinstance(found, _Holder):
            return found
        if known is not None and known.job_id == found.job_id and not found.frees_key:
            job = caller.existing(found.job_id)
            if job is not None:
                return Enqueued(job, created=False)
        known = found
    raise _exists(values)


def _locked_first(caller: Caller, values: Mapping[str, Any]) -> _Holder | None:
    """Lock the job that has the key on MySQL or MariaDB; None if a snapshot does not show it.

    Also None if a worker has locked it, unless that takes only a short time.
    """
    if caller.database.conflict_insert is not None:
        return None
    found = _holder(caller, values)
    if found is None or not _lock(caller, values, found.job_id, shared=True, wait=found.frees_key):
        return None
    return found._replace(frees_key=False)


def _inserted(caller: Caller, values: Mapping[str, Any]) -> Enqueued[Any] | _Holder:
    """Insert a job, or return the job that has its key.

    :raises JobExistsError: if there seems to be such a job, and it is not visible.
    """
    for _ in range(_ROUNDS):
        try:
            created = caller.insert_unless_taken(values)
        except IntegrityError as error:
            if caller.database.conflict_insert is None and _is_of_the_key(error, caller.table):
                # Its entry in the index is locked now. A worker that starts the job may hold the
                # row and wait for the entry, so this transaction must not wait for the row.
                queue, key = values["queue"], values["unique_key"]
                return _Holder(current_holder(caller.connection, caller.table, queue, key))
            raise
        if created is not None:
            return Enqueued(created, created=True)
        if (found := _holder(caller, values)) is not None:
            return found
    raise _exists(values)


def _holder(caller: Caller, values: Mapping[str, Any]) -> _Holder | None:
    queue, key = values["queue"], values["unique_key"]
    row = holder_of(caller.connection, caller.table, queue, key)
    if row is None:
        return None
    runs = row.lease_id is not None or row.ended_as is not None
    return _Holder(row.job_id, row.unique_while == QUEUED, runs)


def _lock(
    caller: Caller,
    values: Mapping[str, Any],
    job_id: Any,
    *,
    shared: bool = False,
    wait: bool = True,
) -> AnyRow | None:
    return lock_holder(
        caller.connection,
        caller.table,
        job_id,
        values["queue"],
        values["unique_key"],
        shared=shared,
        wait=wait,
    )


def _replace(caller: Caller, values: Mapping[str, Any], locked: AnyRow) -> None:
    """Write the values of a new job to the locked row of a waiting job, except its id."""
    mapper, table = sa_inspect(caller.job_model), caller.table
    row = row_of(caller.job_model, values) | {table.c.error.key: None}
    row |= {table.c.waits_for.key: None, table.c.due_at.key: None}  # its limit may be another one
    row.pop(table.c.job_id.key, None)
    before = locked._mapping
    kind = mapper.polymorphic_on
    if kind is not None and kind.key in table.c and row.get(kind.key) != before[kind]:
        msg = (
            f"job {locked.job_id} has the unique key {values['unique_key']!r} and is of another "
            f"class: {kind.key} is {before[kind]!r}, not {row.get(kind.key)!r}; use a key per class"
        )
        raise ValueError(msg)
    version = mapper.version_id_col
    if version is not None and mapper.version_id_generator:
        row[version.key] = mapper.version_id_generator(before[version])
    written = update(table).where(table.c.job_id == locked.job_id).values(row)
    caller.connection.execute(written)


def _exists(values: Mapping[str, Any], job_id: Any = None) -> JobExistsError:
    return JobExistsError(job_id, values["queue"], values["unique_key"])


def _is_of_the_key(error: IntegrityError, table: Any) -> bool:
    """Return whether an error names the index of the unique key, and not another constraint."""
    wanted = [table.c.queue, table.c.unique_key]
    names = (
        index.name for index in table.indexes if index.unique and list(index.columns) == wanted
    )
    return any(f"{name}'" in str(error.orig) for name in names)
