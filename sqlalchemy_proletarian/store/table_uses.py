"""What a worker's statements do with its tables."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Table

from ..models.mixins import RunningJobMixin
from ..models.requirements import TableUse
from .archive_columns import archived_columns


def table_uses(
    job: Table,
    archived: Table,
    running: Table | None,
    children: Sequence[Table],
    paused: Table | None = None,
    *,
    prunes: bool = False,
) -> tuple[TableUse, ...]:
    """Return the uses of the tables of one worker.

    :param children: the tables of subclasses of the job model.
    """
    pruning = ("UPDATE", "DELETE") if prunes else ()
    uses = (
        TableUse(job, ("SELECT", "UPDATE", "DELETE")),
        TableUse(
            archived, ("SELECT", "INSERT", *pruning), archived_columns(job, archived, children)
        ),
        *(TableUse(child, ("SELECT",)) for child in children),
        *(TableUse(table, ("SELECT",)) for table in (paused,) if table is not None),
    )
    if running is None:
        return uses
    privileges = ("SELECT", "INSERT", "UPDATE", "DELETE")
    return (*uses, TableUse(running, privileges, frozenset(RunningJobMixin.__annotations__)))
