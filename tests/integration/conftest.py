"""The shop's tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, Engine, create_engine

from .support import ManualClock, Shop


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


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()
