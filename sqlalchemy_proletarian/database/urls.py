"""Database URLs for code that runs without an event loop: migrations and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import URL, make_url

_DRIVERS: Final = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+asyncpg": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
    "mysql+aiomysql": "mysql+pymysql",
    "mysql+asyncmy": "mysql+pymysql",
    "mariadb+aiomysql": "mariadb+pymysql",
    "mariadb+asyncmy": "mariadb+pymysql",
    "sqlite+aiosqlite": "sqlite",
}
"""The replacements of drivers that cannot be used here."""

_ASYNCPG: Final = ("prepared_statement_cache_size", "prepared_statement_name_func")
"""Options of a URL that asyncpg accepts and psycopg rejects."""


def sync_url(url: URL | str) -> URL:
    """Return a URL of the same database with a driver that needs no event loop.

    A URL that already has such a driver is returned unchanged. The options of asyncpg that have a
    different name in psycopg are translated.

    :raises sqlalchemy.exc.ArgumentError: if ``url`` is not a valid URL.
    """
    given = make_url(url)
    drivername = _DRIVERS.get(given.drivername, given.drivername)
    found = given.set(drivername=drivername)
    if given.drivername != "postgresql+asyncpg":
        return found
    mode = given.query.get("ssl")
    found = found.difference_update_query((*_ASYNCPG, "ssl"))
    return found if mode is None else found.update_query_dict({"sslmode": mode})


def has_several_hosts(url: URL) -> bool:
    """Return whether a URL of PostgreSQL names several hosts."""
    hosts = url.query.get("host", ())
    return not isinstance(hosts, str) and len(hosts) > 1


_ASYNC_DRIVERS: Final = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg2": "postgresql+psycopg",
    "mysql": "mysql+asyncmy",
    "mysql+pymysql": "mysql+asyncmy",
    "mysql+mysqldb": "mysql+asyncmy",
    "mariadb": "mariadb+asyncmy",
    "mariadb+pymysql": "mariadb+asyncmy",
    "mariadb+mysqldb": "mariadb+asyncmy",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+pysqlite": "sqlite+aiosqlite",
}
"""The replacements of drivers that cannot be used in an event loop."""


def async_url(url: URL | str) -> URL:
    """Return a URL of the same database with a driver for an event loop.

    A URL that already has such a driver is returned unchanged.

    :raises sqlalchemy.exc.ArgumentError: if ``url`` is not a valid URL.
    """
    given = make_url(url)
    return given.set(drivername=_ASYNC_DRIVERS.get(given.drivername, given.drivername))


_LIBPQ: Final = {
    "connect_timeout": "10",
    "keepalives_idle": "5",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "14000",
}
"""With these, libpq notices within seconds that a host has vanished."""

_TIMEOUTS: Final[dict[str, dict[str, str]]] = {
    "psycopg": _LIBPQ,
    "psycopg2": _LIBPQ,
    "pymysql": {"connect_timeout": "10"},
    "mysqldb": {"connect_timeout": "10"},
}
"""The options of drivers by which a connection is given up."""


def impatient(url: URL) -> URL:
    """Return a URL whose connections do not wait for minutes for a host that does not answer.

    Options that the URL has stay as they are.
    """
    options = _TIMEOUTS.get(url.get_driver_name(), {})
    return url.update_query_dict({k: v for k, v in options.items() if k not in url.query})


def require_existing(url: URL) -> None:
    """Raise ``ValueError`` for a SQLite file that does not exist: connecting would create it."""
    if url.get_backend_name() != "sqlite" or "uri" in url.query:
        return
    if url.database in (None, "", ":memory:"):
        msg = "an in-memory SQLite database has no jobs: the URL must name a file, sqlite:///path"
        raise ValueError(msg)
    path = Path(url.database or "").absolute()
    if not path.is_file():
        msg = f"there is no SQLite database {path}: create it with 'proletarian migrate upgrade'"
        raise ValueError(msg)
