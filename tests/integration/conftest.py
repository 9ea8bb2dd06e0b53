"""The shop's tables, a clock, and the kinds of worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from . import orders  # noqa: F401 - their tables are the shop's, too
from .kinds import KINDS, LEASE, Kind
from .support import ManualClock, Shop


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of worker."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def _shop_tables(_shared_database: URL) -> None:
    engine = create_engine(_shared_database)
    Shop.metadata.create_all(engine)
    engine.dispose()


@pytest.fixture
def shop(engine: Engine, _shop_tables: None) -> Iterator[Engine]:
    """The engine of a database that has the shop's tables too, empty."""
    yield engine
    with engine.begin() as connection:
        for table in reversed(Shop.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture(params=["psycopg", "asyncpg"])
def loop_engine(request: pytest.FixtureRequest, url: URL) -> AsyncEngine:
    """An engine for event loops, with each driver; see ``in_a_loop``, which disposes of it."""
    pytest.importorskip(request.param)
    return create_async_engine(url.set(drivername=f"postgresql+{request.param}"))


@pytest.fixture(params=[{}, {"lease": LEASE}], ids=["transaction", "lease"])
def held(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The option that says how a worker holds its jobs."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()
