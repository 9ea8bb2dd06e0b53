"""At most one queued job per key: one INSERT in the caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, overload

from sqlalchemy import insert
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, require_aware, utcnow, uuid7
from ..database.column_types import MYSQL
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import Job
from ..models.requirements import Use, explained
from ..serializers.json_serializer import Serializer
from ..wakeup.announce import announce
from .enqueue import JSON, JobT, has_uuid, immediate_session, job_values, require_bind, require_name

_INSERTS: dict[str, Callable[[Any], Any]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}
"""Those that know INSERT … ON CONFLICT."""


@overload
def enqueue_unique(  # pyright: ignore[reportOverlappingOverload] - job_model is no column
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
    **columns: Any,
) -> JobT | None: ...
@overload
def enqueue_unique(
    session: Session | scoped_session[Any],
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    priority: int | None = ...,
    serializer: Serializer = ...,
    uuid_fn: Callable[[], Any] = ...,
    clock: Clock = ...,
    notify: bool = ...,
    **columns: Any,
) -> Job | None: ...
def enqueue_unique(
    session: Session | scoped_session[Any],
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    queue: str | None = None,
    process_at: datetime | None = None,
    process_in: timedelta | None = None,
    priority: int | None = None,
    job_model: type[Any] = Job,
    serializer: Serializer = JSON,
    uuid_fn: Callable[[], Any] = uuid7,
    clock: Clock = utcnow,
    notify: bool = True,
    **columns: Any,
) -> Any:
    """Insert a job now, unless one with the same key is queued in that queue, waiting or running.

    The row is inserted in the session's transaction; nothing is committed. The key is free again
    when the job has finished, so a handler cannot enqueue the key of the job it is running.

    A committed job is seen at once, also while it runs. Where another transaction has inserted,
    changed or removed the job with that key and has not ended, the call waits until it has. Above
    READ COMMITTED, a key that was taken since the transaction began is a serialization failure.

    :param session: a Session or scoped_session. Pending objects are flushed first, unless its
        ``autoflush`` is off.
    :param unique_key: 1 to 255 characters. Jobs of any type and payload share the keys of their
        queue.
    :param columns: values for columns that ``job_model`` adds; for a relationship, that of its
        foreign key column. The other parameters are those of :func:`enqueue`.
    :return: the job, already persistent in the session, or None if the key is taken. A rollback
        does not take the object out of the session: let go of it then.
    :raises DatabaseNotReadyError: as :func:`enqueue_many`.
    :raises NotImplementedError: if the database is none of PostgreSQL, MySQL, MariaDB and SQLite.
    :raises PayloadError: as :func:`enqueue`, and likewise the other errors; then nothing is
        inserted.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "enqueue_unique")
    require_bind(unit, job_model)
    require_name("unique_key", unique_key)
    _require_own_columns(job_model, columns)
    values = job_values(
        job_model,
        job_type,
        payload,
        queue=queue,
        process_at=process_at,
        process_in=process_in,
        priority=priority,
        serializer=serializer,
        now=require_aware("clock()", clock()),
    )
    if has_uuid(job_model):
        values["job_id"] = uuid_fn()
    # Never added: it is made for what the model's constructor and validators make of the values.
    template = job_model(**values, unique_key=unique_key, **columns)
    job = _insert(unit, job_model, _values_of(template))
    if job is not None and notify:
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


def _values_of(job: Any) -> dict[str, Any]:
    state = sa_inspect(job)
    mapper = state.mapper
    values = {
        attr.key: state.dict[attr.key] for attr in mapper.column_attrs if attr.key in state.dict
    }
    if mapper.version_id_col is not None and mapper.version_id_generator:
        # A flush gives the first version to a row, a statement does not.
        name = mapper.get_property_by_column(mapper.version_id_col).key
        values.setdefault(name, mapper.version_id_generator(None))
    return values


def _insert(session: Session, job_model: type[Any], values: dict[str, Any]) -> Any:
    bind = session.get_bind(**bind_arguments(job_model))
    dialect = bind.dialect.name
    if dialect not in (*_INSERTS, *MYSQL):
        msg = f"enqueue_unique knows no way to insert unless a key is taken on {dialect}"
        raise NotImplementedError(msg)
    table = job_table(job_model)
    use = Use(table, ("SELECT", "INSERT"), frozenset(table.c.keys()))
    with explained(bind, use):
        if dialect in _INSERTS:
            return _insert_or_nothing(session, job_model, _INSERTS[dialect](job_model), values)
        return _insert_or_refused(session, job_model, values)


def _insert_or_nothing(
    session: Session, job_model: type[Any], into: Any, values: dict[str, Any]
) -> Any:
    table = job_table(job_model)
    statement = (
        into.values(values)
        .on_conflict_do_nothing(
            index_elements=[table.c.queue, table.c.unique_key],
            index_where=table.c.unique_key.is_not(None),
        )
        .returning(job_model)
    )
    return session.scalars(statement).one_or_none()


def _insert_or_refused(session: Session, job_model: type[Any], values: dict[str, Any]) -> Any:
    """Insert as MySQL and MariaDB do, whose refusal undoes that statement and nothing else.

    Their ON DUPLICATE KEY UPDATE would hide every other key that is taken, and not tell whether it
    inserted.
    """
    try:
        done: Any = session.execute(insert(job_model).values(values))
    except IntegrityError as error:
        if _is_of_the_key(error, job_table(job_model)):
            return None
        raise
    return session.get_one(job_model, tuple(done.inserted_primary_key))


def _is_of_the_key(error: IntegrityError, table: Any) -> bool:
    """Tell whether what is taken is the unique key of a job, by the name of its index."""
    wanted = [table.c.queue, table.c.unique_key]
    names = (
        index.name for index in table.indexes if index.unique and list(index.columns) == wanted
    )
    return any(f"{name}'" in str(error.orig) for name in names)
