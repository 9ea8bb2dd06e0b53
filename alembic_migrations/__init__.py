"""Versioned migrations of the job tables, to call in your own Alembic revisions.

Create an empty revision (``alembic revision -m "job tables"``) and call the functions in it::

    from sqlalchemy_proletarian import migrations


    def upgrade() -> None:
        migrations.upgrade(version=1)


    def downgrade() -> None:
        migrations.downgrade(version=0)

A version never changes: ``upgrade(version=1)`` creates the same tables with every release. If a
later release needs other tables, it adds a version, and you add a revision with the current and the
target version. The downgrade swaps the two arguments of the upgrade::

    def upgrade() -> None:
        migrations.upgrade(version=2, from_version=1)


    def downgrade() -> None:
        migrations.downgrade(version=1, from_version=2)

The tables are not in your metadata, so autogenerate would propose to drop them. To prevent this,
pass :func:`include_name` to ``context.configure()`` in your ``env.py``.
"""

from __future__ import annotations

from typing import Final

from .filters import include_name, include_name_for, without_partitions
from .names import DEFAULT_SCHEMA, VERSION_TABLE, TableNames
from .partitions import create_partitions
from .steps import STEPS

__all__ = [
    "DEFAULT_SCHEMA",
    "LATEST_VERSION",
    "VERSION_TABLE",
    "create_partitions",
    "downgrade",
    "include_name",
    "include_name_for",
    "upgrade",
    "without_partitions",
]

LATEST_VERSION: Final = len(STEPS)
"""The version that the models of this release need.

.. versionadded:: 0.1
"""


def upgrade(
    version: int = 1,
    *,
    from_version: int = 0,
    table: str = "job",
    archived_table: str | None = None,
    running_table: str | None = None,
    paused_table: str | None = None,
    recurring_table: str | None = None,
    places_table: str | None = None,
    schema: str | None = DEFAULT_SCHEMA,
    partition_archive: str | None = None,
) -> None:
    """Create the job tables, or upgrade them to a later version.

    :param version: the target version.
    :param from_version: the current version of the tables; 0 if they do not exist.
    :param table: the table of queued jobs.
    :param archived_table: the table of finished jobs; by default ``archived_{table}``.
    :param running_table: the table of markers of running jobs; by default ``running`` if
        ``table`` is ``"job"``, else ``running_{table}``.
    :param paused_table: the table of paused queues; by default ``paused_queue`` if ``table`` is
        ``"job"``, else ``paused_{table}``.
    :param recurring_table: the table of recurring jobs; by default ``recurring`` if ``table`` is
        ``"job"``, else ``recurring_{table}``.
    :param places_table: the table of the places of limits; by default ``limit_place`` if ``table``
        is ``"job"``, else ``places_{table}``.
    :param schema: the schema of all of them, created if it does not exist; ``None`` is the
        connection's default schema.
    :param partition_archive: "month" creates the archive partitioned by month, which only
        PostgreSQL can do; see the page "An archive partitioned by month".
    :raises NotImplementedError: if the database cannot partition the archive.
    :raises ValueError: if there is no such version, if it is not later than ``from_version``, or
        if the names are empty or not distinct.

    .. versionadded:: 0.1
    """
    if _known(version) <= _known(from_version):
        msg = f"an upgrade from version {from_version} cannot end at version {version}"
        raise ValueError(msg)
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
    for up, _ in STEPS[from_version:version]:
        up(names)


def downgrade(
    version: int = 0,
    *,
    from_version: int = 1,
    table: str = "job",
    archived_table: str | None = None,
    running_table: str | None = None,
    paused_table: str | None = None,
    recurring_table: str | None = None,
    places_table: str | None = None,
    schema: str | None = DEFAULT_SCHEMA,
    partition_archive: str | None = None,
) -> None:
    """Downgrade the job tables to an earlier version; 0 drops them with all their jobs.

    The schema is dropped together with the tables only if it is the default schema,
    ``proletarian``, and contains nothing else. A schema with another name is never dropped.

    :param version: the target version.
    :param from_version: the current version of the tables.
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
    :param partition_archive: accepted, so that the arguments can be those of the upgrade; the
        partitions are dropped with the archive.
    :raises ValueError: if there is no such version, if it is not earlier than ``from_version``, or
        if the names are empty or not distinct.

    .. versionadded:: 0.1
    """
    if _known(version) >= _known(from_version):
        msg = f"a downgrade from version {from_version} cannot end at version {version}"
        raise ValueError(msg)
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
    for _, down in reversed(STEPS[version:from_version]):
        down(names)


def _known(version: object) -> int:
    # True is an int and would count as version 1.
    if (
        isinstance(version, int)
        and not isinstance(version, bool)
        and 0 <= version <= LATEST_VERSION
    ):
        return version
    msg = (
        f"there is no version {version!r} of the job tables: "
        f"this release knows 0 (no tables) to {LATEST_VERSION}"
    )
    raise ValueError(msg)
