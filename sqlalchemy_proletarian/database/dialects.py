"""What each database can do, and how it says what went wrong: the one place that knows dialects.

PostgreSQL has all that the worker wants. MySQL and MariaDB lock rows and skip those of others, but
announce nothing. SQLite has one writer at a time and locks no rows, so jobs are held by leases.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, DateTime, Dialect, Engine, Executable, func, select
from sqlalchemy.exc import DBAPIError, OperationalError

from ..errors import DatabaseNotReadyError
from . import keepalive
from . import mysql_wait_timeout as silence
from .column_types import MYSQL, DateTimeUTC

MAX_APPLICATION_NAME = 63

MAX_IDENTITY = 52
"""Characters of a worker's identity; a lock of its name has some more, on MySQL 64 at most."""

HELD = "proletarian_held"
"""An execution option: the connection as SQLAlchemy adapts the driver's, for when it forgets it."""


@dataclass(frozen=True)
class Database:
    """What one kind of database can do."""

    name: str
    arrays: bool = False
    """Whether it takes lists as one parameter, joins LATERAL and returns what it deletes."""
    locks: bool = True
    """Whether a transaction can lock rows, and skip those that others have locked."""
    announces: bool = False
    """Whether a commit can wake others: NOTIFY."""
    shows: Literal["connections", "locks"] | None = None
    """By what others see that a worker lives: its connections carry its name, or one of them holds
    a lock of that name. None: not at all, and running markers say nothing."""
    isolation_level: str | None = "READ COMMITTED"
    """What the worker and its handlers need, where there are several."""
    undoes_all: bool = False
    """Whether a deadlock undoes all of a transaction, and the next statement begins a new one."""
    now: Executable | None = None
    """Asks for the time; None where it is that of the host."""
    sleep: Any = None
    """The function that waits in the server."""
    settings: bool = False
    """Whether it has settings that a rollback undoes, and that may end with the transaction."""

    def set_up(self, connection: Connection, name: str) -> None:
        """Set up a connection of the worker's own, outside of a transaction.

        :param name: what the server calls it, where it calls it anything.
        """
        if self.announces:
            connection.execute(
                keepalive.at_the_servers_end(
                    local=False, application_name=name[:MAX_APPLICATION_NAME]
                )
            )
            connection.commit()
        elif not self.locks:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT}")
            connection.commit()

    @contextmanager
    def begin(self, connection: Connection) -> Generator[None]:
        """Begin a transaction of the worker's own that is going to write."""
        try:
            with connection.begin():
                if not self.locks:
                    if _in_transaction(connection):  # deferred, begun by an event of the engine's
                        connection.exec_driver_sql("ROLLBACK")
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                if self.shows == "locks":
                    silence.limit(connection)
                yield
        finally:
            silence.lift(connection)

    def begun(self, connection: Connection) -> None:
        """Make sure that the transaction of a handler's session has begun, and can write.

        Python's sqlite3 begins it with the first change: a SAVEPOINT before that would commit what
        it holds. And what has read before it writes is refused when somebody else wrote meanwhile.
        """
        if not self.locks and not _in_transaction(connection):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        if self.undoes_all:
            connection.exec_driver_sql(f"SAVEPOINT {_WHOLE}")

    def heeds_foreign_keys(self, connection: Connection) -> bool:
        """Tell whether rows go with those that they refer to: SQLite has to be asked for it."""
        return self.locks or bool(connection.exec_driver_sql("PRAGMA foreign_keys").scalar())

    def require_whole(self, connection: Connection) -> None:
        """Raise an error that :func:`is_undone` if the transaction is not the one that begun."""
        if self.undoes_all:
            connection.exec_driver_sql(f"RELEASE SAVEPOINT {_WHOLE}")


_WHOLE: Final = "proletarian_whole"
"""A savepoint that is gone when the database has undone the transaction."""

_BUSY_TIMEOUT: Final = 1000
"""Milliseconds that SQLite waits for whoever writes, before it says that it is busy."""

POSTGRESQL: Final = Database(
    "PostgreSQL",
    arrays=True,
    announces=True,
    shows="connections",
    now=select(func.clock_timestamp(type_=DateTime(timezone=True))),
    sleep=func.pg_sleep,
    settings=True,
)
_MYSQL: Final = Database(
    "MySQL",
    undoes_all=True,
    shows="locks",
    now=select(func.utc_timestamp(6, type_=DateTimeUTC)),
    sleep=func.sleep,
)
_SQLITE: Final = Database("SQLite", locks=False, isolation_level=None)

_DATABASES: Final = {
    "postgresql": POSTGRESQL,
    **dict.fromkeys(MYSQL, _MYSQL),
    "sqlite": _SQLITE,
}


def database_of(dialect: Dialect) -> Database:
    """Return what the database of a dialect can do.

    :raises NotImplementedError: if it is one that nobody has tried.
    """
    database = _DATABASES.get(dialect.name)
    if database is None:
        msg = f"jobs are run on PostgreSQL, MySQL, MariaDB and SQLite, not on {dialect.name}"
        raise NotImplementedError(msg)
    return database


