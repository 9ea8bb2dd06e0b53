"""The mapped classes of a job table: which class and which tables a job type has.

A job table may have one class per job type, polymorphic on ``job_type``. Such a class is mapped to
the job table itself or to a table that is joined to it. Statements that move jobs use the table
that has the column ``queue``. Joined tables are its children: their rows are deleted with the
parent row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import Column, Table, Update, update
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Mapper, Session

from ..errors import ModelError
from .checks import check_tables

_EAGER = (False, "joined", "selectin", "subquery", "immediate")


def job_table(model: type[Any]) -> Table:
    """Return the table in which the jobs of a mapped class are queued."""
    table: Table = sa_inspect(model).columns["queue"].table
    return table


def bind_arguments(model: type[Any]) -> dict[str, Any]:
    """Return the arguments of a session's ``get_bind`` for statements that write jobs.

    They are the mapper, which SQLAlchemy passes too, and an UPDATE: a session that sends reads to a
    replica and writes to the primary recognizes writes by their statement.
    """
    return {"mapper": sa_inspect(model), "clause": _an_update(model)}  # type: ignore[arg-type]


@lru_cache
def _an_update(model: type[Any]) -> Update:
    return update(job_table(model))


def base_of(model: type[Any]) -> type[Any]:
    """Return the base class of all jobs in the table of a mapped class."""
    mapper: Mapper[Any] = sa_inspect(model)
    while (
        mapper.inherits is not None and not mapper.concrete and "queue" in mapper.inherits.columns
    ):
        mapper = mapper.inherits
    return mapper.class_


def child_tables(model: type[Any]) -> list[Table]:
    """Return the tables that are joined to the job table for subclasses of a mapped class."""
    return [_own_table(mapper) for mapper in _joined(sa_inspect(model))]


def key_of(child: Table) -> Column[Any]:
    """Return the column of a child table that contains the job's id."""
    (key,) = child.primary_key.columns
    return key


def identity_of(model: type[Any]) -> str | None:
    """Return the job type of a class; None if the class does not represent a single type."""
    mapper = sa_inspect(model)
    return mapper.polymorphic_identity if _is_polymorphic(mapper) else None


def class_of(model: type[Any], job_type: str) -> type[Any]:
    """Return the class of the jobs of a type; the model itself if the type has no class."""
    mapper = sa_inspect(model)
    if not _is_polymorphic(mapper):
        return model
    found: type[Any] = mapper.polymorphic_map.get(job_type, mapper).class_
    return found


def eager_relationships(model: type[Any]) -> list[str]:
    """Return the names of the relationships that are configured for eager loading."""
    return [name for name, found in sa_inspect(model).relationships.items() if found.lazy in _EAGER]


def attach(session: Session, job: Any) -> None:
    """Add a detached job to a session, and load its eager relationships."""
    session.add(job)
    if eager := eager_relationships(type(job)):
        session.refresh(job, eager)


def require_type(model: type[Any], job_type: str) -> None:
    """Raise ValueError unless ``model`` is the class of the jobs of that type."""
    mapper = sa_inspect(model)
    if not _is_polymorphic(mapper) or mapper.polymorphic_map.get(job_type) is mapper:
        return
    there = mapper.polymorphic_map.get(job_type)
    remedy = (
        f"no class of {job_table(model)} has that polymorphic identity"
        if there is None
        else f"use job_model={there.class_.__qualname__}"
    )
    msg = f"a job of type {job_type!r} cannot be a {model.__qualname__}: {remedy}"
    raise ValueError(msg)


def check_models(job: type[Any], archived: type[Any], running: type[Any] | None = None) -> None:
    """Raise :class:`ModelError` unless a worker can serve the job table with these models."""
    if (base := base_of(job)) is not job:
        msg = (
            f"job_model={job.__qualname__} covers only some jobs in {job_table(job)}: a worker "
            f"serves all of them, so pass their base class, job_model={base.__qualname__}"
        )
        raise ModelError(msg)
    wanted = sa_inspect(job).columns["job_id"].type
    for option, model in (("archived_job_model", archived), ("running_job_model", running)):
        if model is None:
            continue
        there = sa_inspect(model).columns["job_id"].type
        if _sort(there) != _sort(wanted):
            msg = (
                f"{option}={model.__qualname__} has a job_id of type {there!r}, but the job_id of "
                f"{job.__qualname__} is {wanted!r}: declare the same job_id as in "
                f"{job.__qualname__}, but do not let it generate values"
            )
            raise ModelError(msg)
    for child in _joined(sa_inspect(job)):
        _require_cascade(child)
    check_tables(
        [job_table(job), *child_tables(job)],
        sa_inspect(archived).local_table,
        None if running is None else sa_inspect(running).local_table,
    )


def is_polymorphic(model: type[Any]) -> bool:
    """Return whether the class of a job depends on its type."""
    return _is_polymorphic(sa_inspect(model))


def _is_polymorphic(mapper: Mapper[Any]) -> bool:
    discriminator = mapper.polymorphic_on
    return discriminator is not None and discriminator is mapper.columns.get("job_type")


def _joined(mapper: Mapper[Any]) -> Iterator[Mapper[Any]]:
    table = mapper.columns["queue"].table
    for descendant in mapper.self_and_descendants:
        if descendant.single or descendant.concrete or descendant.local_table is table:
            continue
        if descendant.columns["queue"].table is table:
            yield descendant


def _own_table(mapper: Mapper[Any]) -> Table:
    return cast("Table", mapper.local_table)


def _require_cascade(child: Mapper[Any]) -> None:
    parent = child.inherits.local_table  # type: ignore[union-attr]  # a child has one
    key = key_of(_own_table(child))
    for foreign_key in key.foreign_keys:
        if foreign_key.column.table is parent and (foreign_key.ondelete or "").upper() == "CASCADE":
            return
    msg = (
        f"rows of {child.local_table} must be deleted with their job in {parent}: the column "
        f"{key.name} of {child.class_.__qualname__} must be a "
        f'ForeignKey("{parent}.job_id", ondelete="CASCADE")'
    )
    raise ModelError(msg)


def _sort(type_: Any) -> Any:
    try:
        return type_.python_type
    except NotImplementedError:
        return type(type_)
