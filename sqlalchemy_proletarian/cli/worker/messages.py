"""Errors that a person meets when a worker starts, as one line with the remedy."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ...errors import DatabaseNotReadyError, ProletarianError

_PACKAGES: Final = {
    "MySQLdb": "mysqlclient",
    "asyncmy": "asyncmy",
    "aiosqlite": "aiosqlite",
    "asyncpg": "asyncpg",
    "greenlet": "'sqlalchemy-proletarian[asyncio]'",
    "psycopg": "'sqlalchemy-proletarian[binary]'",
    "psycopg2": "psycopg2-binary",
    "pymysql": "PyMySQL",
}
"""What to install for a missing module."""

_REMEDIES: Final = [
    (
        r"authentication failed|access denied|no password supplied|InvalidPassword",
        "check the user and the password of the URL",
    ),
    (
        r'role "[^"]*" does not exist',
        "check the user of the URL, or create the role",
    ),
    (
        r'database "[^"]*" does not exist|unknown database',
        "check the database of the URL, or create it",
    ),
    (
        r"connection refused|connect call failed|can't connect|no such file|Errno 111|Errno 2\b",
        "is the database server running, and are the host and port correct?",
    ),
    (
        r"translate host name|service not known|nodename nor servname|resolv|Errno -[235]\b",
        "check the host of the URL",
    ),
    (
        r"timeout|timed out|did not answer",
        "the host does not answer: check the host and port of the URL, and firewalls",
    ),
    (
        r"unable to open database file",
        "create the directory of the file, or correct its path in the URL",
    ),
    (
        r"ssl|certificate",
        "check the SSL options of the URL, such as ?sslmode=require",
    ),
    (
        r"too many (clients|connections)|connection slots are reserved",
        "raise the server's max_connections, or run fewer processes",
    ),
]
"""Remedies by what a driver says, whichever it is; the first that fits."""


def where_is(url: URL) -> str:
    """Return a URL without its password."""
    return url.render_as_string(hide_password=True).replace(":***@", "@")


def cannot_connect_message(error: BaseException, url: URL) -> str:
    """Return one line for an error of connecting to a database."""
    text = _driver_text(error)
    remedy = next(
        (remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE)), None
    )
    line = f"cannot connect to {where_is(url)}: {text}"
    return f"{line} ({remedy})" if remedy else line


def missing_module_message(error: ImportError | SQLAlchemyError) -> str:
    """Return one line for a driver or an extra that is not installed."""
    text = " ".join(str(error).split())
    if isinstance(error, NoSuchModuleError):
        name = text.rpartition(":")[2]
        return (
            f"there is no SQLAlchemy dialect {name!r}: the URL must begin with postgresql://, "
            f"mysql+pymysql://, mariadb+pymysql:// or sqlite:///"
        )
    if "pq wrapper" in text or "psycopg_binary" in text:
        return "psycopg finds no libpq: pip install 'sqlalchemy-proletarian[binary]'"
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    if missing in _PACKAGES and "pip install" not in text:
        return f"the module {missing} is not installed: pip install {_PACKAGES[missing]}"
    if missing and isinstance(error, ModuleNotFoundError) and "pip install" not in text:
        return f"the module {missing} is not installed: pip install {missing}"
    if "greenlet" in text and "pip install" not in text:
        return f"{text.partition('.')[0]}: pip install {_PACKAGES['greenlet']}"
    return text


def message_of(error: BaseException, url: URL | None) -> str | None:
    """Return one line for an error that is not a defect; None for any other.

    :param url: the URL of the database, if it is known.
    """
    if isinstance(error, NoSuchModuleError | ImportError):
        return missing_module_message(error)
    if isinstance(error, DatabaseNotReadyError | ProletarianError):
        return " ".join(str(error).split())
    if isinstance(error, OSError | PoolTimeoutError | DBAPIError) and url is not None:
        if isinstance(error, DBAPIError) and error.statement is not None:
            return f"{where_is(url)}: {_driver_text(error)}"
        return cannot_connect_message(error, url)
    if isinstance(error, SQLAlchemyError | ValueError | TypeError | NotImplementedError):
        return " ".join(str(error).partition("\n(Background on")[0].split())
    return None


def _driver_text(error: BaseException) -> str:
    """Return what the driver said, without the statement and what SQLAlchemy adds."""
    raised = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = " ".join(str(raised).split())
    text = re.sub(r"^<class '[^']*'>: ", "", text)  # asyncpg's errors
    text = re.sub(r"^(connection failed: )?connection to server ", "connection to server ", text)
    text = text.partition(" Multiple connection attempts failed.")[0]
    text = re.sub(r" Is the server running (on|locally)[^?]*\?", "", text)  # we ask so, too
    return text or type(raised).__name__
