"""Mixins for your own declarative base.

To define tables of your own, use the mixins with your own base::

    class EmailJob(JobMixin, Base):
        __tablename__ = "email_job"
        customer_id: Mapped[int | None] = mapped_column(ForeignKey("customer.id"))


    class ArchivedEmailJob(ArchivedJobMixin, Base):
        __tablename__ = "archived_email_job"
        customer_id: Mapped[int | None]

A column that both models define is copied into the archive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import ColumnDefault, Connection, SmallInteger, Table, event, text
from sqlalchemy.orm import InstanceState, Mapped, Mapper, mapped_column, validates
from sqlalchemy.orm.interfaces import EXT_CONTINUE

from ..clock import require_aware, utcnow, uuid7
from ..database.column_types import ID, LONG_TEXT, MAPPING, NAME, TIME
from .checks import check_columns, refuse_pydantic
from .headers import checked_headers
from .job_tables import (
    complete_archive,
    complete_job_table,
    complete_paused,
    complete_running,
)
from .values import DEFAULT_PRIORITY, DEFAULT_QUEUE, NO_PAYLOAD


class _Fieldless:
    """Allow a mixin on a dataclass base although the mixin is not a dataclass.

    If the base is a ``MappedAsDataclass``, SQLAlchemy requires ``__dataclass_fields__`` in mixins.
    Reading the attribute raises AttributeError, so that the mixin is not taken for a dataclass:
    the fields belong to the mapped class. (For the same reason default functions are passed as
    ColumnDefault: they apply to the column only.)
    """

    def __get__(self, instance: object, owner: type[Any]) -> Any:
        raise AttributeError(owner)


class _JobColumns:
    """The columns that a job keeps when it moves to the archive.

    The columns of the original Proletarian come first, with the same names and in the same order.
    """

    __dataclass_fields__: ClassVar[_Fieldless] = _Fieldless()

    job_id: Mapped[UUID] = mapped_column(
        ID,
        primary_key=True,
        default=ColumnDefault(uuid7),
        sort_order=-90,
        doc="The id of the job. The archive keeps it.",
    )
    queue: Mapped[str] = mapped_column(
        NAME, default=DEFAULT_QUEUE, sort_order=-80, doc="The name of the queue."
    )
    job_type: Mapped[str] = mapped_column(
        NAME, default=None, sort_order=-79, doc="The type of the job, which selects its handler."
    )
    payload: Mapped[str] = mapped_column(
        LONG_TEXT,
        default=NO_PAYLOAD,
        sort_order=-78,
        doc="The payload, as the serializer encoded it; 'null' if there is none.",
    )
    attempts: Mapped[int] = mapped_column(
        default=0,
        sort_order=-77,
        doc="How many attempts were counted; in lease mode it includes the one that runs.",
    )
    enqueued_at: Mapped[datetime] = mapped_column(
        TIME, default=ColumnDefault(utcnow), sort_order=-76, doc="When the job was enqueued."
    )
    process_at: Mapped[datetime] = mapped_column(
        TIME,
        default=ColumnDefault(utcnow),
        sort_order=-75,
        doc="When the job is due; while it has a lease, when the lease expires.",
    )
    priority: Mapped[int] = mapped_column(
        SmallInteger,
        default=DEFAULT_PRIORITY,
        server_default=text(str(DEFAULT_PRIORITY)),
        sort_order=-60,
        doc="The priority, from 0 (first) to 9 (last).",
    )
    unique_key: Mapped[str | None] = mapped_column(
        NAME,
        default=None,
        sort_order=-59,
        doc="The key that no other job of the queue may have; NULL for a job without one.",
    )
    error: Mapped[str | None] = mapped_column(
        LONG_TEXT,
        default=None,
        sort_order=-58,
        doc="The traceback of the last failed attempt, or the reason of a cancellation.",
    )
    deaths: Mapped[int] = mapped_column(
        default=0,
        server_default=text("0"),
        sort_order=-57,
        doc="How many workers in a row crashed or lost the lease while they ran only this job.",
    )
    headers: Mapped[dict[str, Any] | None] = mapped_column(
        MAPPING,
        default=None,
        sort_order=-52,
        doc="What the job carries beside its payload, as JSON.",
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        refuse_pydantic(cls)
        super().__init_subclass__(**kwargs)

    @validates("enqueued_at", "process_at")
    def _require_aware(self, name: str, value: datetime) -> datetime:
        return require_aware(name, value)

    @validates("headers")
    def _check_headers(self, _name: str, value: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else checked_headers(value) or None

    def __repr__(self) -> str:
        # Only loaded attributes: loading others fails if a worker has deleted the row.
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

    Set ``__tablename__`` (and, if needed, a schema in ``__table_args__``). You can add columns,
    foreign keys and relationships as on any other model.

    ``__queue__`` and ``__priority__`` are the defaults for objects that are added to a session
    without a queue or a priority.

    Workers keep their state in these columns:

    * ``deaths`` counts the consecutive workers that crashed or lost their lease while this was the
      only job they ran. A run that ends normally sets it to 0.
    * ``lease_id`` identifies the lease under which the job runs, or was running when its worker
      crashed. NULL if the job has no lease.
    * ``ended_as``, ``ended_at`` and ``refusal`` are NULL unless the job has ended and the archive
      rejects its row. They then contain the job's final status, the time when it ended, and the
      database's error message.
    * ``waits_for`` is the name of the limit that the job waits for, and ``due_at`` is when the job
      was due. ``process_at`` is then in the year 9000. NULL if the job does not wait for a limit.

    ``unique_while`` is "queued" if a worker sets ``unique_key`` to NULL when it starts the job.
    Otherwise, the key is taken until the job has finished.

    .. versionadded:: 0.1
    """

    __dataclass_fields__: ClassVar[_Fieldless] = _Fieldless()

    __queue__: ClassVar[str] = DEFAULT_QUEUE
    __priority__: ClassVar[int] = DEFAULT_PRIORITY

    lease_id: Mapped[UUID | None] = mapped_column(
        ID,
        default=None,
        sort_order=-56,
        doc="The lease under which the job runs, or ran at the crash of its worker; else NULL.",
    )
    ended_as: Mapped[str | None] = mapped_column(
        NAME,
        default=None,
        sort_order=-55,
        doc="The final status, if the archive rejects the row of the ended job; else NULL.",
    )
    ended_at: Mapped[datetime | None] = mapped_column(
        TIME,
        default=None,
        sort_order=-54,
        doc="When the job ended, if the archive rejects its row; else NULL.",
    )
    refusal: Mapped[str | None] = mapped_column(
        LONG_TEXT,
        default=None,
        sort_order=-53,
        doc="The error of the database, if the archive rejects the row; else NULL.",
    )
    unique_while: Mapped[str | None] = mapped_column(
        NAME,
        default=None,
        sort_order=-52,
        doc="'queued' if the start of the job frees the unique key; else its end does.",
    )
    waits_for: Mapped[str | None] = mapped_column(
        NAME,
        default=None,
        sort_order=-50,
        doc="The name of the limit that the job waits for; NULL if it waits for none.",
    )
    due_at: Mapped[datetime | None] = mapped_column(
        TIME,
        default=None,
        sort_order=-49,
        doc="When the job was due, if it waits for a limit; process_at is then in the year 9000.",
    )


