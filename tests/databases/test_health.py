"""The health and the metrics of workers on every database."""

from __future__ import annotations

from datetime import timedelta
from threading import Event
from typing import Any

from prometheus_client import CollectorRegistry
from sqlalchemy import Engine

from sqlalchemy_proletarian import Handlers, health
from sqlalchemy_proletarian.worker import queue_watch
from tests.integration.support import eventually, put

from .places import Place


def test_health_and_metrics(place: Place, engine: Engine, monkeypatch: Any) -> None:
    """The oldest due job is not the one that runs, and queues are counted."""
    monkeypatch.setattr(queue_watch, "INTERVAL", 0.1)
    monkeypatch.setattr(queue_watch, "CACHED", 0.1)
    began, end = Event(), Event()
    handlers = Handlers()

    @handlers("long")
    def long(payload: Any) -> None:
        began.set()
        end.wait(30)

    registry = CollectorRegistry()
    put(engine, "long")
    worker: Any = place.worker(engine, handlers)
    with health.export_metrics(worker, registry=registry), worker:
        assert began.wait(30)
        eventually(lambda: worker.health().ready)
        assert worker.health().running == 1

        def jobs(state: str) -> float | None:
            labels = {"queue": "default", "state": state}
            return registry.get_sample_value("proletarian_queue_jobs", labels)

        eventually(lambda: jobs("running") == 1)
        assert jobs("due") == 0
        assert worker.health().oldest_due is None
        put(engine, "unknown", priority=9)
        put(engine, "unknown", process_in=timedelta(hours=1))
        eventually(lambda: worker.health().oldest_due)
        eventually(lambda: jobs("due") == 1)
        assert jobs("scheduled") == 1
        assert registry.get_sample_value("proletarian_scrape_error") == 0
        end.set()
    assert worker.health().state == "stopped"
