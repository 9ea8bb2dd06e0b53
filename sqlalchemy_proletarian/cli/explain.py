"""One line for an error that a person meets at the command line, with the remedy."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..database.error_codes import MISSING, code_of, refusal_of
from ..errors import ProletarianError

_CREATE: Final = (
    "some or all of the tables do not exist: create them with 'proletarian migrate upgrade', or "
    "compare them with 'proletarian migrate check'"
)

_HINTS: Final[dict[str | int, str]] = {
    "42P07": "the tables were created by other means: see 'proletarian migrate check'",
    "42501": (
        "ask an administrator to GRANT CREATE on it to the role, or to create a schema for the "
        "role: CREATE SCHEMA … AUTHORIZATION …"
    ),
}
"""A hint at the probable cause, by the code of the error."""

_REMEDIES: Final = [
    (r"no password supplied", "add the password to the URL, or put it in ~/.pgpass"),
    (
        r"authentication failed|access denied|InvalidPassword",
        "check the user and the password of the URL",
    ),
    (r'role "[^"]*" does not exist', "check the user of the URL, or create the role"),
    (
        r'database "[^"]*" does not exist|unknown database',
        "check the database of the URL, or create it",
    ),
    (
        r"translate host name|service not known|nodename nor servname|resolv|Errno -[235]\b",
        "check the host of the URL",
    ),
    (
        r"connection refused|connect call failed|can't connect|no such file|Errno 111|Errno 2\b",
        "is the database server running, and are the host and port correct?",
    ),
    (
        r"timeout|timed out|did not answer",
        "the host does not answer: check the host and port of the URL, and firewalls",
    ),
    (
        r"unable to open database file",
        "create the directory of the file, or correct its path in the URL",
    ),
    (r"ssl|certificate", "check the SSL options of the URL, such as ?sslmode=require"),
    (
        r"too many (clients|connections)|connection slots are reserved",
        "raise the server's max_connections, or run fewer processes",
    ),
]
"""Remedies by what a driver says, whichever it is; the first that fits."""

_PACKAGES: Final = {
    "MySQLdb": "mysqlclient, or write mysql+pymysql:// and pip install PyMySQL",
    "cronsim": "'sqlalchemy-proletarian[recurring]'",
    "greenlet": "'sqlalchemy-proletarian[asyncio]'",
    "psycopg": "'sqlalchemy-proletarian[binary]'",
    "psycopg2": "psycopg2-binary, or write postgresql:// to use psycopg 3",
    "pymysql": "PyMySQL",
}
"""What to install for a missing module, if its name is another one."""


def where_is(url: URL) -> str:
    """Return a URL without its password, and without options, which may contain one."""
    others = [name for name in url.query if name != "host"]
    return url._replace(password=None).difference_update_query(others).render_as_string()


def one_line(error: BaseException, url: URL | None = None) -> str:
    """Return an error as one line.

    :param url: the URL of the database, if it is known; it is shown without the password.
    """
    return message_of(error, url) or f"{type(error).__name__}: {' '.join(str(error).split())}"


def message_of(error: BaseException, url: URL | None = None) -> str | None:
    """Return one line for an error that is not a defect of this library; None for any other."""
    if isinstance(error, NoSuchModuleError | ImportError):
        return _missing_module(error)
    if isinstance(error, ProletarianError):
        return " ".join(str(error).split())
    if isinstance(error, OSError | PoolTimeoutError | DBAPIError):
        if url is not None and getattr(error, "statement", None) is None:
            return cannot_connect_message(error, url)
        return _with_remedy(_said(error), error)
    if isinstance(error, SQLAlchemyError | ValueError | TypeError | NotImplementedError):
        return " ".join(str(error).partition("\n(Background on")[0].split())
    return None


def cannot_connect_message(error: BaseException, url: URL) -> str:
    """Return one line for an error of connecting to a database."""
    return f"cannot connect to {where_is(url)}: {_with_remedy(_said(error), error)}"


def _with_remedy(text: str, error: BaseException) -> str:
    remedy = _HINTS.get(code_of(error) or "") if isinstance(error, DBAPIError) else None
    if isinstance(error, DBAPIError) and error.statement and refusal_of(error) == MISSING:
        remedy = _CREATE
    remedy = remedy or next(
        (remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE)), None
    )
    return f"{text} ({remedy})" if remedy else text


def _said(error: BaseException) -> str:
    """Return what the driver said, without the statement and what SQLAlchemy adds."""
    raised = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = str(raised)
    if isinstance(raised.args[:1], tuple) and [type(a) for a in raised.args] == [int, str]:
        text = raised.args[1]  # MySQL's drivers show a tuple of the code and the text
    text = re.sub(r"\nLINE \d+: .*\n *\^", "", text)  # where in a statement of ours
    text = " ".join(text.split())
    text = re.sub(r"^<class '[^']*'>: ", "", text)  # asyncpg's errors
    text = re.sub(
        r"^(connection failed: |connection is bad: )?connection to server ",
        "connection to server ",
        text,
    )
    text = text.partition(" Multiple connection attempts failed.")[0]
    text = re.sub(r" Is the server running (on|locally)[^?]*\?", "", text)  # we ask so, too
    return text or type(raised).__name__


def _missing_module(error: ImportError | SQLAlchemyError) -> str:
    """Return one line for a driver or an extra that is not installed."""
    text = " ".join(str(error).split())
    if isinstance(error, NoSuchModuleError):
        name = text.rpartition(":")[2]
        return (
            f"there is no SQLAlchemy dialect {name!r}: the URL must begin with postgresql://, "
            f"mysql+pymysql://, mariadb+pymysql:// or sqlite:///"
        )
    if "pq wrapper" in text or "psycopg_binary" in text:
        return f"psycopg finds no libpq: pip install {_PACKAGES['psycopg']}"
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    if "pip install" in text:
        return text
    if missing and isinstance(error, ModuleNotFoundError):
        package = _PACKAGES.get(missing, missing)
        return f"the module {missing} is not installed: pip install {package}"
    if "greenlet" in text:
        return f"{text.partition('.')[0]}: pip install {_PACKAGES['greenlet']}"
    return text
