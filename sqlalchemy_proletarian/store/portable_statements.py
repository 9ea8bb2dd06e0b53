"""The statements for all databases but PostgreSQL, built once per worker.

PostgreSQL joins lists of values in one statement. Here the rows are first locked and read by id,
and then changed one by one: for a list of ids InnoDB may scan the whole of a small table, and wait
for every row that another session has locked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Delete,
    Insert,
    Integer,
    Select,
    Table,
    Text,
    Update,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)

from ..database.column_types import MYSQL, NAME, DateTimeUTC
from ..models.mixins import JobMixin
from ..models.values import PRIORITIES
from . import conditions
from .archive_columns import carried_values, joined_children, own_defaults
from .conditions import MAX_ATTEMPTS, claimed_columns, is_marked
from .statement_cache import built_once

NOW: BindParameter[Any] = bindparam("now", type_=DateTimeUTC)
SHARED: BindParameter[Any] = bindparam("shared", type_=DateTimeUTC)
UNTIL: BindParameter[Any] = bindparam("until", type_=DateTimeUTC)


@built_once
def first_due(
    model: type[JobMixin], queues: Sequence[str], *, probes: bool
) -> Select[*tuple[Any, ...]] | CompoundSelect[*tuple[Any, ...]]:
    """Return the due time of the first job in each lane, or NULL in a lane without jobs.

    With ``probes``, each lane is an index probe, which takes the same time for any number of jobs.
    Otherwise, for many queues, a GROUP BY finds the lanes: unless the database skips from one lane
    to the next, it reads the index entries of all their jobs.
    The parameter ``queues`` is a list; or each queue is a parameter, see :func:`of_queues`.
    """
    if probes:
        numbers: CompoundSelect[int] = union_all(
            *(select(literal_column(f"{n}").label("n")) for n in PRIORITIES)
        )
        priorities = numbers.cte("priorities")
        return union_all(
            *(_first_due_in(model, name, priorities) for name in of_queues(queues, probes=True))
        )
    return (
        select(model.queue, model.priority, func.min(model.process_at))
        .where(model.queue.in_(bindparam("queues", expanding=True)))
        .group_by(model.queue, model.priority)
    )


def _first_due_in(model: type[JobMixin], queue: str, priorities: CTE) -> Select[*tuple[Any, ...]]:
    named = bindparam(queue, type_=model.queue.type)
    first = (
        select(model.process_at)
        .where(model.queue == named, model.priority == priorities.c.n)
        .order_by(model.process_at)
        .limit(1)
        .scalar_subquery()
    )
    return select(named.label("queue"), priorities.c.n.label("priority"), first.label("first"))


def of_queues(queues: Sequence[str], *, probes: bool) -> dict[str, Any]:
    """Return the parameters of :func:`first_due`."""
    if probes:
        return {f"queue_{n}": queue for n, queue in enumerate(queues)}
    return {"queues": queues}


def is_known(model: type[JobMixin]) -> ColumnElement[bool]:
    """Return the condition that a job's type is in ``known``."""
    return model.job_type.in_(bindparam("known", expanding=True))


def _claimable_in_lane(model: type[JobMixin], *, filtered: bool) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions on the due rows of a lane that the worker may claim."""
    yield model.queue == bindparam("queue")
    yield model.priority == bindparam("priority")
    yield model.process_at <= NOW
    if filtered:
        yield model.process_at >= bindparam("since", type_=DateTimeUTC)
        yield or_(is_known(model), model.ended_as.is_not(None))


@built_once
def first_known(model: type[JobMixin]) -> Select[*tuple[Any, ...]]:
    """Return the due time of a lane's first job of a known type: parameters as for a claim."""
    return select(func.min(model.process_at)).where(*_claimable_in_lane(model, filtered=True))


@built_once
def unknown_types(model: type[JobMixin]) -> Select[*tuple[Any, ...]]:
    """Count due jobs per type that is not in ``known``: also ``queues``, ``now`` and ``most``."""
    in_queues = model.queue.in_(bindparam("queues", expanding=True))
    return conditions.unknown_types(model, now=NOW, in_queues=in_queues, is_known=is_known(model))


