"""The statements with which PostgreSQL writes what becomes of jobs, built once per worker.

Each statement takes any number of jobs, as arrays; see :mod:`..database.arrays`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    DateTime,
    Integer,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.sql.dml import Delete, Insert, ReturningInsert, ReturningUpdate, Update
from sqlalchemy.sql.selectable import TableValuedAlias

from ..database.arrays import array, arrays
from .archive_columns import carried_values, joined_children, own_defaults
from .postgresql_claim import NOW
from .statement_cache import built_once

UNTIL: BindParameter[Any] = bindparam("until", type_=DateTime(timezone=True))


@built_once
def of_ids(of: Table) -> ColumnElement[bool]:
    """Return the condition on the rows of ``ids``."""
    return of.c.job_id == func.any(array("ids", of.c.job_id.type))


@built_once
def archive_successes(
    job: Table, archived: Table, running: Table | None, children: Sequence[Table] = ()
) -> Insert:
    """Move locked rows to the archive unchanged: parameters ``ids``, ``status`` and ``now``.

    Their running markers are deleted in the same round trip.

    :param children: the tables of subclasses of the job model; their columns are archived, too.
    """
    moved = delete(job).where(of_ids(job))
    status = bindparam("status", type_=Text)
    archive = _archive(job, archived, children, moved, status, attempts=job.c.attempts + 1)
    archive = archive.execution_options(preserve_rowcount=True)
    return archive if running is None else archive.add_cte(remove_markers(running).cte("unmarked"))


@built_once
def archive_all(archive: Insert, archived: Table) -> Select[*tuple[Any, ...]]:
    """Archive rows as :func:`archive_successes`, and divide by zero if one does not exist any more.

    :param archive: what :func:`archive_successes` returned.
    """
    moved = archive.returning(archived.c.job_id).cte("archived")
    is_complete = func.count() == func.cardinality(array("ids", archived.c.job_id.type))
    return select(literal(1) // case((is_complete, 1), else_=0)).select_from(moved)


@built_once
def remove_markers(running: Table) -> Delete:
    """Delete the running markers of jobs: parameter ``ids``."""
    return delete(running).where(of_ids(running))


@built_once
def archive_each(
    job: Table,
    archived: Table,
    children: Sequence[Table] = (),
    *,
    leased: bool,
    wait: bool = True,
    results: bool = False,
) -> ReturningInsert[Any]:
    """Move held rows to the archive, and return the ids of the rows that were still held.

    Parameters: those of :func:`held`, and ``attempts``, ``times``, ``statuses``, ``errors`` and
    ``now``. A time of None keeps ``process_at``.

    :param children: as for :func:`archive_successes`.
    :param leased: as for :func:`held`.
    :param wait: wait for rows that others have locked; otherwise skip them.
    :param results: also take ``results``, the texts of results, or None.
    """
    kept: dict[str, tuple[str, Any]] = {"result": ("results", Text())} if results else {}
    given = held(
        job,
        leased=leased,
        attempts=("attempts", Integer()),
        process_at=("times", DateTime(timezone=True)),
        status=("statuses", Text()),
        error=("errors", Text()),
        **kept,
    )
    return _archive(
        job,
        archived,
        children,
        delete(job).where(_is_settleable(job, given, wait=wait)),
        given.c.status,
        attempts=given.c.attempts,
        error=func.coalesce(given.c.error, job.c.error),
        process_at=func.coalesce(given.c.process_at, job.c.process_at),
        **{name: given.c[name] for name in kept},
    ).returning(archived.c.job_id)


def _archive(
    job: Table, archived: Table, children: Sequence[Table], moved: Any, status: Any, **changed: Any
) -> Insert:
    values = carried_values(job, archived, changed)
    carried = {name: value.label(name) for name, value in values.items()}
    rows = moved.returning(*carried.values(), status.label("status")).cte("done")
    # The rows of child tables are deleted by their foreign keys when the statement ends.
    source, joined = joined_children(rows, rows.c.job_id, job, archived, children)
    own = own_defaults(archived, [*carried, *joined]) | joined
    # include_defaults would bind NULL for the defaults that Python makes.
    return insert(archived).from_select(
        [*carried, "status", "finished_at", *own],
        select(*(rows.c[name] for name in carried), rows.c.status, NOW, *own.values()).select_from(
            source
        ),
        include_defaults=False,
    )


@built_once
def reschedule(job: Table, *, leased: bool, wait: bool = True) -> ReturningUpdate[Any]:
    """Return held rows to their queue, and return the ids of the rows that were still held.

    Parameters: those of :func:`held`, and ``attempts``, ``times``, ``errors``, ``deaths``,
    ``endings``, ``ended`` and ``refusals``, the fields of :class:`.Returned`.

    :param leased: as for :func:`held`.
    :param wait: as for :func:`archive_each`.
    """
    given = held(
        job,
        leased=leased,
        attempts=("attempts", Integer()),
        process_at=("times", DateTime(timezone=True)),
        error=("errors", Text()),
        deaths=("deaths", Integer()),
        ended_as=("endings", Text()),
        ended_at=("ended", DateTime(timezone=True)),
        refusal=("refusals", Text()),
    )
    return (
        update(job)
        .where(_is_settleable(job, given, wait=wait))
        .values(
            process_at=given.c.process_at,
            attempts=given.c.attempts,
            error=func.coalesce(given.c.error, job.c.error),
            deaths=given.c.deaths,
            lease_id=null(),
            ended_as=given.c.ended_as,
            ended_at=given.c.ended_at,
            refusal=given.c.refusal,
        )
        .returning(job.c.job_id)
    )


@built_once
def count_deaths(job: Table) -> Update:
    """Write the deaths of locked rows: parameters ``ids`` and ``deaths``."""
    given = arrays("given", job_id=("ids", job.c.job_id.type), deaths=("deaths", Integer()))
    return update(job).where(job.c.job_id == given.c.job_id).values(deaths=given.c.deaths)


@built_once
def lease(job: Table) -> Update:
    """Lease locked rows: parameters ``ids``, ``deaths``, ``until`` and ``lease``."""
    lease_id: BindParameter[Any] = bindparam("lease", type_=job.c.lease_id.type)
    return count_deaths(job).values(process_at=UNTIL, lease_id=lease_id)


@built_once
def extend(job: Table) -> ReturningUpdate[Any, Any]:
    """Extend leases, and return the ids of the jobs and their leases.

    Parameters: those of :func:`held`, and ``until``. Locked rows are skipped: a session is settling
    them, or their handler has written to them. A row that is only locked by a foreign key that
    refers to it is extended.
    """
    unlocked = _unlocked(job, held(job, leased=True), key_share=True)
    return (
        update(job)
        .where(job.c.job_id == unlocked.c.job_id)
        .values(process_at=UNTIL)
        .returning(job.c.job_id, job.c.lease_id)
    )


@built_once
def release(job: Table) -> Update:
    """Undo leases: parameters as for :func:`held`, and ``times``."""
    given = held(job, leased=True, process_at=("times", DateTime(timezone=True)))
    return (
        update(job)
        .where(_is_settleable(job, given, wait=False))
        .values(process_at=given.c.process_at, lease_id=null())
    )


@built_once
def still_held(job: Table) -> Select[*tuple[Any, ...]]:
    """Return the ids and leases of held rows, locked or not: parameters as for :func:`held`."""
    given = held(job, leased=True)
    return select(job.c.job_id, job.c.lease_id).join(given, _is_held(job, given))


def held(job: Table, *, leased: bool, **columns: tuple[str, Any]) -> TableValuedAlias:
    """Return the jobs that a worker holds, as a table.

    Parameters: ``ids``, and ``held``, the attempts that the rows count.

    :param leased: also take ``leases``, the leases of the jobs. None there stands for a row that
        the transaction has locked.
    :param columns: further parameters, as for :func:`.arrays`.
    """
    ids = {"job_id": ("ids", job.c.job_id.type), "held": ("held", Integer())}
    leases = {"lease_id": ("leases", job.c.lease_id.type)} if leased else {}
    return arrays("given", **ids, **leases, **columns)


def _is_held(job: Table, given: Any) -> ColumnElement[bool]:
    # A Clojure worker knows no leases, but it counts the attempt.
    mine = and_(job.c.job_id == given.c.job_id, job.c.attempts == given.c.held)
    if "lease_id" not in given.c:
        return mine
    return and_(mine, or_(given.c.lease_id.is_(None), job.c.lease_id == given.c.lease_id))


def _is_settleable(job: Table, given: Any, *, wait: bool) -> ColumnElement[bool]:
    mine = _is_held(job, given)
    return mine if wait else and_(mine, job.c.job_id.in_(select(_unlocked(job, given).c.job_id)))


def _unlocked(job: Table, given: Any, *, key_share: bool = False) -> CTE:
    """Lock the held rows that no other session has locked, without waiting."""
    # MATERIALIZED: the planner may run a subquery with SKIP LOCKED more than once.
    return (
        select(job.c.job_id)
        .join(given, _is_held(job, given))
        .with_for_update(skip_locked=True, key_share=key_share, of=job)
        .cte("free")
        .prefix_with("MATERIALIZED")
    )
