"""How many connections a worker opens; one that needs too many says so at its start."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, TooManyConnectionsError, enqueue_many
from sqlalchemy_proletarian.worker.connection_count import connections_of
from tests.integration.support import eventually

from .places import Place, only

NOTHING: Any = lambda *_: None  # noqa: E731

with_threads = only(lambda place: not (place.in_a_loop or place.leased or place.server == "sqlite"))


@with_threads
def test_too_many_threads_are_rejected_with_both_numbers(place: Place, engine: Engine) -> None:
    worker = place.worker(engine, NOTHING, threads=5000)
    with pytest.raises(TooManyConnectionsError, match=r"needs 500\d connections, but the server"):
        worker.start()


@with_threads
def test_leased_jobs_share_a_connection(place: Place, engine: Engine) -> None:
    worker = place.worker(engine, NOTHING, threads=5000, lease=timedelta(minutes=1))
    worker.start()
    worker.stop()


PLAIN: dict[str, Any] = {}
LEASED: dict[str, Any] = {"lease": timedelta(minutes=1)}
SILENT: dict[str, Any] = {"notify": False}
PRUNING: dict[str, Any] = {"archive_retention": timedelta(days=1)}
WITHOUT_MARKERS: dict[str, Any] = {"running_job_model": None}


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        SILENT,
        WITHOUT_MARKERS | PRUNING,
        LEASED,
        LEASED | SILENT | WITHOUT_MARKERS,
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
@only(lambda place: place.server == "postgres" and place.driver == "postgresql+psycopg")
def test_a_worker_opens_as_many_connections_as_the_formula_says(
    place: Place, engine: Engine, options: dict[str, Any]
) -> None:
    """The formula of docs/scaling/many-workers.md: with recurring jobs and rates in each case."""
    if place.leased:
        options = LEASED | options
    handlers = Handlers()
    ran: set[str] = set()
    handlers("note", rate="1000/second")(lambda _: ran.add("note"))
    handlers.recurring("often", every=timedelta(seconds=1))(lambda _: ran.add("often"))
    name = f"counted-{uuid4().hex[:8]}"
    beside = create_engine(engine.url, poolclass=NullPool)  # the formula is without the pool
    worker = place.worker(beside, handlers, name=name, threads=2, **options)
    expected = connections_of(worker._core.settings)
    pruning = "archive_retention" in options  # its connection is open from time to time
    with worker:
        with Session(engine) as session, session.begin():
            enqueue_many(session, [("note", n) for n in range(10)])
        eventually(lambda: len(ran) == 2)
        eventually(lambda: expected - pruning <= connections_named(engine, name) <= expected)
        assert connections_named(engine, name) <= expected


def connections_named(engine: Engine, name: str) -> int:
    """Return how many connections of the server have a name that begins so."""
    counted = text("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE :name")
    with engine.connect() as connection:
        return int(connection.scalar(counted, {"name": f"{name}%"}) or 0)
