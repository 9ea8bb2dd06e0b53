"""The filter that keeps a user's autogenerate away from the job tables."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from alembic import context
from alembic.runtime.environment import IncludeNameFn, NameFilterParentNames, NameFilterType

from .names import DEFAULT_SCHEMA, VERSION_TABLE, TableNames


def include_name_for(
    *,
    table: str = "job",
    archived_table: str | None = None,
    running_table: str | None = None,
    schema: str | None = DEFAULT_SCHEMA,
) -> IncludeNameFn:
    """Return a filter like :func:`include_name` for tables of other names.

    :param table: as given to :func:`upgrade`, and so are the other names.
    :raises ValueError: if the names are empty or not distinct.

    .. versionadded:: 0.1
    """
    names = TableNames.of(table, archived_table, running_table, schema)

    def include_name(
        name: str | None, type_: NameFilterType, parent_names: NameFilterParentNames
    ) -> bool:
        if type_ != "table":
            return True
        if name == VERSION_TABLE:
            return False
        found = parent_names.get("schema_name")
        is_there = found == names.schema or (found is None and _is_default(names.schema))
        return not (name in names.tables and is_there)

    return include_name


def _is_default(schema: str | None) -> bool:
    """Return whether a schema is where Alembic looks when it names none.

    That is the first on the ``search_path`` on PostgreSQL, the database of the URL on MySQL. SQLite
    has none. Outside of an ``env.py`` nobody says which it is: then it may be any, and a table that
    is not seen does less harm than one that is dropped.
    """
    with suppress(NameError, AttributeError):  # what the proxy raises outside of an env.py
        dialect = context.get_context().dialect
        return dialect.name == "sqlite" or schema == dialect.default_schema_name
    return True


include_name: Final = include_name_for()
"""A filter for your ``env.py`` that hides the library's tables from your autogenerate::

    context.configure(..., include_name=migrations.include_name)

It hides the three tables of the default names and the version table of ``proletarian migrate``, and
lets everything else pass, tables of the same names in other schemas too. Only outside of an
``env.py``, as with ``compare_metadata()`` alone, it hides these names in the connection's default
schema, whatever that is.
:func:`include_name_for` makes one for other names. To combine it with a
filter of your own, return ``mine(*args) and include_name(*args)``. Do not use it for tables that
are in your ``target_metadata``: autogenerate would propose to create them again.

.. versionadded:: 0.1
"""