def require_file(engine: Engine) -> None:
    """Raise ``ValueError`` for a SQLite database in memory: it has one connection only."""
    is_file = getattr(engine.dialect, "_is_url_file_db", None)
    if engine.dialect.name == "sqlite" and is_file is not None:
        url = engine.url
        in_memory = url.query.get("mode") == "memory" or "mode=memory" in (url.database or "")
        if in_memory or not is_file(url):
            msg = (
                "a worker needs connections of its own, and a SQLite database in memory has one: "
                "use a file, or process_next_job(session, handlers) in your tests"
            )
            raise ValueError(msg)


_OLDEST: Final = {"PostgreSQL": (13,), "MySQL": (8, 0, 1), "MariaDB": (10, 6)}
"""The first release that has what we need: SKIP LOCKED, but for PostgreSQL."""


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
        msg = f"{name} {release} is too old: jobs are run on {name} {wanted} or later"
        raise DatabaseNotReadyError(msg)


def driver_connection(connection: Connection) -> Any:
    """Return the driver's own connection, which SQLAlchemy's accessor forgets with detaching."""
    held = connection.get_execution_options().get(HELD)
    if held is None:
        held = connection.connection.dbapi_connection
    return getattr(held, "driver_connection", held)


def _in_transaction(connection: Connection) -> bool:
    return bool(driver_connection(connection).in_transaction)


# What an error says.


def code_of(error: DBAPIError) -> str | int | None:
    """Return the database's code of an error, if it is the database that speaks.

    That is a SQLSTATE of PostgreSQL, a number of MySQL and MariaDB, a name of SQLite.
    """
    orig: Any = error.orig
    first = orig.args[0] if getattr(orig, "args", ()) else None
    if isinstance(first, int):  # some drivers for MySQL add a SQLSTATE, which says less
        return first
    for attribute in ("sqlstate", "pgcode", "sqlite_errorname"):
        code: str | None = getattr(orig, attribute, None)
        if code is not None:
            return code
    return None


_PG_GONE: Final = ("08", "57P", "53300")
"""How a SQLSTATE begins: connection exceptions, the server's shutdown, no connection to spare."""

_MYSQL_GONE: Final = frozenset(
    {1040, 1053, 1077, 1079, 1129, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1226, 1927, 4031}
)
"""No connection to spare, the server's shutdown, a connection that was killed or timed out."""
_MYSQL_CLIENT: Final = range(2000, 3000)
"""What the client's side says, of connections all of it but for some errors of programming."""


def is_unreachable(error: DBAPIError) -> bool:
    """Tell whether the database says with its code, or by saying nothing, that it is gone."""
    code = code_of(error)
    if code is None:
        return isinstance(error, OperationalError)
    if isinstance(code, int):
        return code in _MYSQL_GONE or code in _MYSQL_CLIENT
    return not code.startswith("SQLITE") and code.startswith(_PG_GONE)


_MYSQL_DEADLOCK, _MYSQL_LOCK_WAIT, _MYSQL_NO_SAVEPOINT = 1213, 1205, 1305


def is_conflict(error: BaseException) -> bool:
    """Tell whether a statement of ours met somebody else's lock, and may be tried again."""
    if not isinstance(error, DBAPIError):
        return False
    code = code_of(error)
    if isinstance(code, str):
        return code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    return code in (_MYSQL_DEADLOCK, _MYSQL_LOCK_WAIT)


def is_busy(error: BaseException) -> bool:
    """Tell whether an error is SQLite's, whose one writer somebody else was all the time."""
    return isinstance(error, DBAPIError) and is_conflict(error) and isinstance(code_of(error), str)


def is_undone(error: BaseException | None) -> bool:
    """Tell whether an error comes of this: the whole transaction is gone, and its locks with it.

    MySQL and MariaDB undo all of it at a deadlock, savepoints included, and go on in a new one.
    Who does not heed that finds that a SAVEPOINT is no more.
    """
    codes = _MYSQL_DEADLOCK, _MYSQL_NO_SAVEPOINT
    return any(
        isinstance(cause, DBAPIError) and code_of(cause) in codes for cause in causes_of(error)
    )


def causes_of(error: BaseException | None) -> Generator[BaseException]:
    """Yield an error, and those that it was raised for."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


# Refusals that say nothing about a job: see readiness.py.

MISSING, MISMATCH, NULL, REFUSED, READ_ONLY = "missing", "mismatch", "null", "refused", "read-only"

_REFUSALS: Final[dict[str | int, str]] = {
    **dict.fromkeys(("42P01", "3F000", 1146, 1049), MISSING),
    # No such column, another type, no operator for it, no unique index for ON CONFLICT.
    **dict.fromkeys(("42703", "42804", "42883", "42P10", 1054), MISMATCH),
    **dict.fromkeys(("23502", 1364), NULL),
    **dict.fromkeys(("42501", 1044, 1142, 1143), REFUSED),
    **dict.fromkeys(("25006", 1290, 1792, 1836), READ_ONLY),
}
_SQLITE_REFUSALS: Final = {
    "no such table": MISSING,
    "unknown database": MISSING,
    "no such column": MISMATCH,
    "has no column named": MISMATCH,
    "readonly database": READ_ONLY,
}


def refusal_of(error: DBAPIError) -> str | None:
    """Return which sort of refusal an error is, if it is one that somebody has to mend."""
    code = code_of(error)
    if isinstance(code, str) and code.startswith("SQLITE"):
        said = str(error.orig)
        return next((sort for words, sort in _SQLITE_REFUSALS.items() if words in said), None)
    return None if code is None else _REFUSALS.get(code)