@built_once
def claim_lane(
    model: type[JobMixin],
    running: Table | None,
    *,
    leased: bool,
    filtered: bool = False,
    timed: bool,
) -> Select[*tuple[Any, ...]]:
    """Lock due rows of one lane: parameters ``queue``, ``priority``, ``now`` and ``limit``.

    With ``filtered`` also ``known`` and ``since``, with ``leased`` also ``shared``: all as for the
    claim on PostgreSQL. With ``timed``, the last column is ``process_at``. The index returns the
    rows in order. That matters: InnoDB locks every row that it reads, so it must not read the whole
    lane to sort it.
    """
    free = or_(model.lease_id.is_(None), model.process_at <= SHARED) if leased else true()
    times = [model.process_at.label("process_at")] if timed else []
    limit: BindParameter[int] = bindparam("limit", type_=Integer)
    return (
        select(*claimed_columns(model), is_marked(running, model.job_id).label("marked"), *times)
        .where(
            *_claimable_in_lane(model, filtered=filtered),
            free,
            model.attempts < MAX_ATTEMPTS,
        )
        .order_by(model.process_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )


@built_once
def of_ids(job: Table) -> ColumnElement[bool]:
    """Return the condition on the rows of ``ids``."""
    return job.c.job_id.in_(bindparam("ids", expanding=True))


def of_id(job: Table) -> ColumnElement[bool]:
    """Return the condition on the row of ``id``."""
    return job.c.job_id == bindparam("id")


@built_once
def read_held(job: Table) -> Select[*tuple[Any, ...]]:
    """Return the columns that show whether rows are still held: parameter ``ids``."""
    return _by_primary_key(job, job.c.job_id, job.c.attempts, job.c.lease_id)


@built_once
def lock_held(job: Table, *, wait: bool) -> Select[*tuple[Any, ...]]:
    """Lock the rows that :func:`read_held` reads.

    :param wait: wait for rows that others have locked; otherwise skip them.
    """
    return read_held(job).with_for_update(skip_locked=not wait)


def lock_ids(of: Table) -> Select[*tuple[Any, ...]]:
    """Lock the rows of ``ids`` that no other session has locked, and return their ids."""
    return _by_primary_key(of, of.c.job_id).with_for_update(skip_locked=True)


def _by_primary_key(of: Table, *columns: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    wanted = select(*columns).where(of_ids(of))
    for dialect in MYSQL:  # InnoDB locks every row that it reads, also those it filters out
        wanted = wanted.with_hint(of, "FORCE INDEX (PRIMARY)", dialect)
    return wanted


@built_once
def reschedule(job: Table) -> Update:
    """Return one row to its queue.

    Parameters: ``id``, ``at`` (the due time), and the fields of :class:`.Returned` as
    ``new_attempts``, ``new_error`` and so on. An error of None keeps the last one.
    """
    return (
        update(job)
        .where(of_id(job))
        .values(
            attempts=bindparam("new_attempts", type_=Integer),
            process_at=bindparam("at", type_=DateTimeUTC),
            error=func.coalesce(bindparam("new_error", type_=Text), job.c.error),
            deaths=bindparam("new_deaths", type_=Integer),
            lease_id=null(),
            ended_as=bindparam("new_ended_as", type_=NAME),
            ended_at=bindparam("new_ended_at", type_=DateTimeUTC),
            refusal=bindparam("new_refusal", type_=Text),
        )
    )


@built_once
def release(job: Table) -> Update:
    """Undo the lease of one row: parameters ``id`` and ``at``."""
    at = bindparam("at", type_=DateTimeUTC)
    return update(job).where(of_id(job)).values(process_at=at, lease_id=null())


@built_once
def count_deaths(job: Table) -> Update:
    """Write the deaths of one row: parameters ``id`` and ``new_deaths``."""
    return update(job).where(of_id(job)).values(deaths=bindparam("new_deaths", type_=Integer))


@built_once
def lease(job: Table) -> Update:
    """Lease one row: parameters ``id``, ``new_deaths``, ``until`` and ``lease``."""
    lease_id = bindparam("lease", type_=job.c.lease_id.type)
    return count_deaths(job).values(process_at=UNTIL, lease_id=lease_id)


@built_once
def extend(job: Table) -> Update:
    """Extend the lease of one row: parameters ``id`` and ``until``."""
    return update(job).where(of_id(job)).values(process_at=UNTIL)


@built_once
def delete_one(job: Table) -> Delete:
    """Delete one row: parameter ``id``."""
    return delete(job).where(of_id(job))


@built_once
def archive_successes(job: Table, archived: Table, children: Sequence[Table] = ()) -> Insert:
    """Copy locked rows to the archive unchanged: parameters ``ids``, ``status`` and ``now``.

    :param children: the tables of subclasses of the job model; their columns are archived, too.
    """
    return _archive(job, archived, children, of_ids(job), {"attempts": job.c.attempts + 1})


@built_once
def archive_one(
    job: Table, archived: Table, children: Sequence[Table] = (), *, results: bool = False
) -> Insert:
    """Copy one row to the archive.

    Parameters: ``id``, ``new_attempts``, ``at``, ``new_error``, ``status`` and ``now``. A time or
    an error of None keeps that of the row.

    :param results: also take ``new_result``, the text of a result or None.
    """
    changed: dict[str, Any] = {
        "attempts": bindparam("new_attempts", type_=Integer),
        "process_at": func.coalesce(bindparam("at", type_=DateTimeUTC), job.c.process_at),
        "error": func.coalesce(bindparam("new_error", type_=Text), job.c.error),
    }
    if results:
        changed["result"] = bindparam("new_result", type_=Text)
    return _archive(job, archived, children, of_id(job), changed)


def _archive(
    job: Table,
    archived: Table,
    children: Sequence[Table],
    which: ColumnElement[bool],
    changed: dict[str, Any],
) -> Insert:
    carried = carried_values(job, archived, changed)
    source, joined = joined_children(job, job.c.job_id, job, archived, children)
    own = own_defaults(archived, [*carried, *joined]) | joined
    return insert(archived).from_select(
        [*carried, "status", "finished_at", *own],
        select(*carried.values(), bindparam("status", type_=NAME), NOW, *own.values())
        .select_from(source)
        .where(which),
        include_defaults=False,
    )
