"""The SQL that locks one job for a function of the application, such as :func:`.cancel`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Table, select
from sqlalchemy.orm import Session

from ..database.dialects import database_of

_PAUSES = (0.02, 0.05, 0.1)
"""Seconds between attempts to lock a row. A worker that claims a job or extends its lease holds the
lock for less than the sum of these pauses; a worker's transaction holds it for longer."""


def lock_job(
    session: Session, job: Table, job_id: Any, options: dict[str, Any]
) -> tuple[Row[Any, Any] | None, bool]:
    """Lock a job in a session's transaction, unless another transaction holds it.

    :param options: of ``session.execute``, with the bind arguments.
    :return: the row, or None if it could not be locked, and whether the row exists.
    """
    wanted = select(job.c.attempts, job.c.lease_id).where(job.c.job_id == job_id)
    sleep = database_of(session.get_bind(**options["bind_arguments"]).dialect).sleep
    for pause in (*_PAUSES, None):
        row = session.execute(wanted.with_for_update(skip_locked=True), **options).one_or_none()
        if row is not None:
            return row, True
        if session.execute(wanted, **options).one_or_none() is None:
            return None, False
        if pause is not None:  # sleeping in the server does not block an event loop
            session.scalar(select(sleep(pause)), **options)
    return None, True
