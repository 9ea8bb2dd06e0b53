"""The health of workers whose database goes down and comes back."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine

from sqlalchemy_proletarian import migrate
from tests.integration.kinds import KINDS, Kind
from tests.integration.support import eventually, succeed

from .server import own_server


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_database_that_is_down_is_not_ready_and_live(kind: Kind) -> None:
    with own_server() as server:
        url = server.url(host="127.0.0.1")
        migrate.upgrade(url)
        engine = create_engine(url)
        worker: Any = kind.worker(engine, succeed)
        with worker:
            eventually(lambda: worker.health().ready)
            server.stop("fast")
            eventually(lambda: not worker.health().ready)
            down = worker.health()
            assert (down.state, down.live, down.database_reachable) == ("running", True, False)
            assert "the database cannot be reached" in down.problems[0]
            assert "127.0.0.1" not in down.problems[0]
            server.start()
            eventually(lambda: worker.health().ready)
            assert worker.health().problems == ()
        engine.dispose()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_worker_that_starts_before_its_database(kind: Kind) -> None:
    """It is live, and ready when the database is there."""
    with own_server() as server:
        url = server.url(host="127.0.0.1")
        migrate.upgrade(url)
        server.stop("fast")
        engine = create_engine(url)
        worker: Any = kind.worker(engine, succeed)
        with worker:
            assert (worker.health().live, worker.health().ready) == (True, False)
            server.start()
            eventually(lambda: worker.health().ready)
        engine.dispose()
