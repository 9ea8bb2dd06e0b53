"""Enqueue many jobs with one INSERT in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from sqlalchemy import Connection, insert
from sqlalchemy.orm import Session, scoped_session

from ..clock import require_aware
from ..database.dialects import features_of
from ..models.defaults import Job
from ..models.job_classes import bind_arguments
from ..models.mixins import JobMixin
from ..models.requirements import explained
from ..telemetry.calls import EnqueueCall
from ..telemetry.enqueues import observed
from ..telemetry.observers import has_observers, observe_inserts
from ..wakeup.announce import announce_on
from .documents import insert_texts
from .facts import facts_of
from .options import JobOptions, only_options
from .rows import NewRows
from .sessions import immediate_session, overrides_get_bind, require_bind


def enqueue_many(
    session: Session | scoped_session[Any] | Connection,
    rows: Iterable[Mapping[str, Any] | tuple[str, Any]],
    *,
    job_model: type[JobMixin] = Job,
    **options: Unpack[JobOptions],
) -> int:
    """Insert many jobs immediately, in the caller's transaction, without committing.

    Nothing is inserted if a row is invalid.

    :param session: a Session, scoped_session or Connection. A session's pending objects are flushed
        first, unless its ``autoflush`` is off. For an AsyncSession or AsyncConnection, use
        :func:`sqlalchemy_proletarian.asyncio.enqueue_many`.
    :param rows: for each job a tuple ``(job_type, payload)``, or a mapping with ``job_type`` and
        any of ``payload``, ``queue``, ``process_at``, ``process_in``, ``priority``, ``headers``
        and the columns that ``job_model`` adds. A mapping may omit ``job_type`` if ``job_model`` is
        the class of one job type.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param options: the keyword arguments described in :class:`.JobOptions`. ``queue``,
        ``process_at``, ``process_in``, ``priority`` and ``headers`` apply to rows without a value
        of their own.
    :return: the number of jobs inserted.
    :raises DatabaseNotReadyError: if the table is missing or does not match the model, the role
        lacks a privilege, or the database is read-only; the message says what to do.
    :raises PayloadError: if a payload cannot be encoded.
    :raises TypeError: if an argument or a row is of the wrong type, or a row names a column that
        the model does not have.
    :raises UnboundSessionError: if the session has no bind for ``job_model``.
    :raises ValueError: as :func:`.enqueue`.

    .. versionadded:: 0.1
    """
    if not has_observers():
        return _enqueue_many(session, rows, job_model, options, None)
    with observed(EnqueueCall(many=True)) as call:
        return _enqueue_many(session, rows, job_model, options, call)


def _enqueue_many(
    session: Session | scoped_session[Any] | Connection,
    rows: Iterable[Mapping[str, Any] | tuple[str, Any]],
    job_model: type[JobMixin],
    options: JobOptions,
    call: EnqueueCall | None,
) -> int:
    """Do what :func:`enqueue_many` does.

    :param call: what observers see of it; None without observers.
    """
    chosen = only_options("enqueue_many", options)
    unit: Session | Connection = (
        session
        if isinstance(session, Connection)
        else immediate_session(session, "enqueue_many", "rows")
    )
    if isinstance(unit, Session):
        require_bind(unit, job_model)
    made = NewRows(job_model, chosen, require_aware("clock()", chosen.clock()), call)
    made.extend(rows)
    if not made:
        return 0
    bind = unit.get_bind(**bind_arguments(job_model)) if isinstance(unit, Session) else unit
    with explained(bind, facts_of(job_model).use):
        connection = _insert(unit, job_model, made)
    observe_inserts(lambda: [(row["job_type"], row["queue"]) for row in made.others])
    if chosen.notify:
        for name in made.queues():
            announce_on(connection, job_model, name)
    if call is not None:
        call.enqueued = made.counts()
    return len(made)


def _insert(unit: Session | Connection, job_model: type[Any], rows: NewRows) -> Connection:
    if isinstance(unit, Connection):
        connection = unit
    else:
        unit._autoflush()
        connection = unit.connection(bind_arguments=bind_arguments(job_model))
    if features_of(connection.dialect).splits_text and insert_texts(connection, job_model, rows):
        return connection
    if isinstance(unit, Session) and not overrides_get_bind(unit):
        unit.execute(insert(job_model), rows.mappings())
    else:
        # For a bulk insert, SQLAlchemy calls get_bind as it does for a read, and horizontally
        # sharded sessions raise an error.
        with Session(connection, join_transaction_mode="rollback_only") as joined:
            joined.execute(insert(job_model), rows.mappings())
    return connection
