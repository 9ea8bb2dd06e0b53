"""Pausing queues: workers finish what they run, and claim no more jobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, delete, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, require_aware, utcnow
from ..database.dialects import Database, database_of
from ..lifecycle.outcomes import storable
from ..models.defaults import PausedQueue
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import PausedQueueMixin
from ..models.requirements import TableUse, explained
from ..producer.sessions import immediate_session
from ..producer.values import require_name
from ..wakeup.channels import NOTIFY, channel_of


def pause(
    session: Session | scoped_session[Any],
    queue: str,
    *,
    reason: str | None = None,
    paused_by: str | None = None,
    paused_queue_model: type[PausedQueueMixin] = PausedQueue,
    clock: Clock = utcnow,
) -> bool:
    """Pause a queue in the session's transaction; the caller commits.

    After the commit, workers claim no more jobs of the queue: on PostgreSQL at once, and at the
    latest within a second. Jobs that are running go on, and jobs can still be enqueued. The queue
    stays paused, also for workers that start later, until :func:`resume` is committed.

    Workers of the Clojure library do not know paused queues, and :func:`.process_next_job` ignores
    them.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.pause``.
    :param queue: the name of the queue; it need not have any jobs.
    :param reason: a text for people; None by default.
    :param paused_by: who pauses the queue, a text of 1 to 255 characters; None by default.
    :param paused_queue_model: the mapped class of the table of paused queues. Workers see the pause
        if they have the same ``paused_queue_model``. By default the one of workers of
        :class:`.Job`.
    :param clock: returns the time as an aware datetime.
    :return: True if the queue is paused now; False if it was paused already, and nothing changed.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession, or a name is not a string.
    :raises ValueError: if a name does not have 1 to 255 characters.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "pause", arguments="queue")
    require_name("queue", queue)
    if paused_by is not None:
        require_name("paused_by", paused_by)
    table = job_table(paused_queue_model)
    values = {
        "queue": queue,
        "paused_at": require_aware("clock()", clock()),
        "reason": None if reason is None else storable(reason),
        "paused_by": paused_by,
    }
    bind: dict[str, Any] = {"bind_arguments": bind_arguments(paused_queue_model)}
    engine = unit.get_bind(**bind["bind_arguments"])
    database = database_of(engine.dialect)
    with explained(engine, TableUse(table, ("SELECT", "INSERT"), frozenset(values))):
        paused = _insert(unit, database, table, values, bind)
    if paused:
        _announce(unit, database, table, queue, bind)
    return paused


def resume(
    session: Session | scoped_session[Any],
    queue: str,
    *,
    paused_queue_model: type[PausedQueueMixin] = PausedQueue,
) -> bool:
    """Let workers claim the jobs of a paused queue again, in the session's transaction.

    After the caller's commit, workers claim jobs of the queue: on PostgreSQL at once, and at the
    latest within a second.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.resume``.
    :param queue: the name of the queue.
    :param paused_queue_model: as for :func:`pause`.
    :return: True if the queue was paused; otherwise False.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession, or ``queue`` is not a string.
    :raises ValueError: if ``queue`` does not have 1 to 255 characters.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "resume", arguments="queue")
    require_name("queue", queue)
    table = job_table(paused_queue_model)
    bind: dict[str, Any] = {"bind_arguments": bind_arguments(paused_queue_model)}
    engine = unit.get_bind(**bind["bind_arguments"])
    with explained(engine, TableUse(table, ("SELECT", "DELETE"))):
        done: Any = unit.execute(delete(table).where(table.c.queue == queue), **bind)
    if not done.rowcount:
        return False
    _announce(unit, database_of(engine.dialect), table, queue, bind)
    return True


def _insert(
    session: Session, database: Database, table: Table, values: dict[str, Any], bind: dict[str, Any]
) -> bool:
    """Insert a row; return whether there was none."""
    if database.conflict_insert is None:  # a duplicate key undoes only this statement
        try:
            session.execute(insert(table).values(values), **bind)
        except IntegrityError:
            return False
        return True
    new = database.conflict_insert(table).values(values)
    new = new.on_conflict_do_nothing(index_elements=[table.c.queue]).returning(table.c.queue)
    return session.scalars(new, **bind).one_or_none() is not None


def _announce(
    session: Session, database: Database, table: Table, queue: str, bind: dict[str, Any]
) -> None:
    """Notify the workers that read the table, at the commit."""
    if database.notifies:
        values = {"channel": channel_of(str(table)), "payload": queue}
        session.execute(NOTIFY, values, **bind)
