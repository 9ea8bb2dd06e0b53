"""Making the partitions of an archive that is partitioned by month."""

from __future__ import annotations

from sqlalchemy import Engine, Table
from sqlalchemy import inspect as sa_inspect

from ..arguments import at_least_one
from ..clock import Clock, require_aware, utcnow
from ..database.dialects import database_of
from ..database.partitions import MONTHS_AHEAD
from ..models.defaults import ArchivedJob
from ..models.mixins import ArchivedJobMixin
from ..models.requirements import TableUse, explained, privilege_missing, role_name
from ..store import partitions


def make_partitions(
    engine: Engine,
    *,
    months: int = MONTHS_AHEAD,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> list[str]:
    """Make the partitions of this month and of the next ones in an archive partitioned by month.

    :func:`.prune` does the same, and so do workers with ``archive_retention=``. Call this function
    if nobody prunes, or if only the role that owns the archive may create tables. It needs no lock
    on the partitions that are in use, and may be called at any time, from several processes.

    A month is skipped if it has a partition; if the default partition has jobs of it; or if the
    locks are not free within a second. Its jobs go to the default partition then.

    :param engine: the database, as the role that owns the archive.
    :param months: how many months after this one get partitions; 3 by default.
    :param archived_job_model: the mapped class of the archive.
    :param clock: returns the time as an aware datetime.
    :return: the names of the partitions that were made.
    :raises DatabaseNotReadyError: if the role may not make partitions, or the table does not exist.
    :raises NotImplementedError: if the database is not PostgreSQL.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if the archive is not partitioned by month, or ``months`` is less than 1.

    .. versionadded:: 0.1
    """
    ahead = at_least_one("months", months)
    now = require_aware("clock()", clock())
    table: Table = sa_inspect(archived_job_model).local_table
    database = database_of(engine.dialect)
    if not database.partitions:
        msg = f"only PostgreSQL partitions an archive by month, not {database.name}"
        raise NotImplementedError(msg)
    level = database.isolation_level  # an engine may have AUTOCOMMIT
    opened = engine.execution_options(isolation_level=level).connect()
    with opened as connection, explained(connection, TableUse(table, ("SELECT",))):
        with connection.begin():
            archive = partitions.partitioned_archive(connection, table)
        if archive is None:
            msg = (
                f"{table} does not exist, or is not partitioned by month: create it with "
                f"migrations.upgrade(…, partition_archive='month'), or set "
                f"postgresql_partition_by in its __table_args__"
            )
            raise ValueError(msg)
        if not archive.may_make:
            role = role_name(engine, engine.url.username)
            grants = [f"GRANT {archive.owner} TO {role}"]
            if archive.schema:
                grants.append(f"GRANT CREATE ON SCHEMA {archive.schema} TO {role}")
            msg = f"{role} may not make partitions of {table}"
            raise privilege_missing(msg, grants)
        return partitions.make_partitions(connection, archive, now, ahead)
