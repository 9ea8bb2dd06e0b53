"""Database URLs for code that runs without an event loop: migrations and the command line."""

from __future__ import annotations

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
