"""A database's URL, for work that is done without an event loop: migrations, the command line."""

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
"""What serves where the application's own driver does not."""

_ASYNCPG: Final = ("prepared_statement_cache_size", "prepared_statement_name_func")
"""What a URL may say to asyncpg, and psycopg would refuse to hear."""


def sync_url(url: URL | str) -> URL:
    """Return the URL with a driver that needs no event loop, and the same database.

    A URL that names such a driver is returned as it is. The options of asyncpg that have another
    name with psycopg are translated.

    :raises sqlalchemy.exc.ArgumentError: if it is no URL.
    """
    given = make_url(url)
    drivername = _DRIVERS.get(given.drivername, given.drivername)
    found = given.set(drivername=drivername)
    if given.drivername != "postgresql+asyncpg":
        return found
    mode = given.query.get("ssl")
    found = found.difference_update_query((*_ASYNCPG, "ssl"))
    return found if mode is None else found.update_query_dict({"sslmode": mode})
