"""Checks of the models, when they are mapped and when a worker is created with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import JSON, Column, ForeignKeyConstraint, String, Table, TypeDecorator
from sqlalchemy.orm import Mapper
from sqlalchemy.types import TypeEngine

from ..errors import ModelError

_HARMLESS = ("CASCADE", "SET NULL", "SET DEFAULT")

_KEYS = {"LimitPlaceMixin": "name", "PausedQueueMixin": "queue", "RecurringJobMixin": "name"}
"""The primary keys of the mixins whose key is not ``job_id``."""

_ONLY_KEY = ("JobMixin", "PausedQueueMixin", "RecurringJobMixin")
"""The mixins whose primary key has no other columns."""


_TYPES: dict[str, type[TypeEngine[Any]]] = {"headers": JSON, "result": String}
"""The types of columns whose names a model may have used for something else."""


def refuse_pydantic(class_: type[Any]) -> None:
    """Raise :class:`ModelError` if a class with a mixin is a pydantic model, such as a SQLModel."""
    if hasattr(class_, "__pydantic_fields__"):
        msg = (
            f"{class_.__qualname__} cannot be a SQLModel, because its columns would be pydantic "
            f"fields: use the mixin with a base like `class Base(DeclarativeBase): metadata = "
            f"SQLModel.metadata`, whose tables are created and migrated with those of SQLModels"
        )
        raise ModelError(msg)


def check_columns(mapper: Mapper[Any], class_: type[Any], mixin: type[Any]) -> None:
    """Raise :class:`ModelError` unless a table has all columns of a mixin, with the same names.

    :param class_: the class that is being mapped.
    :param mixin: one of the mixins of the library's tables.
    """
    title = class_.__qualname__
    names = [name for base in mixin.__mro__ for name in getattr(base, "__annotations__", ())]
    names = [name for name in names if not name.startswith("__")]
    for name in names:
        column = mapper.columns.get(name)
        if column is None:
            msg = f"{title} has no column {name}: do not remove this column of {mixin.__name__}"
            raise ModelError(msg)
        if getattr(column, "name", None) != name:
            msg = (
                f"the column of {title}.{name} must be called {name}, the name that all workers "
                f"use, not {getattr(column, 'name', column)}: do not pass a name to "
                f"mapped_column()"
            )
            raise ModelError(msg)
        kind = _TYPES.get(name, TypeEngine)
        if not isinstance(column.type, kind | TypeDecorator):
            msg = (
                f"the column {name} of {title} is {column.type!r}, but {mixin.__name__} has a "
                f"column of this name, which is {kind.__name__}: give yours another name"
            )
            raise ModelError(msg)
    key = [column.name for column in mapper.primary_key]
    wanted = _KEYS.get(mixin.__name__, "job_id")
    allowed = [wanted] if mixin.__name__ in _ONLY_KEY else names
    foreign = [name for name in key if name not in allowed]
    if foreign or wanted not in key:
        remedy = "".join(f" and `{name} = None`" for name in foreign)
        msg = (
            f"the primary key of {title} must be {wanted}, not ({', '.join(key)}): use a base "
            f"without a primary key of its own, or remove that key in the class, with"
            f"{remedy.removeprefix(' and') or f' primary_key=True on {wanted} only'}"
        )
        raise ModelError(msg)


def check_tables(queued: Sequence[Table], archived: Table, running: Table | None) -> None:
    """Raise :class:`ModelError` unless jobs can be moved from their table to the archive.

    :param queued: the job table, followed by the tables that are joined to it.
    """
    job = queued[0]
    for table in queued:
        if "result" in table.c:
            msg = (
                f"the column result of {table} would be copied to {archived}.result, which "
                f"contains what handlers return: give it another name"
            )
            raise ModelError(msg)
        for constraint in _references(table):
            _check_reference(table, constraint, (archived, running))
    filled = {"status", "finished_at"}.union(*(table.c.keys() for table in queued))
    for column in archived.c:
        if column.name not in filled and _must_be_given(column):
            msg = (
                f"the column {column.name} of {archived} is NOT NULL, has no default and is not "
                f"in {job}: make it nullable, give it a default, or add it to {job}"
            )
            raise ModelError(msg)


def _references(job: Table) -> Iterator[ForeignKeyConstraint]:
    """Yield the foreign keys in the table's metadata that refer to it."""
    for table in job.metadata.tables.values():
        for constraint in table.foreign_key_constraints:
            # Not referred_table, which raises if the table is not mapped yet.
            targets = {
                element.target_fullname.rpartition(".")[0] for element in constraint.elements
            }
            if targets == {job.fullname}:
                yield constraint


def _check_reference(
    job: Table, constraint: ForeignKeyConstraint, never: tuple[Table | None, ...]
) -> None:
    table = constraint.table
    columns = ", ".join(column.name for column in constraint.columns)
    if table in never:
        msg = (
            f"{table}.{columns} cannot be a foreign key to {job}: its rows exist when the job's "
            f"row is deleted or locked. Remove the foreign key"
        )
        raise ModelError(msg)
    does = (constraint.ondelete or "").upper()
    if does not in _HARMLESS:
        msg = (
            f"{table}.{columns} refers to {job}, whose rows are deleted when their jobs end: add "
            f'ondelete="CASCADE" or ondelete="SET NULL" to the foreign key, or remove the foreign '
            f"key and keep only the id"
        )
        raise ModelError(msg)
    if does == "SET NULL" and not all(column.nullable for column in constraint.columns):
        msg = (
            f"{table}.{columns} is NOT NULL, but its foreign key to {job} has "
            f'ondelete="SET NULL": make it nullable, or use ondelete="CASCADE"'
        )
        raise ModelError(msg)


def _must_be_given(column: Column[Any]) -> bool:
    return not (
        column.nullable
        or column.default is not None
        or column.server_default is not None
        or column.computed is not None
        or column.identity is not None
        or column is column.table.autoincrement_column
    )
