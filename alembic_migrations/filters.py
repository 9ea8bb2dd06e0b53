"""The ``include_name`` filter that hides the job tables from the user's autogenerate."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from alembic import context
from alembic.runtime.environment import IncludeNameFn, NameFilterParentNames, NameFilterType
from sqlalchemy import MetaData

from sqlalchemy_proletarian.database.partitions import is_partition_name, is_partitioned

from .names import DEFAULT_SCHEMA, VERSION_TABLE, TableNames


def include_name_for(
    *,
    table: str = "job",
    archived_table: str | None = None,
    running_table: str | None = None,
    paused_table: str | None = None,
    recurring_table: str | None = None,
    places_table: str | None = None,
    schema: str | None = DEFAULT_SCHEMA,
    partition_archive: str | None = None,
) -> IncludeNameFn:
    """Return a filter like :data:`include_name` for tables with other names.

    :param table: the table of queued jobs. All names are those that were passed to :func:`upgrade`.
    :param archived_table: the table of finished jobs; by default ``archived_{table}``.
    :param running_table: the table of markers of running jobs; by default ``running`` if
        ``table`` is ``"job"``, else ``running_{table}``.
    :param paused_table: the table of paused queues; by default ``paused_queue`` if ``table`` is
        ``"job"``, else ``paused_{table}``.
    :param recurring_table: the table of recurring jobs; by default ``recurring`` if ``table`` is
        ``"job"``, else ``recurring_{table}``.
    :param places_table: the table of the places of limits; by default ``limit_place`` if ``table``
        is ``"job"``, else ``places_{table}``.
    :param schema: the schema of all of them; ``None`` is the default schema of the connection.
    :param partition_archive: accepted, so that the arguments can be those of the upgrade; the names
        of partitions are always hidden.
    :raises ValueError: if the names are empty or not distinct.

    .. versionadded:: 0.1
    """
    names = TableNames.of(
        table,
        archived_table,
        running_table,
        paused_table,
        recurring_table,
        places=places_table,
        schema=schema,
        partition_archive=partition_archive,
    )

    def include_name(
        name: str | None, type_: NameFilterType, parent_names: NameFilterParentNames
    ) -> bool:
        if type_ != "table":
            return True
        if name == VERSION_TABLE:
            return False
        found = parent_names.get("schema_name")
        is_there = found == names.schema or (found is None and _is_default(names.schema))
        is_ours = name in names.tables or is_partition_name(name, names.archived)
        return not (is_ours and is_there)

    return include_name


def without_partitions(*metadata: MetaData) -> IncludeNameFn:
    """Return a filter for your ``env.py`` that hides the partitions of archives in your metadata.

    Autogenerate compares the archives themselves, which you have mapped with
    ``"postgresql_partition_by"``, but would propose to drop their partitions::

        context.configure(..., include_name=migrations.without_partitions(target_metadata))

    :param metadata: your ``target_metadata``.

    .. versionadded:: 0.1
    """

    def include_name(
        name: str | None, type_: NameFilterType, parent_names: NameFilterParentNames
    ) -> bool:
        if type_ != "table":
            return True
        found = parent_names.get("schema_name")
        return not any(
            is_partition_name(name, table.name)
            and (found == table.schema or (found is None and _is_default(table.schema)))
            for each in metadata
            for table in each.tables.values()
            if is_partitioned(table)
        )

    return include_name


def _is_default(schema: str | None) -> bool:
    """Return whether a schema is the one that Alembic uses if it names no schema.

    On PostgreSQL it is the first schema of the ``search_path``, on MySQL the database of the URL.
    SQLite has no schemas. Outside of an ``env.py`` the default schema is unknown. Then any schema
    counts as the default, because hiding a table does less harm than dropping it.
    """
    with suppress(NameError, AttributeError):  # raised by the proxy outside of an env.py
        dialect = context.get_context().dialect
        return dialect.name == "sqlite" or schema == dialect.default_schema_name
    return True


include_name: Final = include_name_for()
"""A filter for your ``env.py`` that hides the library's tables from your autogenerate::

    context.configure(..., include_name=migrations.include_name)

It hides the tables with the default names and the version table of ``proletarian migrate``.
It does not hide anything else, not even tables with the same names in other schemas. Outside of an
``env.py``, for example if you call ``compare_metadata()`` directly, it also hides these names in
the default schema of the connection. :func:`include_name_for` returns a filter for other names. To
combine it with your own filter, return ``mine(*args) and include_name(*args)``. Do not use it for
tables that are in your ``target_metadata``: autogenerate would propose to create them again.

.. versionadded:: 0.1
"""
