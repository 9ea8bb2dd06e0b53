"""The SQL that locks rows for a function of the application, such as :func:`.cancel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, select
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, lazyload

from ..database.column_types import MYSQL
from ..database.dialects import database_of
from ..models.mixins import ArchivedJobMixin

PAUSES = (0.02, 0.05, 0.1)
"""Seconds between attempts to lock a row. A worker that claims a job or extends its lease holds the
lock for less than the sum of these pauses; a worker's transaction holds it for longer."""


def lock_job(
    session: Session, job: Table, job_id: Any, options: dict[str, Any]
) -> tuple[Row[*tuple[Any, ...]] | None, bool]:
    """Lock a job in a session's transaction, unless another transaction holds it.

    :param options: of ``session.execute``, with the bind arguments.
    :return: the row, or None if it could not be locked, and whether the row exists.
    """
    columns = job.c.attempts, job.c.lease_id, job.c.queue, job.c.process_at, job.c.due_at
    wanted = select(*columns).where(job.c.job_id == job_id)
    sleep = database_of(session.get_bind(**options["bind_arguments"]).dialect).sleep
    for pause in (*PAUSES, None):
        row = session.execute(wanted.with_for_update(skip_locked=True), **options).one_or_none()
        if row is not None:
            return row, True
        if session.execute(wanted, **options).one_or_none() is None:
            return None, False
        if pause is not None:  # sleeping in the server does not block an event loop
            session.scalar(select(sleep(pause)), **options)
    return None, True


def lock_archived(
    session: Session,
    model: type[ArchivedJobMixin],
    ids: Sequence[Any],
    criteria: Sequence[ColumnElement[bool]],
) -> list[Any]:
    """Lock archived jobs of these ids that were not retried, except those that others have locked.

    :param criteria: further conditions on the rows.
    :return: the mapped objects.
    """
    wanted = (
        select(model)
        .where(model.job_id.in_(ids), model.retried_at.is_(None), *criteria)
        .options(lazyload("*"))
        .with_for_update(skip_locked=True)
    )
    for dialect in MYSQL:  # InnoDB locks every row that it reads, also those it filters out
        wanted = wanted.with_hint(sa_inspect(model).local_table, "FORCE INDEX (PRIMARY)", dialect)
    return list(session.scalars(wanted))
