"""The statements of the store, built once per worker from the mapped classes.

Lists of values travel as arrays (:func:`arrays`), one parameter a column: the text of a statement
is then the same for any number of rows: SQLAlchemy compiles it once, the server plans it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    Label,
    Select,
    SmallInteger,
    Table,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    false,
    func,
    insert,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import Delete, Insert, ReturningInsert, ReturningUpdate, Update
from sqlalchemy.sql.selectable import TableValuedAlias

from ..models.job_classes import key_of
from ..models.mixins import PRIORITIES, JobMixin

NOW: BindParameter[Any] = bindparam("now", type_=DateTime(timezone=True))
SHARED: BindParameter[Any] = bindparam("shared", type_=DateTime(timezone=True))
UNTIL: BindParameter[Any] = bindparam("until", type_=DateTime(timezone=True))

# What people write by hand may be beyond what Python and the columns can take.
_LONG_AGO = literal(datetime(1970, 1, 1, tzinfo=UTC), DateTime(timezone=True))
_BEGINNING = literal_column("'-infinity'::timestamptz", DateTime(timezone=True))
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


def _lanes(*, filtered: bool) -> TableValuedAlias:
    """Queues and priorities, the most urgent first."""
    since = {"since": ("since", DateTime(timezone=True))} if filtered else {}
    priority = ("priorities", SmallInteger())
    return arrays("lane", queue=("queues", Text()), priority=priority, **since)


def _in_lane(model: type[JobMixin], lanes: TableValuedAlias) -> Iterator[ColumnElement[bool]]:
    yield model.queue == lanes.c.queue
    yield model.priority == lanes.c.priority


def _known_in_lane(model: type[JobMixin], lanes: TableValuedAlias) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions on the rows of a lane that a worker may claim."""
    yield from _in_lane(model, lanes)
    if "since" in lanes.c:
        # Not a comparison that may be left out: this one the index can stop at.
        yield model.process_at >= func.coalesce(lanes.c.since, _BEGINNING)
        yield or_(is_known(model), model.ended_as.is_not(None))


def is_known(model: type[JobMixin]) -> ColumnElement[bool]:
    """Return the condition on jobs of the types in ``known``."""
    return model.job_type == func.any(array("known", Text()))


def claim(
    model: type[JobMixin], running: Table | None, *, leased: bool, filtered: bool = False
) -> Select[*tuple[Any, ...]]:
    """Lock due rows: parameters ``queues``, ``priorities``, ``now`` and ``limit``.

    With ``filtered`` only jobs of the types in ``known``, and in each lane only those that were due
    at the time in ``since``, or later; None there is all of them.

    The columns are the fields of :class:`.ClaimedJob`. ``marked`` is whether the row has a running
    marker, whose writer then is gone. Where the rows will be leased, which moves their
    ``process_at``, that is read too; and rows that were leased before must be due by ``shared`` as
    well, the time on which all workers agree.

    One index probe per lane, stopped by the outer LIMIT: rows of later lanes are neither read nor
    locked. ORDER BY priority, process_at over all of them would read the whole backlog, jobs
    scheduled for the future included.
    """
    lanes = _lanes(filtered=filtered)
    limit: BindParameter[int] = bindparam("limit", type_=Integer)
    expired = model.lease_id.is_not(None)
    read = claimed_columns(model)
    times = [func.greatest(model.process_at, _LONG_AGO).label("process_at")] if leased else []
    free = or_(not_(expired), model.process_at <= SHARED) if leased else true()
    can_be_counted = model.attempts < MOST_ATTEMPTS
    due = (
        select(*read, *times)
        .where(*_known_in_lane(model, lanes), model.process_at <= NOW, free, can_be_counted)
        .order_by(model.process_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .lateral("due")
    )
    marked = is_marked(running, due.c.job_id).label("marked")
    claimed = select(
        *(due.c[label.name] for label in read), marked, *(due.c[time.name] for time in times)
    )
    return claimed.select_from(lanes.join(due, true())).limit(limit)


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
    ]


def is_marked(running: Table | None, job_id: Any) -> ColumnElement[bool]:
    """Tell whether a job has a running marker."""
    if running is None:
        return false()
    return select(running.c.job_id).where(running.c.job_id == job_id).exists()


def first_known(model: type[JobMixin]) -> Select[*tuple[Any, ...]]:
    """Return for each lane when its first job of a known type was due: parameters as :func:`claim`.

    ``limit`` is not among them.
    """
    lanes = _lanes(filtered=True)
    first = (
        select(model.process_at)
        .where(*_known_in_lane(model, lanes), model.process_at <= NOW)
        .order_by(model.process_at)
        .limit(1)
        .lateral("first")
    )
    at = func.greatest(first.c.process_at, _LONG_AGO)
    return select(
        lanes.c.queue, lanes.c.priority, case((first.c.process_at.is_not(None), at))
    ).select_from(lanes.outerjoin(first, true()))


