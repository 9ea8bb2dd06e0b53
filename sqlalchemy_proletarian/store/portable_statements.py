"""The statements of the portable store: what every database understands, built once per worker.

Where PostgreSQL joins lists of values in one statement, these first lock and read what is meant, by
id, and then change those rows one by one: for a list of ids InnoDB may read the whole of a small
table, and wait for every row that somebody else has locked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
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
    not_,
    null,
    or_,
    select,
    true,
    update,
)

from ..database.column_types import MYSQL, NAME, DateTimeUTC
from ..models.mixins import PRIORITIES, JobMixin
from .postgresql_statements import (
    MOST_ATTEMPTS,
    carried_values,
    claimed_columns,
    is_marked,
    joined_children,
    own_defaults,
)

NOW: BindParameter[Any] = bindparam("now", type_=DateTimeUTC)
SHARED: BindParameter[Any] = bindparam("shared", type_=DateTimeUTC)
UNTIL: BindParameter[Any] = bindparam("until", type_=DateTimeUTC)


def lanes(model: type[JobMixin]) -> Select[*tuple[Any, ...]]:
    """Return when the first job of each lane is due: parameter ``queues``."""
    return (
        select(model.queue, model.priority, func.min(model.process_at))
        .where(model.queue.in_(bindparam("queues", expanding=True)))
        .group_by(model.queue, model.priority)
    )


def is_known(model: type[JobMixin]) -> ColumnElement[bool]:
    """Return the condition on jobs of the types in ``known``."""
    return model.job_type.in_(bindparam("known", expanding=True))


def _known_in_lane(model: type[JobMixin], *, filtered: bool) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions on the due rows of a lane that a worker may claim."""
    yield model.queue == bindparam("queue")
    yield model.priority == bindparam("priority")
    yield model.process_at <= NOW
    if filtered:
        yield model.process_at >= bindparam("since", type_=DateTimeUTC)
        yield or_(is_known(model), model.ended_as.is_not(None))


def first_known(model: type[JobMixin]) -> Select[*tuple[Any, ...]]:
    """Return when the first job of a known type in a lane was due: parameters as for a claim."""
    return select(func.min(model.process_at)).where(*_known_in_lane(model, filtered=True))


def unknown_types(model: type[JobMixin]) -> Select[*tuple[Any, ...]]:
    """Return the types of due jobs that are not in ``known``, and how many, up to ``most``."""
    most: BindParameter[int] = bindparam("most", type_=Integer)
    some = (
        select(model.job_type.label("job_type"))
        .where(
            model.queue.in_(bindparam("queues", expanding=True)),
            model.priority.between(PRIORITIES[0], PRIORITIES[-1]),
            model.process_at <= NOW,
            not_(is_known(model)),
        )
        .limit(most)
        .subquery("some_jobs")
    )
    return select(some.c.job_type, func.count().label("jobs")).group_by(some.c.job_type)


def claim_lane(
    model: type[JobMixin], running: Table | None, *, leased: bool, filtered: bool = False
) -> Select[*tuple[Any, ...]]:
    """Lock due rows of one lane: parameters ``queue``, ``priority``, ``now`` and ``limit``.

    With ``filtered`` only jobs of the types in ``known`` that were due at ``since``, or later.

    The index gives them in order: InnoDB locks all that it reads, so it must not have to sort.
    Where rows are leased, ``shared`` is as for PostgreSQL, and so is ``marked``.
    """
    free = or_(model.lease_id.is_(None), model.process_at <= SHARED) if leased else true()
    times = [model.process_at.label("process_at")] if leased else []
    limit: BindParameter[int] = bindparam("limit", type_=Integer)
    return (
        select(*claimed_columns(model), is_marked(running, model.job_id).label("marked"), *times)
        .where(
            *_known_in_lane(model, filtered=filtered),
            free,
            model.attempts < MOST_ATTEMPTS,
        )
        .order_by(model.process_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )


def of_ids(job: Table) -> ColumnElement[bool]:
    """Return the condition on the rows of ``ids``."""
    return job.c.job_id.in_(bindparam("ids", expanding=True))


def of_id(job: Table) -> ColumnElement[bool]:
    """Return the condition on the row of ``id``."""
    return job.c.job_id == bindparam("id")


def look(job: Table) -> Select[*tuple[Any, ...]]:
    """Return what tells whether rows are held: parameter ``ids``."""
    return look_at(job, job.c.job_id, job.c.attempts, job.c.lease_id)


def look_at(of: Table, *columns: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    """Return columns of rows, which may be locked, and no others with them: parameter ``ids``."""
    wanted = select(*columns).where(of_ids(of))
    for dialect in MYSQL:  # else it may lock what it reads and leaves out
        wanted = wanted.with_hint(of, "FORCE INDEX (PRIMARY)", dialect)
    return wanted


def change(job: Table) -> Update:
    """Put one row back: parameters ``id``, ``at``, ``said`` and what :class:`.Returned` has.

    An error of None leaves the last one.
    """
    return (
        update(job)
        .where(of_id(job))
        .values(
            attempts=bindparam("counted", type_=Integer),
            process_at=bindparam("at", type_=DateTimeUTC),
            error=func.coalesce(bindparam("said", type_=Text), job.c.error),
            deaths=bindparam("died", type_=Integer),
            lease_id=null(),
            ended_as=bindparam("ending", type_=NAME),
            ended_at=bindparam("ended", type_=DateTimeUTC),
            refusal=bindparam("refused", type_=Text),
        )
    )


def give_back(job: Table) -> Update:
    """Undo the lease of one row: parameters ``id`` and ``at``."""
    at = bindparam("at", type_=DateTimeUTC)
    return update(job).where(of_id(job)).values(process_at=at, lease_id=null())


def count_deaths(job: Table) -> Update:
    """Write the deaths of one row: parameters ``id`` and ``died``."""
    return update(job).where(of_id(job)).values(deaths=bindparam("died", type_=Integer))


def hold(job: Table) -> Update:
    """Lease one row: parameters ``id``, ``died``, ``until`` and ``lease``."""
    lease_id = bindparam("lease", type_=job.c.lease_id.type)
    return count_deaths(job).values(process_at=UNTIL, lease_id=lease_id)


def extend(job: Table) -> Update:
    """Extend the lease of one row: parameters ``id`` and ``until``."""
    return update(job).where(of_id(job)).values(process_at=UNTIL)


def remove(job: Table) -> Delete:
    """Remove one row: parameter ``id``."""
    return delete(job).where(of_id(job))


def archive_successes(job: Table, archived: Table, children: Sequence[Table] = ()) -> Insert:
    """Copy rows to the archive as they are: parameters ``ids``, ``status`` and ``now``.

    :param children: tables joined to that of the jobs, whose columns are carried too.
    """
    return _archive(job, archived, children, of_ids(job), {"attempts": job.c.attempts + 1})


def archive_one(job: Table, archived: Table, children: Sequence[Table] = ()) -> Insert:
    """Copy one row: parameters ``id``, ``counted``, ``at``, ``said``, ``status`` and ``now``.

    A time or an error of None leaves that of the row.
    """
    changed = {
        "attempts": bindparam("counted", type_=Integer),
        "process_at": func.coalesce(bindparam("at", type_=DateTimeUTC), job.c.process_at),
        "error": func.coalesce(bindparam("said", type_=Text), job.c.error),
    }
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
