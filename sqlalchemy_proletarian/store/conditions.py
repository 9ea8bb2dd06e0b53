"""Conditions, columns and statements that all databases share."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Integer,
    Label,
    Select,
    Table,
    Text,
    bindparam,
    case,
    cast,
    false,
    func,
    not_,
    select,
)

from ..database.column_types import MYSQL
from ..models.job_classes import job_table
from ..models.mixins import JobMixin
from ..models.values import PRIORITIES, QUEUED
from .statement_cache import built_once

MAX_ATTEMPTS: Final = 2**31 - 1
"""Attempts are stored as a 32-bit integer."""


def claimed_columns(model: type[JobMixin]) -> list[Label[Any]]:
    """Return what a claim reads of each row, in the order of the fields of a claimed job."""
    return [
        model.job_id.label("job_id"),
        model.job_type.label("job_type"),
        model.payload.label("payload"),
        (model.attempts + 1).label("attempts"),
        model.deaths.label("deaths"),
        model.lease_id.is_not(None).label("expired"),
        model.ended_as.label("ended_as"),
        case((model.unique_while == QUEUED, model.unique_key)).label("queued_key"),
        # Text, which is not parsed unless an event about the job is reported.
        cast(model.headers, Text).label("headers"),
    ]


def is_marked(running: Table | None, job_id: Any) -> ColumnElement[bool]:
    """Return the condition that a job has a running marker."""
    if running is None:
        return false()
    return select(running.c.job_id).where(running.c.job_id == job_id).exists()


@built_once
def claim_again(
    model: type[JobMixin], running: Table | None, of_ids: ColumnElement[bool]
) -> Select[*tuple[Any, ...]]:
    """Lock the rows of ``ids`` that are due at ``now``; the columns are those of a claim."""
    now: BindParameter[Any] = bindparam("now", type_=model.process_at.type)
    statement = (
        select(*claimed_columns(model), is_marked(running, model.job_id))
        .where(of_ids, model.process_at <= now, model.attempts < MAX_ATTEMPTS)
        .with_for_update(skip_locked=True)
    )
    for dialect in MYSQL:  # InnoDB locks every row that it reads
        statement = statement.with_hint(job_table(model), "FORCE INDEX (PRIMARY)", dialect)
    return statement


@built_once
def endings(job: Table, of_ids: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    """Return the errors of the rows of ``ids``, and when they ended."""
    return select(job.c.job_id, job.c.error, job.c.ended_at).where(of_ids)


def unknown_types(
    model: type[JobMixin],
    *,
    now: BindParameter[Any],
    in_queues: ColumnElement[bool],
    is_known: ColumnElement[bool],
) -> Select[*tuple[Any, ...]]:
    """Count due jobs per type that is not known, up to ``most`` jobs.

    Parameters: those of the conditions, ``now`` and ``most``.
    """
    most: BindParameter[int] = bindparam("most", type_=Integer)
    some = (
        select(model.job_type.label("job_type"))
        .where(
            in_queues,
            model.priority.between(PRIORITIES[0], PRIORITIES[-1]),
            model.process_at <= now,
            not_(is_known),
        )
        .limit(most)
        .subquery("some_jobs")
    )
    return select(some.c.job_type, func.count().label("jobs")).group_by(some.c.job_type)
