"""One line for an error that a person meets at the command line, with the remedy."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DBAPIError, NoSuchModuleError

from ..database.error_codes import code_of

_HINTS: Final[dict[str | int, str]] = {
    "42P07": "the tables were created by other means: see 'proletarian migrate check'",
    "42P01": "some or all of the tables do not exist: see 'proletarian migrate check'",
    "42501": (
        "ask an administrator to GRANT CREATE on it to the role, or to create a schema for the "
        "role: CREATE SCHEMA … AUTHORIZATION …"
    ),
}
"""A hint at the probable cause, by the code of the error."""

_CONNECTING: Final = {
    "password authentication failed": "check the user and the password in the URL",
    "Access denied for user": "check the user and the password in the URL",
    "no password supplied": "add the password to the URL, or put it in ~/.pgpass",
    "Connection refused": "does the server run there? Check the host and the port in the URL",
    "No such file or directory": "does the server run? Check the host and the port in the URL",
    "Name or service not known": "check the host in the URL",
    "could not translate host name": "check the host in the URL",
    "failed to resolve host": "check the host in the URL",
    "timeout expired": "check the host and the port in the URL, and the firewall",
    "timed out": "check the host and the port in the URL, and the firewall",
    'role "': "check the user in the URL",
    'database "': "check the name of the database in the URL, or create it",
    "Unknown database": "check the name of the database in the URL, or create it",
    "unable to open database file": "check the path in the URL",
}
"""A hint by the words of a message that has no code, as those about connections have none."""

_DRIVERS: Final = {
    "psycopg": "pip install 'sqlalchemy-proletarian[binary]'",
    "psycopg2": "pip install psycopg2-binary, or write postgresql:// to use psycopg 3",
    "MySQLdb": "pip install mysqlclient, or write mysql+pymysql:// and pip install PyMySQL",
    "pymysql": "pip install PyMySQL",
    "cronsim": "pip install 'sqlalchemy-proletarian[recurring]'",
}
"""How to install a module that is missing."""


def one_line(error: Exception) -> str:
    """Return an error as one line."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        # The driver's message without the statement; it has one line for each host of the URL.
        line = " ".join(str(error.orig).split())
        hint = _HINTS.get(code_of(error) or "") or _hint_of_words(line)
        return f"{line} ({hint})" if hint else line
    line = str(error).partition("\n")[0]
    if isinstance(error, ModuleNotFoundError) and error.name in _DRIVERS:
        return f"{line}: {_DRIVERS[error.name]}"
    if "pq wrapper" in line or "psycopg_binary" in line:
        return f"{line.rstrip('.')}: {_DRIVERS['psycopg']}"
    if isinstance(error, NoSuchModuleError):
        return (
            f"{line}: the URL must begin with postgresql://, mysql+pymysql://, mariadb+pymysql:// "
            f"or sqlite:///"
        )
    return line or type(error).__name__


def _hint_of_words(line: str) -> str | None:
    return next((hint for words, hint in _CONNECTING.items() if words in line), None)
