"""The URL of an application serves its migrations."""

from __future__ import annotations

import pytest

from sqlalchemy_proletarian.database.urls import sync_url


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("postgres://u:p%40@h:1/d", "postgresql+psycopg://u:p%40@h:1/d"),
        ("postgresql://h/d?sslmode=require", "postgresql+psycopg://h/d?sslmode=require"),
        ("postgresql+psycopg_async://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg2://h/d", "postgresql+psycopg2://h/d"),
        ("postgresql+asyncpg://h/d", "postgresql+psycopg://h/d"),
        (
            "postgresql+asyncpg://h/d?ssl=require&prepared_statement_cache_size=0&target=x",
            "postgresql+psycopg://h/d?sslmode=require&target=x",
        ),
        ("mysql+asyncmy://h/d?charset=utf8mb4", "mysql+pymysql://h/d?charset=utf8mb4"),
        ("mysql+aiomysql://h/d", "mysql+pymysql://h/d"),
        ("mysql+mysqldb://h/d", "mysql+mysqldb://h/d"),
        ("mariadb+asyncmy://h/d", "mariadb+pymysql://h/d"),
        ("mariadb+aiomysql://h/d", "mariadb+pymysql://h/d"),
        ("sqlite+aiosqlite:///jobs.db", "sqlite:///jobs.db"),
        ("sqlite://", "sqlite://"),
    ],
)
def test_sync_url(given: str, found: str) -> None:
    """A driver for event loops is replaced by its sister; all else is kept as it is."""
    assert sync_url(given).render_as_string(hide_password=False) == found
