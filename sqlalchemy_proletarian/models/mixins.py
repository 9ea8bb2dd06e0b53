"""The mapped tables: mixins for your own declarative base, and default models on the library's.

The defaults, :class:`Job` and :class:`ArchivedJob`, are the tables ``proletarian.job`` and
``proletarian.archived_job``. For tables of your own, put the mixins on your own base::

    class EmailJob(JobMixin, Base):
        __tablename__ = "email_job"
        customer_id: Mapped[int | None] = mapped_column(ForeignKey("customer.id"))


    class ArchivedEmailJob(ArchivedJobMixin, Base):
        __tablename__ = "archived_email_job"
        customer_id: Mapped[int | None]

A column that stands on both models is carried into the archive. Index names derive from the table's
name, so any number of pairs live in one metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    ColumnDefault,
    Connection,
    Index,
    MetaData,
    SmallInteger,
    Table,
    event,
    text,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    InstanceState,
    Mapped,
    Mapper,
    mapped_column,
    validates,
)
from sqlalchemy.schema import conv

from ..clock import require_aware, utcnow, uuid7
from ..database.column_types import ID, LONG_TEXT, NAME, TABLE_OPTIONS, TIME
from ..wakeup.announce import announce_insert
from .checks import check_columns, refuse_pydantic

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5
NO_PAYLOAD = "null"
"""What stands in ``payload`` where columns of its own say what a job is about."""
PRIORITIES = range(10)
"""Priorities from first to last."""


class Status(StrEnum):
    """How a job ended, as it stands in ``archived_job.status``.

    .. versionadded:: 0.1
    """

    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"


class _Fieldless:
    """Says that a mixin may be one of dataclasses, and is none itself.

    Where the base is a ``MappedAsDataclass``, SQLAlchemy wants ``__dataclass_fields__`` in mixins;
    the fields are those of the mapped class, which is what becomes a dataclass. (Defaults made by
    functions are spelled as ColumnDefault for the same reason: they are the column's alone.)
    """

    def __get__(self, instance: object, owner: type[Any]) -> Any:
        raise AttributeError(owner)


class _JobColumns:
    """The columns that a job keeps when it moves to the archive.

    The columns of the original come first and keep its names and order.
    """

    __dataclass_fields__ = _Fieldless()

    job_id: Mapped[UUID] = mapped_column(
        ID, primary_key=True, default=ColumnDefault(uuid7), sort_order=-90
    )
    queue: Mapped[str] = mapped_column(NAME, default=DEFAULT_QUEUE, sort_order=-80)
    job_type: Mapped[str] = mapped_column(NAME, default=None, sort_order=-79)
    payload: Mapped[str] = mapped_column(LONG_TEXT, default=NO_PAYLOAD, sort_order=-78)
    attempts: Mapped[int] = mapped_column(default=0, sort_order=-77)
    enqueued_at: Mapped[datetime] = mapped_column(
        TIME, default=ColumnDefault(utcnow), sort_order=-76
    )
    process_at: Mapped[datetime] = mapped_column(
        TIME, default=ColumnDefault(utcnow), sort_order=-75
    )
    priority: Mapped[int] = mapped_column(
        SmallInteger,
        default=DEFAULT_PRIORITY,
        server_default=text(str(DEFAULT_PRIORITY)),
        sort_order=-60,
    )
    unique_key: Mapped[str | None] = mapped_column(NAME, default=None, sort_order=-59)
    error: Mapped[str | None] = mapped_column(LONG_TEXT, default=None, sort_order=-58)
    deaths: Mapped[int] = mapped_column(default=0, server_default=text("0"), sort_order=-57)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        refuse_pydantic(cls)
        super().__init_subclass__(**kwargs)

    @validates("enqueued_at", "process_at")
    def _require_aware(self, name: str, value: datetime) -> datetime:
        return require_aware(name, value)

    def __repr__(self) -> str:
        # Of what is loaded only: to load the rest may fail, as where a worker has removed the row.
        loaded = vars(self)
        known = [type(self).__name__]
        if "job_type" in loaded:
            known.append(repr(loaded["job_type"]))
        known.append(str(loaded.get("job_id")))
        if "queue" in loaded:
            known.append(f"in {loaded['queue']!r}, attempts {loaded.get('attempts')}")
        return f"<{' '.join(known)}>"


class JobMixin(_JobColumns):
    """A table of queued jobs, for your own declarative base.

    Give it a ``__tablename__`` (and a schema in ``__table_args__`` where you want one); add
    columns, foreign keys and relationships as on any other model.

    ``__queue__`` and ``__priority__`` are those of objects that are added to a session without one.

    Workers keep their state in these columns:

    * ``deaths`` counts the workers in a row that died, or lost their lease, while they ran this job
      and no other. A run that ends sets it to 0.
    * ``lease_id`` identifies the lease under which the job runs, or ran when its worker died. NULL
      without a lease.
    * ``ended_as``, ``ended_at`` and ``refusal`` are NULL unless the job has ended and the archive
      refuses its row: with which status and when it ended, and what the database said.

    .. versionadded:: 0.1
    """

    __dataclass_fields__ = _Fieldless()

    __queue__: ClassVar[str] = DEFAULT_QUEUE
    __priority__: ClassVar[int] = DEFAULT_PRIORITY

    lease_id: Mapped[UUID | None] = mapped_column(ID, default=None, sort_order=-56)
    ended_as: Mapped[str | None] = mapped_column(NAME, default=None, sort_order=-55)
    ended_at: Mapped[datetime | None] = mapped_column(TIME, default=None, sort_order=-54)
    refusal: Mapped[str | None] = mapped_column(LONG_TEXT, default=None, sort_order=-53)


@event.listens_for(JobMixin, "before_insert", propagate=True, raw=True)
def _enter_queue(
    _mapper: Mapper[Any], connection: Connection, state: InstanceState[JobMixin]
) -> None:
    """Make adding a job to a session as good as enqueueing it."""
    job: Any = state.obj()
    if state.dict.get("queue") is None:
        job.queue = job.__queue__
    if state.dict.get("priority") is None:
        job.priority = job.__priority__
    announce_insert(connection, state, job.queue)


class ArchivedJobMixin(_JobColumns):
    """A table of finished jobs, for your own declarative base.

    .. versionadded:: 0.1
    """

    __dataclass_fields__ = _Fieldless()

    status: Mapped[str] = mapped_column(NAME, default=None, sort_order=-70)
    finished_at: Mapped[datetime] = mapped_column(
        TIME, default=ColumnDefault(utcnow), sort_order=-69
    )


class RunningJobMixin:
    """A table of advisory markers: which worker runs which job, since when.

    A row lock says neither who holds it nor since when, and it is gone with the process that held
    it; the marker stays. Losing this table loses no job: on PostgreSQL it is made UNLOGGED, by the
    migration as by ``create_all()``. Autogenerate does so where you ask for it, with
    ``__table_args__ = {"prefixes": ["UNLOGGED"]}``, which no other database understands.

    .. versionadded:: 0.1
    """

    __dataclass_fields__ = _Fieldless()

    job_id: Mapped[UUID] = mapped_column(ID, primary_key=True, sort_order=-90)
    worker: Mapped[str] = mapped_column(NAME, sort_order=-89)
    batch_size: Mapped[int] = mapped_column(sort_order=-88)
    started_at: Mapped[datetime] = mapped_column(TIME, sort_order=-87)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        refuse_pydantic(cls)
        super().__init_subclass__(**kwargs)


def _set_unlogged(table: Table, connection: Connection, **_: Any) -> None:
    if connection.dialect.name == "postgresql" and isinstance(connection, Connection):
        # Not by DDL, which doubles a percent sign in a name once more than the driver takes back.
        preparer = connection.dialect.identifier_preparer
        name = preparer.format_table(table, use_schema=False)
        if schema := connection.schema_for_object(table):
            name = f"{preparer.quote_schema(schema)}.{name}"
        connection.exec_driver_sql(f"ALTER TABLE {name} SET UNLOGGED")


@event.listens_for(JobMixin, "after_mapper_constructed", propagate=True)
def _complete_job_table(mapper: Mapper[Any], class_: type[Any]) -> None:
    """Attach indexes to the finished table.

    Those in ``__table_args__`` would vanish where a subclass has its own. And not in
    ``__table_cls__``, which belongs to the user's base: Flask-SQLAlchemy has one.
    """
    table = _own_table(mapper)
    if table is None:
        return
    check_columns(mapper, class_, JobMixin)
    _set_options(table, TABLE_OPTIONS)
    if table.autoincrement_column is not None:
        # Else SQLite gives the highest number again when its job has gone to the archive.
        _set_options(table, {"sqlite_autoincrement": True})
    name = table.name
    _add_index(table, f"ix_{name}_claim", table.c.queue, table.c.priority, table.c.process_at)
    keyed = table.c.unique_key.is_not(None)
    _add_index(
        table,
        f"ux_{name}_unique_key",
        table.c.queue,
        table.c.unique_key,
        unique=True,
        postgresql_where=keyed,
        sqlite_where=keyed,
    )


@event.listens_for(ArchivedJobMixin, "after_mapper_constructed", propagate=True)
def _complete_archive(mapper: Mapper[Any], class_: type[Any]) -> None:
    table = _own_table(mapper)
    if table is not None:
        check_columns(mapper, class_, ArchivedJobMixin)
        _set_options(table, TABLE_OPTIONS)
        _add_index(table, f"ix_{table.name}_finished_at", table.c.finished_at)


@event.listens_for(RunningJobMixin, "after_mapper_constructed", propagate=True)
def _complete_running(mapper: Mapper[Any], class_: type[Any]) -> None:
    table = _own_table(mapper)
    if table is not None:
        check_columns(mapper, class_, RunningJobMixin)
        _set_options(table, TABLE_OPTIONS)
        event.listen(table, "after_create", _set_unlogged)


def _own_table(mapper: Mapper[Any]) -> Table | None:
    """Return the table of a class; None if the class shares or extends that of another."""
    if mapper.inherits is not None and not mapper.concrete:
        return None
    table = mapper.local_table
    return table if isinstance(table, Table) else None


def _set_options(table: Table, options: Mapping[str, Any]) -> None:
    given = set(table.dialect_kwargs)  # to look a name up finds defaults, too
    table.dialect_kwargs.update({k: v for k, v in options.items() if k not in given})


def _add_index(table: Table, name: str, *columns: Any, **options: Any) -> None:
    if name not in {index.name for index in table.indexes}:
        # conv: shortened where the table's name is so long that the index's would be too long.
        Index(conv(name), *columns, **options)


@event.listens_for(_JobColumns, "expire", propagate=True, raw=True)
def _keep_id(state: InstanceState[Any], _names: Any) -> None:
    """Keep ``job_id``, which never changes: the row may be gone when somebody asks for it.

    Nothing else of the object is different; it stays expired.
    """
    if state.key is None:
        return
    for column, value in zip(state.mapper.primary_key, state.key[1], strict=True):
        if column.name == "job_id":
            state.dict["job_id"] = value
            state.expired_attributes.discard("job_id")


def is_unlogged(table: Table) -> bool:
    """Tell whether a table is one of markers, which need no write-ahead log."""
    return event.contains(table, "after_create", _set_unlogged)


SCHEMA = "proletarian"


class Base(DeclarativeBase):
    """The declarative base of the default models, with a metadata of its own.

    .. versionadded:: 0.1
    """

    metadata = MetaData(schema=SCHEMA)


class Job(JobMixin, Base):
    """A queued job: a row of ``proletarian.job``.

    .. versionadded:: 0.1
    """

    __tablename__ = "job"


class ArchivedJob(ArchivedJobMixin, Base):
    """A finished job: a row of ``proletarian.archived_job``.

    .. versionadded:: 0.1
    """

    __tablename__ = "archived_job"


class RunningJob(RunningJobMixin, Base):
    """A job that a worker has in its hands: a row of ``proletarian.running``.

    .. versionadded:: 0.1
    """

    __tablename__ = "running"
