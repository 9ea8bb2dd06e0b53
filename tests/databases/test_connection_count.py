"""A worker that needs more connections than the server accepts says so at its start."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from sqlalchemy_proletarian import TooManyConnectionsError

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
