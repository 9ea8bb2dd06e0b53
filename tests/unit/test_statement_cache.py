"""Statements are built once for their tables, and again if a table has more columns."""

from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, Select, Table, select

from sqlalchemy_proletarian.store.statement_cache import built_once


@built_once
def all_columns(job: Table, children: tuple[Table, ...] = ()) -> Select[tuple[object, ...]]:
    return select(job, *children)


def test_a_statement_is_built_again_for_a_new_column_only() -> None:
    """A subclass of a model that is imported late adds columns to the table, or to a child."""
    job = Table("job", MetaData(), Column("id", Integer))
    child = Table("child", job.metadata, Column("id", Integer))
    first = all_columns(job, (child,))
    assert all_columns(job, (child,)) is first
    child.append_column(Column("late", Integer))
    second = all_columns(job, (child,))
    assert second is not first
    job.append_column(Column("later", Integer))
    assert all_columns(job, (child,)) is not second
