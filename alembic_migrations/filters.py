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
        return not (
            name in names.tables and (found == names.schema or (found is None and _on_sqlite()))
        )

    return include_name


def _on_sqlite() -> bool:
    """Tell whether the tables are where there are no schemas, whatever schema was asked for."""
    with suppress(NameError, AttributeError):  # what the proxy raises outside of an env.py
        return context.get_context().dialect.name == "sqlite"
    return False


include_name: Final = include_name_for()
"""A filter for your ``env.py`` that hides the library's tables from your autogenerate::

    context.configure(..., include_name=migrations.include_name)

It hides the three tables of the default names and the version table of ``proletarian migrate``, and
lets everything else pass; :func:`include_name_for` makes one for other names. To combine it with a
filter of your own, return ``mine(*args) and include_name(*args)``. Do not use it for tables that
are in your ``target_metadata``: autogenerate would propose to create them again.

.. versionadded:: 0.1
"""
