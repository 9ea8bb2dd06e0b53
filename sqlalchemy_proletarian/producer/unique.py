"""Enqueue a job unless one with the same key is queued, with one INSERT in the transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Unpack, overload
from uuid import UUID

from sqlalchemy import Connection, insert
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, require_aware
from ..database.dialects import database_of
from ..models.defaults import Job
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import JobMixin
from ..models.requirements import TableUse, explained
from ..serializers.json_serializer import Serializer
from ..wakeup.announce import announce, announce_on
from .core import row_of, values_of
from .facts import facts_of
from .options import JobOptions, JobT, split_options
from .sessions import immediate_session, require_bind
from .values import encoded, job_values, require_name


@overload
def enqueue_unique(
    session: Session | scoped_session[Any],
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
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
) -> JobT | None: ...
@overload
def enqueue_unique(
    session: Session | scoped_session[Any],
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    **options: Unpack[JobOptions],
) -> Job | None: ...
@overload
def enqueue_unique(
    session: Connection,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
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
) -> Any: ...
@overload
def enqueue_unique(
    session: Connection,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    **options: Unpack[JobOptions],
) -> UUID | None: ...
def enqueue_unique(
    session: Session | scoped_session[Any] | Connection,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    job_model: type[Any] = Job,
    **options: Any,
) -> Any:
    """Insert a job immediately, unless the queue has a waiting or running job with the same key.

    The row is inserted in the caller's transaction; nothing is committed. The key becomes free
    when the job has finished, so a handler cannot enqueue the key of the job that it is running.

    Committed jobs are seen immediately, even while they run. If another open transaction has
    inserted, changed or deleted the job with that key, the call waits until that transaction ends.
    At an isolation level above READ COMMITTED, a key that was taken after the transaction began
    causes a serialization failure.

    :param session: a Session, scoped_session or Connection. A session's pending objects are flushed
        first, unless its ``autoflush`` is off. For an AsyncSession or AsyncConnection, use
        :func:`sqlalchemy_proletarian.asyncio.enqueue_unique`.
    :param job_type: the job type, a string of 1 to 255 characters.
    :param payload: as in :func:`.enqueue`.
    :param unique_key: a string of 1 to 255 characters. It is unique within the queue, regardless of
        job type and payload.
    :param job_model: the mapped class of the job table, mapped to one table; :class:`.Job` by
        default.
    :param options: the keyword arguments described in :class:`.JobOptions`, and values for columns
        that ``job_model`` adds. Instead of a relationship, pass its foreign key column.
    :return: None if the key is taken. Otherwise the job, already persistent in the session; with a
        Connection, its ``job_id``. A rollback does not remove the object from the session, so
        discard it then.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises NotImplementedError: if the database is not PostgreSQL, MySQL, MariaDB or SQLite.
    :raises PayloadError: if the payload cannot be encoded. Nothing is inserted.
    :raises TypeError: if an argument is of the wrong type, a column is a relationship, or
        ``job_model`` is mapped to several tables.
    :raises UnboundSessionError: if the session has no bind for ``job_model``.
    :raises ValueError: as :func:`.enqueue`.

    .. versionadded:: 0.1
    """
    given, columns = split_options(options)
    unit: Session | Connection = (
        session if isinstance(session, Connection) else immediate_session(session, "enqueue_unique")
    )
    if isinstance(unit, Session):
        require_bind(unit, job_model)
    require_name("unique_key", unique_key)
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
    )
    values["payload"] = encoded(given.serializer, payload)
    if facts_of(job_model).has_uuid:
        values["job_id"] = given.uuid_fn()
    values["unique_key"] = unique_key
    return insert_unless_queued(unit, job_model, values, notify=given.notify, **columns)


def insert_unless_queued(
    unit: Session | Connection,
    job_model: type[Any],
    values: dict[str, Any],
    *,
    notify: bool,
    **columns: Any,
) -> Any:
    """Insert a job unless its queue has one with its ``unique_key``; return it, or None.

    With a Connection, return its id.

    :param values: the values of the row, already checked.
    :param notify: whether to wake workers when the transaction commits.
    :param columns: values for the attributes that the model adds.
    """
    # Never added to the session: it only applies the model's constructor and validators.
    template = job_model(**values, **columns)
    job = _insert(unit, job_model, values_of(template))
    if job is not None and notify:
        if isinstance(unit, Connection):
            announce_on(unit, job_model, values["queue"])
        else:
            announce(unit, job_model, values["queue"])
    return job


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


def _insert(unit: Session | Connection, job_model: type[Any], values: dict[str, Any]) -> Any:
    """Insert a job and return it, or its id if ``unit`` is a Connection; None if it is there."""
    bind = unit.get_bind(**bind_arguments(job_model)) if isinstance(unit, Session) else unit
    conflict_insert = database_of(bind.dialect).conflict_insert
    table = job_table(job_model)
    use = TableUse(table, ("SELECT", "INSERT"), frozenset(table.c.keys()))
    with explained(bind, use):
        if conflict_insert is None:
            return _insert_or_refused(unit, job_model, values)
        return _insert_or_nothing(unit, job_model, conflict_insert, values)


def _insert_or_nothing(
    unit: Session | Connection,
    job_model: type[Any],
    conflict_insert: Callable[[Any], Any],
    values: dict[str, Any],
) -> Any:
    table = job_table(job_model)
    into: Any
    returned: Any
    if isinstance(unit, Session):
        into, returned = conflict_insert(job_model).values(values), job_model
    else:
        into, returned = conflict_insert(table).values(row_of(job_model, values)), table.c.job_id
    statement = into.on_conflict_do_nothing(
        index_elements=[table.c.queue, table.c.unique_key],
        index_where=table.c.unique_key.is_not(None),
    ).returning(returned)
    return unit.scalars(statement).one_or_none()


def _insert_or_refused(
    unit: Session | Connection, job_model: type[Any], values: dict[str, Any]
) -> Any:
    """Insert a job on MySQL or MariaDB, where a duplicate key undoes only the failed statement.

    ON DUPLICATE KEY UPDATE would hide conflicts of every other unique key, and would not report
    whether it inserted the row.
    """
    table = job_table(job_model)
    try:
        if isinstance(unit, Session):
            done: Any = unit.execute(insert(job_model).values(values))
        else:
            done = unit.execute(insert(table).values(row_of(job_model, values)))
    except IntegrityError as error:
        if _is_of_the_key(error, table):
            return None
        raise
    key = tuple(done.inserted_primary_key)
    return unit.get_one(job_model, key) if isinstance(unit, Session) else key[0]


def _is_of_the_key(error: IntegrityError, table: Any) -> bool:
    """Return whether an error names the index of the unique key, and not another constraint."""
    wanted = [table.c.queue, table.c.unique_key]
    names = (
        index.name for index in table.indexes if index.unique and list(index.columns) == wanted
    )
    return any(f"{name}'" in str(error.orig) for name in names)
