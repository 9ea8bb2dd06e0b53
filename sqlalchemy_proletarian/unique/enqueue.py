"""Enqueue a job unless one with the same key is queued, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, Unpack, overload
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, require_aware
from ..models.defaults import Job
from ..models.mixins import JobMixin
from ..models.requirements import TableUse, explained
from ..models.values import QUEUED
from ..producer.core import values_of
from ..producer.facts import facts_of
from ..producer.options import JobOptions, JobT, split_options
from ..producer.sessions import immediate_session, require_bind
from ..producer.unique_options import OnConflict, UniqueWhile, require_unique_options
from ..producer.values import call_of, encoded, job_values, require_name
from ..serializers.json_serializer import Serializer
from ..telemetry.calls import EnqueueCall
from ..telemetry.enqueues import observed
from ..telemetry.observers import has_observers, observe_inserts
from ..wakeup.announce import announce_on
from .caller import caller_of
from .conflicts import Enqueued, insert_or_keep, insert_or_raise, insert_or_replace

_DECISIONS: Final[Mapping[OnConflict, Callable[..., Enqueued[Any]]]] = {
    "ignore": insert_or_keep,
    "replace": insert_or_replace,
    "raise": insert_or_raise,
}


@overload
def enqueue_unique(
    session: Session | scoped_session[Any],
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    unique_while: UniqueWhile = ...,
    on_conflict: OnConflict = ...,
    job_model: type[JobT],
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    priority: int | None = ...,
    serializer: Serializer = ...,
    uuid_fn: Callable[[], Any] = ...,
    clock: Clock = ...,
    notify: bool = ...,
    headers: Mapping[str, Any] | None = ...,
    **columns: Any,
) -> Enqueued[JobT]: ...
@overload
def enqueue_unique(
    session: Session | scoped_session[Any],
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    unique_while: UniqueWhile = ...,
    on_conflict: OnConflict = ...,
    **options: Unpack[JobOptions],
) -> Enqueued[Job]: ...
@overload
def enqueue_unique(
    session: Connection,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    unique_while: UniqueWhile = ...,
    on_conflict: OnConflict = ...,
    job_model: type[JobMixin],
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    priority: int | None = ...,
    serializer: Serializer = ...,
    uuid_fn: Callable[[], Any] = ...,
    clock: Clock = ...,
    notify: bool = ...,
    headers: Mapping[str, Any] | None = ...,
    **columns: Any,
) -> Enqueued[Any]: ...
@overload
def enqueue_unique(
    session: Connection,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    unique_while: UniqueWhile = ...,
    on_conflict: OnConflict = ...,
    **options: Unpack[JobOptions],
) -> Enqueued[UUID]: ...
def enqueue_unique(
    session: Session | scoped_session[Any] | Connection,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    unique_while: UniqueWhile = "running",
    on_conflict: OnConflict = "ignore",
    job_model: type[Any] = Job,
    **options: Any,
) -> Enqueued[Any]:
    """Enqueue a job immediately, unless its queue has a job with the same key.

    The statements are sent in the caller's transaction; nothing is committed. A key that is taken
    does not break the transaction.

    Committed jobs are seen immediately, even while they run. If another open transaction has
    inserted, changed or deleted the job with that key, the call waits until that transaction ends.
    At an isolation level above READ COMMITTED, a key that was taken after the transaction began
    may cause a serialization failure.

    :param session: a Session, scoped_session or Connection. A session's pending objects are flushed
        first, unless its ``autoflush`` is off. For an AsyncSession or AsyncConnection, use
        :func:`sqlalchemy_proletarian.asyncio.enqueue_unique`.
    :param job_type: the job type, a string of 1 to 255 characters.
    :param payload: as in :func:`.enqueue`.
    :param unique_key: a string of 1 to 255 characters. It is unique within the queue, regardless of
        job type and payload.
    :param unique_while: how long the new job has the key. "running", the default: until it has
        finished, so a handler cannot enqueue the key of its own job. "queued": until a worker first
        starts it; the job has no key when it is retried. With "queued", a job that has the key and
        is kept starts only after the caller's transaction has ended, so it sees what that has
        committed.
    :param on_conflict: what happens if the key is taken. "ignore", the default: the job that has
        the key is returned. "replace": if that job is waiting, it gets the values of this call and
        no attempts, and keeps its ``job_id``; columns of the model that the call does not name stay
        as they are. If it is running, it is returned unchanged; if it seems to be running because
        its row is locked, after up to 0.2 seconds. "raise": an error.
    :param job_model: the mapped class of the job table, mapped to one table; :class:`.Job` by
        default.
    :param options: the keyword arguments described in :class:`.JobOptions`, and values for columns
        that ``job_model`` adds. Instead of a relationship, pass its foreign key column.
    :return: an :class:`.Enqueued` with the job that has the key now, persistent in the session, or
        its ``job_id`` with a Connection. A rollback does not remove a new object from the session,
        so discard it then.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises JobExistsError: if the key is taken and ``on_conflict`` is "raise".
    :raises NotImplementedError: if the database is not PostgreSQL, MySQL, MariaDB or SQLite.
    :raises PayloadError: if the payload cannot be encoded. Nothing is inserted.
    :raises TypeError: if an argument is of the wrong type, a column is a relationship, or
        ``job_model`` is mapped to several tables.
    :raises UnboundSessionError: if the session has no bind for ``job_model``.
    :raises ValueError: as :func:`.enqueue`; if ``unique_while`` or ``on_conflict`` has another
        value; and if a job to replace is of another mapped class.

    .. versionadded:: 0.1
    """
    arguments: dict[str, Any] = {
        "unique_key": unique_key,
        "unique_while": unique_while,
        "on_conflict": on_conflict,
        "job_model": job_model,
        "options": options,
    }
    if not has_observers():
        return _enqueue_unique(session, job_type, payload, **arguments)
    with observed(call_of(job_type, job_model, options)) as call:
        result = _enqueue_unique(session, job_type, payload, **arguments, call=call)
        if result.created or result.replaced:
            job: Any = result.job
            is_id = isinstance(session, Connection)
            call.add_one(job if is_id else sa_inspect(job).identity[0])
        return result


def _enqueue_unique(
    session: Session | scoped_session[Any] | Connection,
    job_type: str,
    payload: Any,
    *,
    unique_key: str,
    unique_while: UniqueWhile,
    on_conflict: OnConflict,
    job_model: type[Any],
    options: dict[str, Any],
    call: EnqueueCall | None = None,
) -> Enqueued[Any]:
    """Do what :func:`enqueue_unique` does.

    :param call: what observers see of it; None without observers.
    """
    given, columns = split_options(options)
    unit: Session | Connection = (
        session if isinstance(session, Connection) else immediate_session(session, "enqueue_unique")
    )
    if isinstance(unit, Session):
        require_bind(unit, job_model)
    require_name("unique_key", unique_key)
    require_unique_options(on_conflict, unique_while)
    _require_own_columns(job_model, columns)
    values = job_values(
        job_model,
        job_type,
        queue=given.queue,
        process_at=given.process_at,
        process_in=given.process_in,
        priority=given.priority,
        headers=given.headers,
        serializer=given.serializer,
        now=require_aware("clock()", given.clock()),
        call=call,
    )
    values["payload"] = encoded(given.serializer, payload)
    if facts_of(job_model).has_uuid:
        values["job_id"] = given.uuid_fn()
    values["unique_key"] = unique_key
    values["unique_while"] = QUEUED if unique_while == QUEUED else None
    return place(unit, job_model, values, columns, on_conflict=on_conflict, notify=given.notify)


def place(
    unit: Session | Connection,
    job_model: type[Any],
    values: dict[str, Any],
    columns: Mapping[str, Any] = MappingProxyType({}),
    *,
    on_conflict: OnConflict = "ignore",
    notify: bool,
) -> Enqueued[Any]:
    """Enqueue a job with a ``unique_key``; see :func:`enqueue_unique`.

    :param values: the values of the row, already checked.
    :param columns: values for the attributes that the model adds.
    :param notify: whether to wake workers when the transaction commits.
    """
    # Never added to the session: it only applies the model's constructor and validators.
    template = job_model(**values, **columns)
    caller = caller_of(unit, job_model)
    frees_key = values.get("unique_while") == QUEUED
    locks = frees_key or on_conflict == "replace"
    privileges = ("SELECT", "INSERT", "UPDATE") if locks else ("SELECT", "INSERT")
    use = TableUse(caller.table, privileges, frozenset(caller.table.c.keys()))
    with explained(caller.connection, use):
        result = _DECISIONS[on_conflict](caller, values_of(template))
    if result.created:
        observe_inserts(lambda: [(values["job_type"], values["queue"])])
    # A worker may have skipped a waiting job because this transaction has locked it.
    if notify and (result.created or result.replaced or frees_key):
        announce_on(caller.connection, job_model, values["queue"])
    return result


def _require_own_columns(job_model: type[Any], columns: Iterable[str]) -> None:
    mapper = sa_inspect(job_model)
    if len(mapper.tables) > 1:
        msg = (
            f"enqueue_unique inserts one row, but {job_model.__qualname__} is mapped to "
            f"{len(mapper.tables)} tables: {', '.join(map(str, mapper.tables))}"
        )
        raise TypeError(msg)
    for name in columns:
        if name in mapper.relationships:
            msg = (
                f"{name} is a relationship of {job_model.__qualname__}: enqueue_unique inserts the "
                f"row at once, so pass the foreign key column instead"
            )
            raise TypeError(msg)
