"""The meaning of a database's errors, by their codes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from sqlalchemy.exc import DBAPIError, OperationalError


def code_of(error: DBAPIError) -> str | int | None:
    """Return the error code of the database; None if the error does not come from the database.

    The code is a SQLSTATE on PostgreSQL, a number on MySQL and MariaDB, and a name on SQLite.
    """
    orig: Any = error.orig
    first = orig.args[0] if getattr(orig, "args", ()) else None
    if isinstance(first, int):  # some MySQL drivers also have a SQLSTATE, which is less specific
        return first
    for attribute in ("sqlstate", "pgcode", "sqlite_errorname"):
        code: str | None = getattr(orig, attribute, None)
        if code is not None:
            return code
    return None


_POSTGRESQL_LOST: Final = ("08", "57P", "53300")
"""Prefixes of SQLSTATEs: connection exceptions, server shutdown, too many connections."""

NOT_READY_NODE: Final = 1047
"""A node of a Galera cluster that is cut off from the others, or has just joined them."""

_MYSQL_LOST: Final = frozenset(
    {
        *(1040, 1053, 1077, 1079, 1129, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1226, 1927, 4031),
        NOT_READY_NODE,
    }
)
"""Too many connections, server shutdown, a connection that was killed or timed out."""
_MYSQL_CLIENT: Final = range(2000, 3000)
"""Client errors: except for some programming errors, all are about the connection."""


def is_unreachable(error: DBAPIError) -> bool:
    """Return whether an error's code, or the lack of one, means that the server is unreachable."""
    code = code_of(error)
    if code is None:
        return isinstance(error, OperationalError)
    if isinstance(code, int):
        return code in _MYSQL_LOST or code in _MYSQL_CLIENT
    return not code.startswith("SQLITE") and code.startswith(_POSTGRESQL_LOST)


_MYSQL_DEADLOCK, _MYSQL_LOCK_WAIT, _MYSQL_NO_SAVEPOINT = 1213, 1205, 1305


def is_conflict(error: BaseException) -> bool:
    """Return whether a statement failed because of another session's lock and can be retried."""
    if not isinstance(error, DBAPIError):
        return False
    code = code_of(error)
    if isinstance(code, str):
        return code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    return code in (_MYSQL_DEADLOCK, _MYSQL_LOCK_WAIT)


def is_lock_timeout(error: DBAPIError) -> bool:
    """Return whether a statement of PostgreSQL has waited for a lock as long as it may."""
    return code_of(error) == "55P03"


def is_busy(error: BaseException) -> bool:
    """Return whether an error is from SQLite, because another connection was writing."""
    return isinstance(error, DBAPIError) and is_conflict(error) and isinstance(code_of(error), str)


def is_undone(error: BaseException | None) -> bool:
    """Return whether an error means that the whole transaction was rolled back, with its locks.

    At a deadlock, MySQL and MariaDB roll back the whole transaction, including its savepoints, and
    continue in a new one. Code that goes on regardless gets an error that a SAVEPOINT does not
    exist.
    """
    codes = _MYSQL_DEADLOCK, _MYSQL_NO_SAVEPOINT
    return any(
        isinstance(cause, DBAPIError) and code_of(cause) in codes for cause in causes_of(error)
    )


def said_by_driver(error: BaseException) -> str:
    """Return the first line of a driver's message: the statement and the row are in others."""
    said = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return str(said).partition("\n")[0]


def causes_of(error: BaseException | None) -> Generator[BaseException]:
    """Yield an error and its causes and contexts."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


# Errors that are not the fault of a job: see :mod:`.requirements`.

MISSING, MISMATCH, NULL, REFUSED, READ_ONLY = "missing", "mismatch", "null", "refused", "read-only"
PREPARED: Final = "prepared"

_REFUSALS: Final[dict[str | int, str]] = {
    **dict.fromkeys(("42P01", "3F000", 1146, 1049), MISSING),
    # Undefined column, wrong type, no operator for the type, no unique index for ON CONFLICT.
    **dict.fromkeys(("42703", "42804", "42883", "42P10", 1054), MISMATCH),
    **dict.fromkeys(("23502", 1364), NULL),
    **dict.fromkeys(("42501", 1044, 1142, 1143), REFUSED),
    **dict.fromkeys(("25006", 1290, 1792, 1836), READ_ONLY),
    # A prepared statement exists already, or does not exist: it is another client's of a pooler.
    **dict.fromkeys(("42P05", "26000"), PREPARED),
}
_SQLITE_REFUSALS: Final = {
    "no such table": MISSING,
    "unknown database": MISSING,
    "no such column": MISMATCH,
    "has no column named": MISMATCH,
    "readonly database": READ_ONLY,
}


def is_wrong_server(error: BaseException) -> bool:
    """Return whether an error says that the server takes no writes now, and another one may.

    It is a standby, or a node of a cluster that is cut off from the others.
    """
    if not isinstance(error, DBAPIError):
        return False
    return refusal_of(error) == READ_ONLY or code_of(error) == NOT_READY_NODE


def refusal_of(error: DBAPIError) -> str | None:
    """Return the kind of an error whose cause has to be fixed in the database; else None."""
    code = code_of(error)
    if isinstance(code, str) and code.startswith("SQLITE"):
        said = str(error.orig)
        return next((sort for words, sort in _SQLITE_REFUSALS.items() if words in said), None)
    return None if code is None else _REFUSALS.get(code)
