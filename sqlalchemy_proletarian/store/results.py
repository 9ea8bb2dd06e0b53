"""The SQL that reads how jobs ended, and the results that are kept."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, CompoundSelect, Text, bindparam, cast, null, select
from sqlalchemy import inspect as sa_inspect

from ..models.job_classes import job_table


def select_ends(
    job_model: type[Any], archived_job_model: type[Any]
) -> CompoundSelect[*tuple[Any, ...]]:
    """Return where jobs are: parameter ``ids``.

    One statement reads both tables, so that it finds a job that moves from one to the other.
    ``status`` is None for a job in its queue. ``at`` is when it is due, or when it finished.
    """
    job, archived = job_table(job_model), sa_inspect(archived_job_model).local_table
    ids: BindParameter[Any] = bindparam("ids", expanding=True)
    columns = "job_id", "job_type", "queue", "attempts", "error", "enqueued_at"
    return (
        select(
            *(archived.c[name] for name in columns),
            archived.c.finished_at.label("at"),
            archived.c.status,
            archived.c.result,
        )
        .where(archived.c.job_id.in_(ids))
        .union_all(
            select(
                *(job.c[name] for name in columns),
                job.c.process_at.label("at"),
                cast(null(), Text).label("status"),
                cast(null(), Text).label("result"),
            ).where(job.c.job_id.in_(ids))
        )
    )