# With ``retval``, SQLAlchemy calls the function itself and not a wrapper.
@event.listens_for(JobMixin, "before_insert", propagate=True, raw=True, retval=True)
def _enter_queue(
    _mapper: Mapper[Any], _connection: Connection, state: InstanceState[JobMixin]
) -> Any:
    """Apply the class's defaults to a job that was added to a session."""
    job: Any = state.obj()
    if state.dict.get("queue") is None:
        job.queue = job.__queue__
    if state.dict.get("priority") is None:
        job.priority = job.__priority__
    return EXT_CONTINUE


class ArchivedJobMixin(_JobColumns):
    """A table of finished jobs, for your own declarative base.

    ``retried_at`` is when :func:`.retry` or :func:`.retry_where` enqueued the job again; NULL if
    they did not. ``result`` is the text of what the handler returned, if it is registered with
    ``keep_result=True``; :func:`.result` decodes it.

    With ``__table_args__ = {"postgresql_partition_by": "RANGE (finished_at)"}``, the table is
    partitioned by month on PostgreSQL; see the page "An archive partitioned by month".

    .. versionadded:: 0.1
    """

    __dataclass_fields__: ClassVar[_Fieldless] = _Fieldless()

    status: Mapped[str] = mapped_column(
        NAME,
        default=None,
        sort_order=-70,
        doc="How the job ended: 'success', 'failure' or 'cancelled'.",
    )
    finished_at: Mapped[datetime] = mapped_column(
        TIME, default=ColumnDefault(utcnow), sort_order=-69, doc="When the job ended."
    )
    retried_at: Mapped[datetime | None] = mapped_column(
        TIME,
        default=None,
        sort_order=-56,
        doc="When the job was enqueued again from the archive; NULL if it was not.",
    )
    result: Mapped[str | None] = mapped_column(
        LONG_TEXT,
        default=None,
        sort_order=-51,
        doc="What the handler returned, encoded, if it is registered with keep_result=True.",
    )


