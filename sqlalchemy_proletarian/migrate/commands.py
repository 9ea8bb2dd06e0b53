"""Create, change and check the default job tables: the functions behind ``proletarian migrate``.

They are for applications that do not use Alembic, or that want to keep these tables apart from
their own migrations. Other applications call :mod:`sqlalchemy_proletarian.migrations` in a revision
of their own. :func:`check` is useful for both.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import IncludeNameFn, NameFilterParentNames, NameFilterType
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Connection, MetaData, NullPool, Table, create_engine, inspect

from .. import migrations
from ..database.dialects import features_of
from ..database.named_locks import exclusive_lock
from ..database.urls import sync_url
from ..errors import SchemaMismatchError
from ..migrations import LATEST_VERSION
from ..migrations.names import ATTRIBUTE
from ..models.defaults import SCHEMA, Base
from .table_details import detailed_differences

_NONE: Final[Mapping[str, Any]] = {}

_CREATE = (
    "run 'proletarian migrate upgrade', or call sqlalchemy_proletarian.migrations.upgrade("
    f"version={LATEST_VERSION}) in an Alembic revision of your own"
)
_ALIGN = (
    "'proletarian migrate upgrade' does not repair tables that were changed by other means: "
    "make the changes in an Alembic revision of your own ('proletarian migrate sql' prints the "
    "SQL that creates the correct tables)"
)


_VERDICTS = {
    "add_index": "is missing",
    "add_column": "is missing",
    "remove_index": "is not in the models",
    "remove_column": "is not in the models",
}


@dataclass(frozen=True)
class CheckResult:
    """The differences between the tables in a database and the models.

    .. versionadded:: 0.1
    """

    differences: tuple[str, ...] = ()
    """One line for each difference; empty if there are none."""

    remedy: str | None = None
    """How to fix the differences."""


def upgrade(
    url: URL | str,
    version: int = LATEST_VERSION,
    *,
    partition_archive: str | None = None,
) -> int:
    """Upgrade the job tables to ``version``; create them if they do not exist.

    If a later release has already upgraded the tables to a later version, they are not changed:
    both releases can work with them, so a process of the earlier release that migrates when it
    starts does not fail.

    It is safe to call this from several processes at once: one migrates and the others wait.

    :param url: the database; an asynchronous driver is replaced by a synchronous one.
    :param version: from 1 to :data:`~sqlalchemy_proletarian.migrations.LATEST_VERSION`.
    :param partition_archive: "month" creates the archive partitioned by month; see
        :func:`sqlalchemy_proletarian.migrations.upgrade`. An archive that exists does not change.
    :return: the version of the tables afterwards.

    .. versionadded:: 0.1
    """
    with _locked(url) as connection:
        found = recorded_version(connection)
        if found <= LATEST_VERSION:
            options = {"partition_archive": partition_archive}
            command.upgrade(_config(options, connection=connection), _revision(version))
        return max(found, version)


def downgrade(url: URL | str, version: int = 0) -> None:
    """Downgrade the job tables to ``version``; 0 drops them with all their jobs.

    :param url: the database; an asynchronous driver is replaced by a synchronous one.
    :param version: from 0 to :data:`~sqlalchemy_proletarian.migrations.LATEST_VERSION`.
    :raises SchemaMismatchError: if the tables have a later version than this release knows.

    .. versionadded:: 0.1
    """
    with _locked(url) as connection:
        found = recorded_version(connection)
        if found > LATEST_VERSION:
            msg = (
                f"the job tables are at version {found}, but this release can downgrade from "
                f"version {LATEST_VERSION} at most: downgrade them with the release that upgraded "
                f"them"
            )
            raise SchemaMismatchError(msg)
        command.downgrade(_config(connection=connection), _revision(version))
        if version == 0:
            Table(migrations.VERSION_TABLE, MetaData()).drop(connection, checkfirst=True)


def sql(
    version: int = LATEST_VERSION,
    *,
    from_version: int = 0,
    drivername: str = "postgresql+psycopg",
    partition_archive: str | None = None,
) -> str:
    """Return the SQL script that :func:`upgrade` or :func:`downgrade` would run.

    :param version: the target version.
    :param from_version: the current version of the tables; if it is later than ``version``, the
        script is a downgrade.
    :param drivername: the dialect of the script, as in a database URL.
    :param partition_archive: as for :func:`upgrade`.

    .. versionadded:: 0.1
    """
    output = StringIO()
    config = _config({"partition_archive": partition_archive}, output_buffer=output)
    config.set_main_option("sqlalchemy.url", f"{drivername}://")
    step = command.upgrade if version > from_version else command.downgrade
    step(config, f"{_revision(from_version)}:{_revision(version)}", sql=True)
    return output.getvalue()


def check(url: URL | str) -> CheckResult:
    """Compare the default tables in the database with the models, and report the differences.

    It checks only the job tables, and it does not matter how they were created.

    :param url: the database; an asynchronous driver is replaced by a synchronous one.
    :return: the differences, one line for each, and how to fix them.

    .. versionadded:: 0.1
    """
    with create_engine(sync_url(url), poolclass=NullPool).connect() as connection:
        wanted = _metadata(connection)
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": _only_job_tables(wanted, connection.dialect.default_schema_name),
                "compare_server_default": True,
            },
        )
        diffs = compare_metadata(context, wanted)
        details = tuple(detailed_differences(connection, wanted))
    missing = {diff[1].fullname for diff in diffs if diff[0] == "add_table"}
    differences = tuple(line for diff in diffs for line in _describe(diff, missing)) + details
    if not differences:
        return CheckResult()
    return CheckResult(differences, _CREATE if missing == set(wanted.tables) else _ALIGN)


@contextmanager
def _locked(url: URL | str) -> Generator[Connection, None, None]:
    """Connect and take a lock, so that processes that migrate at startup do so one at a time."""
    with create_engine(sync_url(url), poolclass=NullPool).begin() as connection:
        lock = exclusive_lock(connection.dialect, migrations.__name__)
        if lock is not None:
            connection.execute(lock)
        yield connection


def _config(
    options: Mapping[str, Any] = _NONE,
    *,
    connection: Connection | None = None,
    output_buffer: StringIO | None = None,
) -> Config:
    attributes = {"connection": connection, ATTRIBUTE: dict(options)}
    config = Config(output_buffer=output_buffer, attributes=attributes)
    # A path, because "package:folder" cannot name a package itself; % is for interpolation.
    location = str(Path(migrations.__file__).parent)
    config.set_main_option("script_location", location.replace("%", "%%"))
    return config


def recorded_version(connection: Connection) -> int:
    """Return the current version of the tables, which may be that of a later release.

    It is 0 if the tables do not exist, or were not created by the shipped revisions.
    """
    opts = {"version_table": migrations.VERSION_TABLE}
    heads = MigrationContext.configure(connection, opts=opts).get_current_heads()
    return max((int(head.rpartition("_")[2]) for head in heads), default=0)


def _revision(version: int) -> str:
    return f"proletarian_{version:04}" if version else "base"


def _metadata(connection: Connection) -> MetaData:
    """Return the default metadata, without its schema on SQLite unless one is attached."""
    if features_of(connection.dialect).schemas or inspect(connection).has_schema(SCHEMA):
        return Base.metadata
    here = MetaData()
    for table in Base.metadata.sorted_tables:
        table.to_metadata(here, schema=None)  # type: ignore[arg-type]  # None means no schema
    return here


def _only_job_tables(wanted: MetaData, default_schema: str | None) -> IncludeNameFn:
    ours = {(table.schema or default_schema, table.name) for table in wanted.tables.values()}
    schemas = {schema for schema, _ in ours}

    def include_name(
        name: str | None, type_: NameFilterType, parent_names: NameFilterParentNames
    ) -> bool:
        if type_ == "schema":
            return (name or default_schema) in schemas
        if type_ == "table":
            return (parent_names.get("schema_name") or default_schema, name) in ours
        return True

    return include_name


def _describe(diff: Any, missing: set[str]) -> Iterator[str]:
    match diff:
        case [tuple(), *_]:
            for change in diff:
                yield from _describe(change, missing)
        case ("add_table", table):
            yield f"table {table.fullname} is missing"
        case ("add_index" | "remove_index" as kind, index):
            if index.table.fullname not in missing:
                yield f"index {index.name} on {index.table.fullname} {_VERDICTS[kind]}"
        case ("add_column" | "remove_column" as kind, schema, table, column):
            yield f"column {column.name} of {schema}.{table} {_VERDICTS[kind]}"
        case (str(kind), schema, table, column, _, found, wanted):
            found, wanted = (getattr(value, "arg", value) for value in (found, wanted))
            what = kind.removeprefix("modify_")
            yield f"column {column} of {schema}.{table}: {what} is {found}, should be {wanted}"
        case _:
            yield " ".join(str(part) for part in diff)
