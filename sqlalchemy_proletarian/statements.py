"""The statements of the store, built once per worker from the mapped classes.

Lists of values travel as arrays (:func:`arrays`), one parameter a column: the text of a statement
is then the same for any number of rows: SQLAlchemy compiles it once, the server plans it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BindParameter,
    ClauseElement,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Executable,
    FromClause,
    Integer,
    Select,
    SmallInteger,
    Table,
    Text,
    and_,
    bindparam,
    cast,
    column,
    delete,
    false,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import Delete, Insert, ReturningInsert, ReturningUpdate, Update
from sqlalchemy.sql.selectable import TableValuedAlias

from .job_classes import key_of
from .models import JobMixin
from .refusals import has_ended

NOW: BindParameter[Any] = bindparam("now", type_=DateTime(timezone=True))
SHARED: BindParameter[Any] = bindparam("shared", type_=DateTime(timezone=True))
UNTIL: BindParameter[Any] = bindparam("until", type_=DateTime(timezone=True))

# What people write by hand may be beyond what Python and the columns can take.
_LONG_AGO = literal(datetime(1970, 1, 1, tzinfo=UTC), DateTime(timezone=True))
_FAR_OFF = literal(datetime(9000, 1, 1, tzinfo=UTC), DateTime(timezone=True))
MOST_ATTEMPTS = 2**31 - 1


def array(parameter: str, type_: Any) -> ColumnElement[Any]:
    """Return a parameter that is an array; psycopg2 says of none what it is an array of."""
    return cast(bindparam(parameter, type_=ARRAY(type_)), ARRAY(type_))


def of_ids(of: Table) -> ColumnElement[bool]:
    """Return the condition on the rows of ``ids``."""
    return of.c.job_id == func.any(array("ids", of.c.job_id.type))


def compile_all(parts: Iterable[Any], dialect: Dialect) -> None:
    """Compile the statements among the parts of a store, in the thread of the caller.

    What SQLAlchemy finds out about a statement it keeps in the statement. CPython 3.11 has crashed
    where several threads did so at the same time, as handlers do that complete together.
    """
    for part in parts:
        for statement in part.values() if isinstance(part, dict) else (part,):
            if isinstance(statement, Executable) and isinstance(statement, ClauseElement):
                statement.compile(dialect=dialect)


def arrays(name: str, **columns: tuple[str, Any]) -> TableValuedAlias:
    """Return array parameters as a table: ``column_name=(parameter, type)``."""
    parameters = [array(parameter, type_) for parameter, type_ in columns.values()]
    named = [column(title, type_) for title, (_, type_) in columns.items()]
    return func.unnest(*parameters).table_valued(*named, name=name).render_derived()


def _lanes() -> TableValuedAlias:
    """Queues and priorities, the most urgent first."""
    return arrays("lane", queue=("queues", Text()), priority=("priorities", SmallInteger()))


def _in_lane(
    model: type[JobMixin], lanes: TableValuedAlias
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return model.queue == lanes.c.queue, model.priority == lanes.c.priority


def claim(
    model: type[JobMixin], running: Table | None, *, leased: bool
) -> Select[*tuple[Any, ...]]:
    """Lock due rows: parameters ``queues``, ``priorities``, ``now`` and ``limit``.

    ``marked`` tells whether the row has a running marker, whose writer then is gone. Where the rows
    will be leased, which moves their ``process_at``, that is read too; and rows that may be leased
    must be due by ``shared`` as well, the time on which all workers agree.

    One index probe per lane, stopped by the outer LIMIT: rows of later lanes are neither read nor
    locked. ORDER BY priority, process_at over all of them would read the whole backlog, jobs
    scheduled for the future included.
    """
    lanes = _lanes()
    limit: BindParameter[int] = bindparam("limit", type_=Integer)
    read: list[Any] = [model.job_id, model.job_type, model.payload, model.attempts]
    read.append(has_ended(model.error).label("has_ended"))
    if leased:
        read.append(func.greatest(model.process_at, _LONG_AGO).label("process_at"))
    # Who leases a job counts an attempt.
    free = or_(model.attempts == 0, model.process_at <= SHARED) if leased else true()
    can_be_counted = model.attempts < MOST_ATTEMPTS
    due = (
        select(*read)
        .where(*_in_lane(model, lanes), model.process_at <= NOW, free, can_be_counted)
        .order_by(model.process_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .lateral("due")
    )
    claimed = select(due, is_marked(running, due.c.job_id).label("marked"))
    return claimed.select_from(lanes.join(due, true())).limit(limit)


def is_marked(running: Table | None, job_id: Any) -> ColumnElement[bool]:
    """Tell whether a job has a running marker."""
    if running is None:
        return false()
    return select(running.c.job_id).where(running.c.job_id == job_id).exists()


def next_due(model: type[JobMixin]) -> Select[*tuple[Any, ...]]:
    """Tell whether due rows exist and when the next one comes due; parameters as :func:`claim`."""
    lanes = _lanes()

    def first(name: str, condition: ColumnElement[bool]) -> Any:
        return (
            select(model.process_at)
            .where(*_in_lane(model, lanes), condition)
            .order_by(model.process_at)
            .limit(1)
            .lateral(name)
        )

    due = first("due", model.process_at <= NOW)
    future = first("future", and_(model.process_at > NOW, model.process_at < _FAR_OFF))
    return select(func.count(due.c.process_at) > 0, func.min(future.c.process_at)).select_from(
        lanes.outerjoin(due, true()).outerjoin(future, true())
    )


def archive_successes(
    job: Table, archived: Table, running: Table | None, children: Sequence[Table] = ()
) -> Insert:
    """Move rows to the archive as they are: parameters ``ids``, ``status`` and ``now``.

    Their running markers go in the same round trip.

    :param children: tables joined to that of the jobs, whose columns are carried too.
    """
    done = delete(job).where(of_ids(job))
    status = bindparam("status", type_=Text)
    archive = _archive(job, archived, children, done, status, attempts=job.c.attempts + 1)
    archive = archive.execution_options(preserve_rowcount=True)  # to be compared with the ids
    return archive if running is None else archive.add_cte(remove_markers(running).cte("unmarked"))


def remove_markers(running: Table) -> Delete:
    """Remove the running markers of jobs: parameter ``ids``."""
    return delete(running).where(of_ids(running))


def held(job: Table) -> TableValuedAlias:
    """Jobs that a worker holds: ``ids``, and in ``held`` the attempts that their rows count."""
    return arrays("given", job_id=("ids", job.c.job_id.type), held=("held", Integer()))


def _is_held(job: Table, given: Any) -> ColumnElement[bool]:
    # A lease that was lost was taken by somebody else, who has counted an attempt.
    return and_(job.c.job_id == given.c.job_id, job.c.attempts == given.c.held)


def _free(job: Table, given: Any, *, key_share: bool = False) -> CTE:
    """Lock those held rows that nobody else has locked, without waiting for anybody."""
    # Materialised, because the planner may run a subquery with SKIP LOCKED more than once.
    return (
        select(job.c.job_id)
        .join(given, _is_held(job, given))
        .with_for_update(skip_locked=True, key_share=key_share, of=job)
        .cte("free")
        .prefix_with("MATERIALIZED")
    )


def _to_settle(job: Table, given: Any, *, wait: bool) -> ColumnElement[bool]:
    mine = _is_held(job, given)
    return mine if wait else and_(mine, job.c.job_id.in_(select(_free(job, given).c.job_id)))


def archive_each(
    job: Table, archived: Table, children: Sequence[Table] = (), *, wait: bool = True
) -> ReturningInsert[Any]:
    """Move held rows to the archive, and return the ids of those that were still held.

    Parameters as :func:`held`, and ``attempts``, ``times``, ``statuses``, ``errors``, ``now``; a
    time of None leaves ``process_at`` as it is.

    :param children: as for :func:`archive_successes`.
    :param wait: for whoever has locked a row; otherwise it is left out.
    """
    given = arrays(
        "given",
        job_id=("ids", job.c.job_id.type),
        held=("held", Integer()),
        attempts=("attempts", Integer()),
        process_at=("times", DateTime(timezone=True)),
        status=("statuses", Text()),
        error=("errors", Text()),
    )
    return _archive(
        job,
        archived,
        children,
        delete(job).where(_to_settle(job, given, wait=wait)),
        given.c.status,
        attempts=given.c.attempts,
        error=func.coalesce(given.c.error, job.c.error),
        process_at=func.coalesce(given.c.process_at, job.c.process_at),
    ).returning(archived.c.job_id)


def archived_columns(job: Table, archived: Table, children: Sequence[Table] = ()) -> frozenset[str]:
    """Return the columns that get a value when a row moves to the archive."""
    given = {
        c.name
        for c in archived.c
        if c.computed is None and (c.name in job.c or c.default is not None)
    }
    return frozenset(
        given | _of_children(job, archived, children).keys() | {"status", "finished_at"}
    )


def _of_children(
    job: Table, archived: Table, children: Sequence[Table]
) -> dict[str, list[Column[Any]]]:
    """Return the columns of the archive that children have, and the job table has not."""
    return {
        c.name: found
        for c in archived.c
        if c.name not in job.c
        and c.computed is None
        and (found := [t.c[c.name] for t in children if c.name in t.c])
    }


def joined_children(
    source: FromClause, job_id: Any, job: Table, archived: Table, children: Sequence[Table]
) -> tuple[FromClause, dict[str, ColumnElement[Any]]]:
    """Join the children that have columns of the archive; return the join, and those columns.

    :param job_id: the column of ``source`` that is the job's id.
    """
    columns = _of_children(job, archived, children)
    for child in dict.fromkeys(c.table for found in columns.values() for c in found):
        source = source.outerjoin(child, key_of(child) == job_id)
    # With a NULL more, because SQLite's coalesce takes two values at least.
    return source, {name: func.coalesce(*found, null()) for name, found in columns.items()}


def _archive(
    job: Table, archived: Table, children: Sequence[Table], done: Any, status: Any, **changed: Any
) -> Insert:
    values = carried_values(job, archived, changed)
    carried = {name: value.label(name) for name, value in values.items()}
    moved = done.returning(*carried.values(), status.label("status")).cte("done")
    # The rows of children are gone with their job's when the statement ends, and not before.
    source, joined = joined_children(moved, moved.c.job_id, job, archived, children)
    own = own_defaults(archived, [*carried, *joined]) | joined
    # from_select would bind NULL for the defaults that are made in Python.
    return insert(archived).from_select(
        [*carried, "status", "finished_at", *own],
        select(
            *(moved.c[name] for name in carried), moved.c.status, NOW, *own.values()
        ).select_from(source),
        include_defaults=False,
    )


def carried_values(
    job: Table, archived: Table, changed: dict[str, ColumnElement[Any]]
) -> dict[str, ColumnElement[Any]]:
    """Return what a row brings to the archive, by column: the same, but for what is changed."""
    carried: dict[str, ColumnElement[Any]] = {
        c.name: c for c in job.c if c.name in archived.c and archived.c[c.name].computed is None
    }
    carried |= changed
    # An empty error is one of which nothing was to be kept.
    carried["error"] = func.nullif(carried["error"], "")
    return carried


def own_defaults(archived: Table, carried: Iterable[str]) -> dict[str, ColumnElement[Any]]:
    """Return the values of columns that have a default, and that no row brings with it."""
    return {
        c.name: _default(c)
        for c in archived.c
        if c.default is not None and c.name not in (*carried, "finished_at")
    }


def _default(of: Column[Any]) -> ColumnElement[Any]:
    default: Any = of.default
    if default.is_callable:
        return bindparam(f"default_{of.name}", callable_=lambda: default.arg(None), type_=of.type)
    if default.is_scalar:
        return literal(default.arg, of.type)
    expression: ColumnElement[Any] = (
        default.arg if default.is_clause_element else default.next_value()
    )
    return expression


def reschedule(job: Table, *, wait: bool = True) -> ReturningUpdate[Any]:
    """Put held rows back, and return the ids of those that were still held.

    Parameters as :func:`held`, and ``attempts``, ``times`` and ``errors``; ``wait`` as for
    :func:`archive_each`.
    """
    given = arrays(
        "given",
        job_id=("ids", job.c.job_id.type),
        held=("held", Integer()),
        attempts=("attempts", Integer()),
        process_at=("times", DateTime(timezone=True)),
        error=("errors", Text()),
    )
    return (
        update(job)
        .where(_to_settle(job, given, wait=wait))
        .values(
            process_at=given.c.process_at,
            attempts=given.c.attempts,
            error=func.coalesce(given.c.error, job.c.error),
        )
        .returning(job.c.job_id)
    )


def lease(job: Table) -> Update:
    """Take rows that are locked: parameters ``ids``, ``attempts`` and ``until``."""
    given = arrays("given", job_id=("ids", job.c.job_id.type), attempts=("attempts", Integer()))
    return (
        update(job)
        .where(job.c.job_id == given.c.job_id)
        .values(process_at=UNTIL, attempts=given.c.attempts)
    )


def extend(job: Table) -> ReturningUpdate[Any]:
    """Hold rows longer, and return their ids: parameters as :func:`held`, and ``until``.

    A row that is locked is left out: it is being settled, or its handler has written to it. One
    that is only referred to, by a foreign key, is not.
    """
    free = _free(job, held(job), key_share=True)
    return (
        update(job)
        .where(job.c.job_id == free.c.job_id)
        .values(process_at=UNTIL)
        .returning(job.c.job_id)
    )


def give_back(job: Table) -> Update:
    """Undo a claim: parameters as :func:`held`, ``times``, and in ``ends`` the leases' ends.

    Rows whose lease ends at another time are somebody else's.
    """
    given = arrays(
        "given",
        job_id=("ids", job.c.job_id.type),
        held=("held", Integer()),
        process_at=("times", DateTime(timezone=True)),
        ends=("ends", DateTime(timezone=True)),
    )
    return (
        update(job)
        .where(_to_settle(job, given, wait=False), job.c.process_at == given.c.ends)
        .values(process_at=given.c.process_at, attempts=given.c.held - 1)
    )


def still_held(job: Table) -> Select[*tuple[Any, ...]]:
    """Return the ids of those rows that are held, locked or not: parameters as :func:`held`."""
    given = held(job)
    return select(job.c.job_id).join(given, _is_held(job, given))
