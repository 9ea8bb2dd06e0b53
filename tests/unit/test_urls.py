"""Tests of the conversion of an application's URL for the migrations."""

from __future__ import annotations

import pytest

from sqlalchemy_proletarian.database.urls import sync_url


@pytest.mark.parametrize(
    ("given", "expected"),
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
def test_an_async_driver_is_replaced_by_a_sync_one(given: str, expected: str) -> None:
    """Sync drivers and the other parts of the URL do not change."""
    assert sync_url(given).render_as_string(hide_password=False) == expected
