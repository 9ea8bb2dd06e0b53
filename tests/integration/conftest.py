"""Fixtures: the tables of the shop, a clock, and the kinds of worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from . import orders  # noqa: F401 - adds tables to Shop.metadata
from .kinds import KINDS, LEASE, Kind
from .support import ManualClock, Shop


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Return each kind of worker."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def _shop_tables(_shared_database: URL) -> None:
    engine = create_engine(_shared_database)
    Shop.metadata.create_all(engine)
    engine.dispose()


@pytest.fixture
def shop(engine: Engine, _shop_tables: None) -> Iterator[Engine]:
    """Yield the engine of a database with the tables of the shop, and empty them afterwards."""
    yield engine
    with engine.begin() as connection:
        for table in reversed(Shop.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture(params=["psycopg", "asyncpg"])
def loop_engine(request: pytest.FixtureRequest, url: URL) -> AsyncEngine:
    """Return an async engine with each driver; ``in_a_loop`` disposes of it."""
    pytest.importorskip(request.param)
    return create_async_engine(url.set(drivername=f"postgresql+{request.param}"))


@pytest.fixture(params=[{}, {"lease": LEASE}], ids=["transaction", "lease"])
def held(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the options of a worker in transaction mode and in lease mode."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still."""
    return ManualClock()
