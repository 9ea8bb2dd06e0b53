"""Creating the first partitions of an archive that is partitioned by month, in a revision."""

from __future__ import annotations

from datetime import UTC, datetime

from alembic import op

from sqlalchemy_proletarian.database.partitions import first_partitions

from .names import DEFAULT_SCHEMA


def create_partitions(
    archived_table: str = "archived_job", *, schema: str | None = DEFAULT_SCHEMA
) -> None:
    """Create the first partitions of an archive that your revision has created.

    Autogenerate writes a revision that creates an archive with ``"postgresql_partition_by"``, but
    not its partitions: call this function in the revision, behind ``op.create_table()``.
    :func:`upgrade` needs no such call. It creates the default partition, and those of this month
    and of the next three months.

    :param archived_table: the table of finished jobs.
    :param schema: its schema; ``None`` is the connection's default schema.

    .. versionadded:: 0.1
    """
    for ddl in first_partitions(archived_table, schema, datetime.now(UTC)):
        op.execute(ddl.replace(":", r"\:"))