def unknown_types(model: type[JobMixin]) -> Select[*tuple[Any, ...]]:
    """Return the types of due jobs that are not in ``known``, and how many there are.

    Parameters ``queues``, ``known``, ``now``, and in ``most`` up to how many jobs are counted.
    """
    most: BindParameter[int] = bindparam("most", type_=Integer)
    some = (
        select(model.job_type.label("job_type"))
        .where(
            model.queue == func.any(array("queues", Text())),
            model.priority.between(PRIORITIES[0], PRIORITIES[-1]),
            model.process_at <= NOW,
            not_(is_known(model)),
        )
        .limit(most)
        .subquery("some")
    )
    return select(some.c.job_type, func.count().label("jobs")).group_by(some.c.job_type)


def next_due(model: type[JobMixin], *, filtered: bool = False) -> Select[*tuple[Any, ...]]:
    """Tell whether due rows exist and when the next one comes due; parameters as :func:`claim`."""
    lanes = _lanes(filtered=filtered)

    def first(name: str, conditions: Iterator[ColumnElement[bool]], condition: Any) -> Any:
        return (
            select(model.process_at)
            .where(*conditions, condition)
            .order_by(model.process_at)
            .limit(1)
            .lateral(name)
        )

    due = first("due", _known_in_lane(model, lanes), model.process_at <= NOW)
    soon = and_(model.process_at > NOW, model.process_at < _FAR_OFF)
    # Of any type: to look for a known one could mean to read all the others.
    future = first("future", _in_lane(model, lanes), soon)
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


def held(job: Table, *, leased: bool, **columns: tuple[str, Any]) -> TableValuedAlias:
    """Jobs that a worker holds: ``ids``, and in ``held`` the attempts that their rows count.

    :param leased: whether ``leases`` has the leases by which they are held. None there stands for a
        row that the transaction has locked.
    :param columns: further parameters, as for :func:`arrays`.
    """
    ids = {"job_id": ("ids", job.c.job_id.type), "held": ("held", Integer())}
    leases = {"lease_id": ("leases", job.c.lease_id.type)} if leased else {}
    return arrays("given", **ids, **leases, **columns)


def _is_held(job: Table, given: Any) -> ColumnElement[bool]:
    # The attempts tell of a worker in another language, which knows nothing of leases.
    mine = and_(job.c.job_id == given.c.job_id, job.c.attempts == given.c.held)
    if "lease_id" not in given.c:
        return mine
    return and_(mine, or_(given.c.lease_id.is_(None), job.c.lease_id == given.c.lease_id))


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
    job: Table,
    archived: Table,
    children: Sequence[Table] = (),
    *,
    leased: bool,
    wait: bool = True,
) -> ReturningInsert[Any]:
    """Move held rows to the archive, and return the ids of those that were still held.

    Parameters as :func:`held`, and ``attempts``, ``times``, ``statuses``, ``errors``, ``now``; a
    time of None leaves ``process_at`` as it is.

    :param children: as for :func:`archive_successes`.
    :param leased: as for :func:`held`.
    :param wait: for whoever has locked a row; otherwise it is left out.
    """
    given = held(
        job,
        leased=leased,
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


def reschedule(job: Table, *, leased: bool, wait: bool = True) -> ReturningUpdate[Any]:
    """Put held rows back, and return the ids of those that were still held.

    Parameters as :func:`held`, and ``attempts``, ``times``, ``errors``, ``deaths``, ``endings``,
    ``ended`` and ``refusals``, as :class:`.Returned` has them; ``leased`` and ``wait`` as for
    :func:`archive_each`.
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
        .where(_to_settle(job, given, wait=wait))
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


def _deaths(job: Table) -> TableValuedAlias:
    return arrays("given", job_id=("ids", job.c.job_id.type), deaths=("deaths", Integer()))


def count_deaths(job: Table) -> Update:
    """Write the deaths of rows that are locked: parameters ``ids`` and ``deaths``."""
    given = _deaths(job)
    return update(job).where(job.c.job_id == given.c.job_id).values(deaths=given.c.deaths)


def lease(job: Table) -> Update:
    """Lease rows that are locked: parameters ``ids``, ``deaths``, ``until`` and ``lease``."""
    lease_id: BindParameter[Any] = bindparam("lease", type_=job.c.lease_id.type)
    return count_deaths(job).values(process_at=UNTIL, lease_id=lease_id)


def extend(job: Table) -> ReturningUpdate[Any, Any]:
    """Extend the leases of rows, and return their ids and leases.

    Parameters as :func:`held`, and ``until``. A row that is locked is left out: it is being
    settled, or its handler has written to it. One that is only referred to, by a foreign key, is
    not.
    """
    free = _free(job, held(job, leased=True), key_share=True)
    return (
        update(job)
        .where(job.c.job_id == free.c.job_id)
        .values(process_at=UNTIL)
        .returning(job.c.job_id, job.c.lease_id)
    )


def give_back(job: Table) -> Update:
    """Undo the leases of rows: parameters as :func:`held`, and ``times``."""
    given = held(job, leased=True, process_at=("times", DateTime(timezone=True)))
    return (
        update(job)
        .where(_to_settle(job, given, wait=False))
        .values(process_at=given.c.process_at, lease_id=null())
    )


def still_held(job: Table) -> Select[*tuple[Any, ...]]:
    """Return ids and leases of rows that are held, locked or not: parameters as :func:`held`."""
    given = held(job, leased=True)
    return select(job.c.job_id, job.c.lease_id).join(given, _is_held(job, given))
