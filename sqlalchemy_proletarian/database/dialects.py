"""The features of each database.

PostgreSQL has all features that the worker uses. MySQL and MariaDB have row locks and SKIP LOCKED,
but no notifications. SQLite allows one writer at a time and has no row locks, so its jobs run in
lease mode. Of the databases that are compatible with PostgreSQL, only what they have in common is
used, see :data:`PORTABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, DateTime, Dialect, Engine, Executable, func, select, text
from sqlalchemy.dialects import postgresql, sqlite

from ..errors import DatabaseNotReadyError
from . import keepalive, mysql_wait_timeout
from .column_types import MYSQL, DateTimeUTC

MAX_APPLICATION_NAME = 63

MAX_IDENTITY = 52
"""Characters of a worker's identity; the name of its lock, at most 64 on MySQL, is longer."""

HELD = "proletarian_held"
"""An execution option: the DBAPI connection, which SQLAlchemy loses when it is invalidated."""


@dataclass(frozen=True)
class Database:
    """The features of one kind of database."""

    name: str
    arrays: bool = False
    """Whether it supports array parameters, LATERAL joins and DELETE … RETURNING."""
    locks: bool = True
    """Whether it supports row locks and SKIP LOCKED."""
    requires_lease: bool = False
    """Whether workers hold jobs by leases only."""
    notifies: bool = False
    """Whether a commit can notify other connections (NOTIFY)."""
    liveness_by: Literal["connections", "locks"] | None = None
    """How other workers see that a worker is alive: by the name of its connections, or by a named
    lock that one of its connections holds. None if they cannot see it; running markers then do not
    show whether their worker is alive."""
    isolation_level: str | None = "READ COMMITTED"
    """The isolation level for the worker and its handlers; None if the database has only one."""
    deadlock_rolls_back: bool = False
    """Whether a deadlock rolls back the whole transaction and the next statement begins a new
    one."""
    now: Executable | None = None
    """Selects the database's time; None if that is the time of the host."""
    sleep: Any = None
    """The SQL function that sleeps."""
    max_connections: Executable | None = None
    """Selects how many connections the server accepts, and on PostgreSQL the id of the process that
    serves this one; None if there is no limit."""
    settings: bool = False
    """Whether it has settings that a rollback undoes and that can be local to a transaction."""
    catalogs: bool = False
    """Whether it has the catalogs of PostgreSQL, which also say what a role may do."""
    advisory_locks: bool = False
    """Whether it has advisory locks that end with the transaction."""
    skip_scans: bool = True
    """Whether it finds the first row of each group in an index without reading the others."""
    unlogged: bool = False
    """Whether a table can be UNLOGGED."""
    partitions: bool = False
    """Whether an archive can be partitioned by month."""
    partial_indexes: bool = False
    """Whether an index can have a condition."""
    schemas: bool = True
    """Whether it has schemas; SQLite has attached databases in their place."""
    splits_text: bool = False
    """Whether the values of a column can be one text that the server splits
    (``string_to_array``)."""
    limit_statements: str | None = None
    """Limits how many milliseconds the statements of the transaction may take."""
    conflict_insert: Callable[[Any], Any] | None = None
    """The ``insert`` function whose statement has ``on_conflict_do_nothing``; None if the database
    has no ON CONFLICT. There, a duplicate key undoes only the statement that failed."""

    def set_up(self, connection: Connection, name: str, pid: int | None = None) -> bool:
        """Set up one of the worker's own connections, outside of a transaction.

        :param name: the name of the connection on the server, if the database supports names.
        :param pid: the process of the server that the connection must have for itself.
        :return: whether it has; otherwise nothing is set up.
        """
        if self.notifies:
            settings = keepalive.server_settings(
                pid, local=False, application_name=name[:MAX_APPLICATION_NAME]
            )
            found = connection.scalar(settings)
            connection.commit()
            return pid is None or found == pid
        if not self.locks:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT}")
            connection.commit()
        return True

    @contextmanager
    def begin(self, connection: Connection) -> Generator[None]:
        """Begin a write transaction on one of the worker's own connections."""
        try:
            with connection.begin():
                if not self.locks:
                    # A deferred transaction, begun by an event of the engine.
                    if _in_transaction(connection):
                        connection.exec_driver_sql("ROLLBACK")
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                if self.liveness_by == "locks":
                    mysql_wait_timeout.limit(connection)
                yield
        finally:
            mysql_wait_timeout.lift(connection)

    def begun(self, connection: Connection) -> None:
        """Make sure that the transaction of a handler's session has begun and can write.

        Python's sqlite3 begins a transaction at the first write: without one, releasing a SAVEPOINT
        commits. Also, SQLite rejects the first write of a transaction that has read before, if
        another connection has written since.
        """
        if not self.locks and not _in_transaction(connection):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        if self.deadlock_rolls_back:
            connection.exec_driver_sql(f"SAVEPOINT {_WHOLE}")

    def enforces_foreign_keys(self, connection: Connection) -> bool:
        """Return whether the database enforces foreign keys, which SQLite does on request only."""
        return self.locks or bool(connection.exec_driver_sql("PRAGMA foreign_keys").scalar())

    def require_whole(self, connection: Connection) -> None:
        """Raise an error if the database has rolled back the whole transaction.

        :func:`.is_undone` is true for the error.
        """
        if self.deadlock_rolls_back:
            connection.exec_driver_sql(f"RELEASE SAVEPOINT {_WHOLE}")


_WHOLE: Final = "proletarian_whole"
"""A savepoint that no longer exists if the database has rolled back the transaction."""

