"""Health and metrics of workers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Literal, assert_type

from prometheus_client import CollectorRegistry

from sqlalchemy_proletarian import Health, QueueWorker, health
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker
from sqlalchemy_proletarian.health import HealthServer
from sqlalchemy_proletarian.telemetry import add_observer
from sqlalchemy_proletarian.telemetry.prometheus import PrometheusObserver


def asks(worker: QueueWorker, in_a_loop: AsyncQueueWorker) -> None:
    found = assert_type(worker.health(), Health)
    assert_type(in_a_loop.health(), Health)
    assert_type(found.state, Literal["starting", "running", "stopping", "stopped"])
    assert_type(found.live, bool)
    assert_type(found.ready, bool)
    assert_type(found.last_poll, datetime | None)
    assert_type(found.oldest_due, timedelta | None)
    assert_type(found.members_alive, int)
    assert_type(found.problems, tuple[str, ...])
    # error: mypy=misc pyright=reportAttributeAccessIssue
    found.live = True


def serves(worker: QueueWorker, in_a_loop: AsyncQueueWorker) -> None:
    with health.serve(worker, port=8080) as served:
        assert_type(served, HealthServer)
        assert_type(served.url, str)
        assert_type(served.port, int)
    health.serve(in_a_loop, port=0, host="::", registry=CollectorRegistry())
    exported: AbstractContextManager[None] = health.export_metrics(worker)
    with exported:
        add_observer(PrometheusObserver())
    # error: mypy=call-arg pyright=reportCallIssue
    health.serve(worker)
    # error: mypy=arg-type pyright=reportArgumentType
    health.serve("worker", port=8080)
    # error: mypy=arg-type pyright=reportArgumentType
    health.serve(worker, port="8080")