class RunningJobMixin:
    """A table of advisory markers: which worker runs which job, and since when.

    A row lock does not show who holds it or since when, and it is released when the process that
    held it ends; the marker remains. No job is lost if this table is lost, so on PostgreSQL both
    the migration and ``create_all()`` make it UNLOGGED. Autogenerate makes it UNLOGGED only if you
    add ``__table_args__ = {"prefixes": ["UNLOGGED"]}``, which only PostgreSQL understands.

    .. versionadded:: 0.1
    """

    __dataclass_fields__: ClassVar[_Fieldless] = _Fieldless()

    job_id: Mapped[UUID] = mapped_column(
        ID, primary_key=True, sort_order=-90, doc="The id of the job."
    )
    worker: Mapped[str] = mapped_column(
        NAME,
        sort_order=-89,
        doc="The name of the worker, with a suffix that differs for each start.",
    )
    batch_size: Mapped[int] = mapped_column(
        sort_order=-88,
        doc="How many jobs the worker runs in the transaction, or at a time in lease mode.",
    )
    started_at: Mapped[datetime] = mapped_column(
        TIME,
        sort_order=-87,
        doc="When the worker began with the job, or with the transaction of a batch.",
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        refuse_pydantic(cls)
        super().__init_subclass__(**kwargs)


class PausedQueueMixin:
    """A table of paused queues, for your own declarative base.

    A queue is paused while the table has its row. What is paused is decided by the table that a
    worker reads, whatever job table it serves: workers of several job tables may share a table, and
    then a queue is paused in all of these job tables.

    ``reason`` and ``paused_by`` are what :func:`.pause` was called with; NULL if it was called
    without.

    .. versionadded:: 0.1
    """

    __dataclass_fields__: ClassVar[_Fieldless] = _Fieldless()

    queue: Mapped[str] = mapped_column(
        NAME, primary_key=True, sort_order=-90, doc="The name of the queue that is paused."
    )
    paused_at: Mapped[datetime] = mapped_column(
        TIME, sort_order=-89, doc="When the queue was paused."
    )
    reason: Mapped[str | None] = mapped_column(
        LONG_TEXT, sort_order=-88, doc="Why it was paused; NULL if no reason was given."
    )
    paused_by: Mapped[str | None] = mapped_column(
        NAME, sort_order=-87, doc="Who paused it; NULL if nobody was named."
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        refuse_pydantic(cls)
        super().__init_subclass__(**kwargs)


@event.listens_for(JobMixin, "after_mapper_constructed", propagate=True)
def _complete_job_table(mapper: Mapper[Any], class_: type[Any]) -> None:
    _complete(mapper, class_, JobMixin, complete_job_table)


@event.listens_for(ArchivedJobMixin, "after_mapper_constructed", propagate=True)
def _complete_archive(mapper: Mapper[Any], class_: type[Any]) -> None:
    _complete(mapper, class_, ArchivedJobMixin, complete_archive)


@event.listens_for(RunningJobMixin, "after_mapper_constructed", propagate=True)
def _complete_running(mapper: Mapper[Any], class_: type[Any]) -> None:
    _complete(mapper, class_, RunningJobMixin, complete_running)


@event.listens_for(PausedQueueMixin, "after_mapper_constructed", propagate=True)
def _complete_paused(mapper: Mapper[Any], class_: type[Any]) -> None:
    _complete(mapper, class_, PausedQueueMixin, complete_paused)


def _complete(
    mapper: Mapper[Any],
    class_: type[Any],
    mixin: type[Any],
    complete_table: Callable[[Table], object],
) -> None:
    """Check the columns of a mapped class, and complete its table if it has one of its own."""
    table = _own_table(mapper)
    if table is not None:
        check_columns(mapper, class_, mixin)
        complete_table(table)


def _own_table(mapper: Mapper[Any]) -> Table | None:
    """Return the table of a class; None if the class inherits the table of another class."""
    if mapper.inherits is not None and not mapper.concrete:
        return None
    table = mapper.local_table
    return table if isinstance(table, Table) else None


@event.listens_for(_JobColumns, "expire", propagate=True, raw=True)
def _keep_id(state: InstanceState[Any], _names: Any) -> None:
    """Keep ``job_id`` loaded when an object expires: it never changes, and the row may be deleted.

    All other attributes stay expired.
    """
    if state.key is None:
        return
    for column, value in zip(state.mapper.primary_key, state.key[1], strict=True):
        if column.name == "job_id":
            state.dict["job_id"] = value
            state.expired_attributes.discard("job_id")