_BUSY_TIMEOUT: Final = 1000
"""Milliseconds that SQLite waits for another writer before it raises SQLITE_BUSY."""

POSTGRESQL: Final = Database(
    "PostgreSQL",
    arrays=True,
    notifies=True,
    liveness_by="connections",
    now=select(func.clock_timestamp(type_=DateTime(timezone=True))),
    sleep=func.pg_sleep,
    max_connections=text(
        "SELECT CAST(current_setting('max_connections') AS integer)"
        " - CAST(current_setting('superuser_reserved_connections') AS integer), pg_backend_pid()"
    ),
    settings=True,
    catalogs=True,
    advisory_locks=True,
    unlogged=True,
    partitions=True,
    partial_indexes=True,
    splits_text=True,
    limit_statements="SET LOCAL statement_timeout = {}",
    conflict_insert=postgresql.insert,
)
PORTABLE: Final = Database(
    "a database compatible with PostgreSQL",
    requires_lease=True,
    now=POSTGRESQL.now,
    sleep=POSTGRESQL.sleep,
    skip_scans=False,
    partial_indexes=True,
    conflict_insert=postgresql.insert,
)
"""What databases that are compatible with PostgreSQL have in common.

Without connections that show whether a worker is alive, only an expired lease shows that it died.
"""
_MYSQL: Final = Database(
    "MySQL",
    deadlock_rolls_back=True,
    liveness_by="locks",
    now=select(func.utc_timestamp(6, type_=DateTimeUTC)),
    sleep=func.sleep,
    max_connections=text("SELECT @@GLOBAL.max_connections"),
)
_SQLITE: Final = Database(
    "SQLite",
    locks=False,
    requires_lease=True,
    isolation_level=None,
    partial_indexes=True,
    schemas=False,
    conflict_insert=sqlite.insert,
)
_OTHER: Final = Database("another database")

_DATABASES: Final = {
    "postgresql": POSTGRESQL,
    **dict.fromkeys(MYSQL, _MYSQL),
    "sqlite": _SQLITE,
}


def database_of(dialect: Dialect) -> Database:
    """Return the features of a dialect's database.

    :raises NotImplementedError: if the database is not supported.
    """
    database = features_of(dialect)
    if database is _OTHER:
        msg = (
            f"the supported databases are PostgreSQL, MySQL, MariaDB and SQLite, not {dialect.name}"
        )
        raise NotImplementedError(msg)
    return database


def features_of(dialect: Dialect) -> Database:
    """Return the features of a dialect's database, also if workers do not support it.

    Jobs can be enqueued on such a database, and their tables created.
    """
    if getattr(dialect, _IS_PORTABLE, False):
        return PORTABLE
    return _DATABASES.get(dialect.name, _OTHER)


_IS_PORTABLE: Final = "proletarian_is_portable"
"""The attribute of a dialect that :func:`set_portable` sets."""


def set_portable(dialect: Dialect) -> None:
    """Let all engines with this dialect use :data:`PORTABLE`.

    :raises ValueError: if it is not a dialect for PostgreSQL.
    """
    if dialect.name != "postgresql":
        msg = (
            "the plugin proletarian_portable is for databases compatible with PostgreSQL, "
            f"not for {dialect.name}: remove it from the engine"
        )
        raise ValueError(msg)
    setattr(dialect, _IS_PORTABLE, True)


def require_file(
    engine: Engine,
    who: str = "a worker",
    instead: str = "process_next_job(session, handlers) in your tests",
) -> None:
    """Raise ``ValueError`` for an in-memory SQLite database, which has only one connection.

    :param who: what needs more connections.
    :param instead: what to use in its place.
    """
    is_file = getattr(engine.dialect, "_is_url_file_db", None)
    if engine.dialect.name == "sqlite" and is_file is not None:
        url = engine.url
        in_memory = url.query.get("mode") == "memory" or "mode=memory" in (url.database or "")
        if in_memory or not is_file(url):
            msg = (
                f"{who} needs connections of its own, but an in-memory SQLite database has only "
                f"one: use a file, or {instead}"
            )
            raise ValueError(msg)


_OLDEST: Final = {"PostgreSQL": (13,), "MySQL": (8, 0, 1), "MariaDB": (10, 6)}
"""The oldest supported releases. MySQL and MariaDB have SKIP LOCKED since then."""


def require_release(dialect: Dialect) -> None:
    """Raise :class:`DatabaseNotReadyError` if the server is too old."""
    name = "MariaDB" if getattr(dialect, "is_mariadb", False) else database_of(dialect).name
    found: tuple[Any, ...] | None = getattr(dialect, "server_version_info", None)
    if name == "MariaDB":
        found = getattr(dialect, "_mariadb_normalized_version_info", None) or found
    oldest = _OLDEST.get(name)
    if oldest is None or found is None:
        return
    numbers = tuple(part for part in found if isinstance(part, int))
    if numbers < oldest:
        release, wanted = (".".join(map(str, parts)) for parts in (numbers, oldest))
        msg = f"{name} {release} is too old: {name} {wanted} or later is required"
        raise DatabaseNotReadyError(msg)


def driver_connection(connection: Connection) -> Any:
    """Return the driver's connection, also if SQLAlchemy has lost it after :data:`HELD` was set."""
    held = connection.get_execution_options().get(HELD)
    if held is None:
        held = connection.connection.dbapi_connection
    return getattr(held, "driver_connection", held)


def _in_transaction(connection: Connection) -> bool:
    return bool(driver_connection(connection).in_transaction)
