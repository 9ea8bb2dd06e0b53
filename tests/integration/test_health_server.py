"""Health and metrics over HTTP: what is answered, and to which clients."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from threading import Event
from time import monotonic, sleep
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Discard,
    Handlers,
    Health,
    QueueWorker,
    enqueue,
    enqueue_many,
    enqueue_unique,
    health,
)
from sqlalchemy_proletarian.health import metrics, server
from sqlalchemy_proletarian.health.server import HealthServer
from sqlalchemy_proletarian.telemetry.observers import ObservedRun
from sqlalchemy_proletarian.telemetry.prometheus import PrometheusObserver
from sqlalchemy_proletarian.worker import queue_watch

from .kinds import Kind
from .support import archived, eventually, put, succeed


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def get(
    served: HealthServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body."""
    connection = HTTPConnection(served.host, served.port, timeout=20)
    try:
        connection.request(
            method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def samples(served: HealthServer) -> dict[tuple[str, ...], float]:
    """Return the values of metrics by name and the values of labels."""
    status, _, body = get(served, "/metrics")
    assert status == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_probes_get_the_health_of_the_worker(
    engine: Engine, kind: Kind, registry: CollectorRegistry
) -> None:
    """From before the worker starts until it has stopped."""
    worker: Any = kind.worker(engine, succeed)
    with health.serve(worker, port=0, registry=registry) as served:
        assert get(served, "/live")[0] == 200
        status, headers, body = get(served, "/ready")
        assert (status, headers["Content-Type"]) == (503, "application/json")
        assert json.loads(body)["state"] == "starting"
        with worker:
            eventually(lambda: get(served, "/ready")[0] == 200)
            found = json.loads(get(served, "/ready?from=a+probe")[2])
            assert found["problems"] == []
            assert found["members"] == 1
            eventually(lambda: "+00:00" in (json.loads(get(served, "/live")[2])["last_poll"] or ""))
            assert json.loads(get(served, "/live")[2]).keys() == found.keys()
        assert [get(served, path)[0] for path in ("/live", "/ready")] == [503, 503]
    with pytest.raises(ConnectionRefusedError):
        get(served, "/live")


def a_health(**values: Any) -> Health:
    given = {
        "state": "running",
        "live": True,
        "ready": True,
        "last_poll": None,
        "last_claim": None,
        "database_reachable": True,
        "members": 1,
        "members_alive": 1,
        "running": 0,
        "oldest_due": None,
    }
    return Health(**given | values)


@pytest.fixture
def served() -> Iterator[HealthServer]:
    """A server without a worker."""
    served = HealthServer(a_health, "127.0.0.1", 0)
    served.start()
    yield served
    served.close()


def test_other_paths_and_methods(served: HealthServer) -> None:
    assert get(served, "/")[0] == 404
    assert "/ready" in get(served, "/live/")[2].decode()
    assert get(served, "/live", "POST")[0] == 501
    status, headers, body = get(served, "/live", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == len(get(served, "/live")[2])
    assert headers["Server"] == "proletarian"


def test_a_broken_check_is_an_error_and_the_server_goes_on(
    served: HealthServer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Health:
        raise LookupError("broken")

    look, served._look = served._look, broken
    assert get(served, "/live")[0] == 500
    assert "LookupError" in caplog.text
    served._look = look
    assert get(served, "/live")[0] == 200


def test_metrics_without_the_extra_say_what_to_install(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "has_prometheus", lambda: False)
    with health.serve(QueueWorker(engine, succeed), port=0) as served:
        status, _, body = get(served, "/metrics")
        assert status == 501
        assert b"pip install 'sqlalchemy-proletarian[prometheus]'" in body
        assert get(served, "/live")[0] == 200


def is_closed(connection: socket.socket) -> bool:
    """Send one byte more, and return whether the server has closed the connection."""
    try:
        connection.sendall(b"G")
    except OSError:
        return True
    return False


def test_clients_that_are_silent_or_slow_delay_nobody(
    served: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than requests are served at a time; each is given up in the end."""
    monkeypatch.setattr(server, "_DEADLINE", 1.5)
    address = served.host, served.port
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(address)) for _ in range(50)]
        began = monotonic()
        assert get(served, "/live")[0] == 200
        assert monotonic() - began < 2
        drip = slow[-1]
        eventually(lambda: is_closed(drip))
        assert get(served, "/live")[0] == 200
    eventually(lambda: not served._server._requests)


def test_a_port_that_is_taken_is_an_error_with_the_remedy(served: HealthServer) -> None:
    with pytest.raises(OSError, match=rf"127.0.0.1:{served.port}: .*choose another port or host"):
        HealthServer(a_health, "127.0.0.1", served.port)
    with pytest.raises(OSError, match="choose another port or host"):
        HealthServer(a_health, "no-such-host.invalid", 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_it_listens_with_ipv6(served: HealthServer) -> None:
    try:
        other = HealthServer(a_health, "::1", 0)
    except OSError:
        pytest.skip("this host has no IPv6")
    other.start()
    try:
        assert other.url == f"http://[::1]:{other.port}"
        assert get(other, "/live")[0] == 200
    finally:
        other.close()


def test_metrics_of_jobs(engine: Engine, kind: Kind, registry: CollectorRegistry) -> None:
    """Outcomes, times, and what runs now."""
    began, end = Event(), Event()
    handlers = Handlers()

    @handlers("ok")
    def ok(payload: Any) -> None:
        sleep(0.02)

    @handlers("bad", retry={"retries": 1})
    def bad(payload: Any) -> None:
        raise ValueError("bad")

    @handlers("no")
    def no(payload: Any) -> None:
        raise Discard("no")

    @handlers("long")
    def long(payload: Any) -> None:
        began.set()
        end.wait(30)

    worker: Any = kind.worker(engine, handlers)
    with health.serve(worker, port=0, registry=registry) as served:
        for job_type in ("ok", "ok", "bad", "no"):
            put(engine, job_type)
        with worker:
            eventually(lambda: len(archived(engine)) == 4)
            put(engine, "long")
            assert began.wait(30)
            found = samples(served)
            end.set()
    name = "proletarian_jobs_total"
    assert found[name, "ok", "success"] == 2
    assert found[name, "bad", "retried"] == 1
    assert found[name, "bad", "failure"] == 1
    assert found[name, "no", "failure"] == 1
    assert found["proletarian_job_duration_seconds_count", "ok"] == 2
    assert 0.04 <= found["proletarian_job_duration_seconds_sum", "ok"] < 10
    assert found["proletarian_job_duration_seconds_count", "bad"] == 2
    assert found["proletarian_job_wait_seconds_count", "ok"] == 2
    assert found["proletarian_job_wait_seconds_sum", "ok"] > 0
    assert found["proletarian_jobs_running", "long"] == 1
    assert found["proletarian_jobs_running", "ok"] == 0
    assert found["proletarian_worker_ready",] == 1
    assert found["proletarian_worker_live",] == 1
    assert found["proletarian_worker_last_poll_timestamp_seconds",] > 1.7e9
    assert found["proletarian_scrape_error",] == 0


def test_every_job_that_is_inserted_is_counted(engine: Engine, registry: CollectorRegistry) -> None:
    """By each way to enqueue, once; a key that is taken inserts nothing."""
    with health.export_metrics(QueueWorker(engine, succeed), registry=registry):
        with Session(engine) as session, session.begin():
            enqueue(session, "one")
            enqueue(session, "quiet", notify=False)
            enqueue_many(session, [("many", 1), ("many", 2), {"job_type": "many", "queue": "q"}])
            enqueue_unique(session, "unique", unique_key="k")
            enqueue_unique(session, "unique", unique_key="k")
        with engine.begin() as connection:
            enqueue(connection, "one")
            enqueue_many(connection, [("many", 1)])
            enqueue_unique(connection, "unique", unique_key="k")
    name = "proletarian_jobs_enqueued_total"

    def value(job_type: str, queue: str = "default") -> float | None:
        return registry.get_sample_value(name, {"job_type": job_type, "queue": queue})

    assert [value("one"), value("quiet"), value("unique")] == [2, 1, 1]
    assert [value("many"), value("many", "q")] == [3, 1]
    with Session(engine) as session, session.begin():
        enqueue(session, "one")
    assert value("one") == 2, "nobody counts outside of the block"


def test_metrics_of_queues(engine: Engine, kind: Kind, registry: CollectorRegistry) -> None:
    """The numbers of the table, of all queues; an empty queue is 0."""
    began, end = Event(), Event()
    handlers = Handlers()

    @handlers("long")
    def long(payload: Any) -> None:
        began.set()
        end.wait(30)

    worker: Any = kind.worker(engine, handlers, queues=["default", "empty"])
    put(engine, "long")
    for n in range(3):
        put(engine, "unknown", n, queue="other")
    with health.serve(worker, port=0, registry=registry) as served, worker:
        assert began.wait(30)
        found = samples(served)
        end.set()
    jobs = "proletarian_queue_jobs"
    assert found[jobs, "other", "due"] == 3
    assert found[jobs, "default", "running"] == 1
    assert found[jobs, "default", "due"] == 0
    assert found[jobs, "empty", "due"] == 0
    assert found["proletarian_queue_oldest_due_seconds", "other"] > 0
    assert found["proletarian_queue_oldest_due_seconds", "default"] == 0


def test_queues_without_jobs_are_0(
    engine: Engine, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty table, and after the last job of a queue has gone."""
    monkeypatch.setattr(queue_watch, "CACHED", 0)
    worker = QueueWorker(engine, succeed, queues="mine")
    with health.serve(worker, port=0, registry=registry) as served, worker:
        assert samples(served)["proletarian_queue_jobs", "mine", "due"] == 0
        put(engine, "job", queue="other")
        assert samples(served)["proletarian_queue_jobs", "other", "due"] == 1
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM proletarian.job"))
        assert samples(served)["proletarian_queue_jobs", "other", "due"] == 0


def test_a_scrape_neither_fails_nor_hangs_if_the_database_does(
    engine: Engine,
    kind: Kind,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "PATIENCE", 0.5)
    monkeypatch.setattr(queue_watch, "CACHED", 0)
    worker: Any = kind.worker(engine, succeed)
    with health.serve(worker, port=0, registry=registry) as served, worker:
        assert samples(served)["proletarian_scrape_error",] == 0
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE proletarian.job IN ACCESS EXCLUSIVE MODE"))
            began = monotonic()
            found = samples(served)
            assert monotonic() - began < 5
        assert found["proletarian_scrape_error",] == 1
        assert ("proletarian_queue_jobs", "default", "due") not in found
        eventually(lambda: samples(served)["proletarian_scrape_error",] == 0)


def test_queues_are_counted_once_for_scrapes_that_follow_each_other(
    engine: Engine, registry: CollectorRegistry
) -> None:
    worker = QueueWorker(engine, succeed, queues="elsewhere")
    with health.serve(worker, port=0, registry=registry) as served, worker:
        key = "proletarian_queue_jobs", "default", "due"
        samples(served)
        put(engine, "job")
        assert key not in samples(served)


def test_two_workers_of_a_process_share_a_registry(
    engine: Engine, registry: CollectorRegistry
) -> None:
    """Their table is counted once, and the worse health is shown."""
    put(engine, "job", queue="nobody's")
    first, second = (QueueWorker(engine, succeed) for _ in range(2))
    with (
        health.serve(first, port=0, registry=registry) as served,
        health.serve(second, port=0, registry=registry),
        first,
    ):
        eventually(lambda: first.health().ready)
        found = samples(served)
        assert found["proletarian_queue_jobs", "nobody's", "due"] == 1
        assert found["proletarian_worker_ready",] == 0
        with second:
            eventually(lambda: samples(served)["proletarian_worker_ready",] == 1)


def test_the_format_is_negotiated(engine: Engine, registry: CollectorRegistry) -> None:
    with health.serve(QueueWorker(engine, succeed), port=0, registry=registry) as served:
        _, headers, _ = get(served, "/metrics")
        assert headers["Content-Type"].startswith("text/plain")
        _, headers, body = get(served, "/metrics", Accept="application/openmetrics-text")
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")
        _, headers, body = get(served, "/metrics", Accept_Encoding="gzip")
        assert b"proletarian_worker_ready" in gzip.decompress(body)
        assert get(served, "/metrics", "HEAD")[2] == b""


def test_labels_have_a_bounded_number_of_values(registry: CollectorRegistry) -> None:
    observer = PrometheusObserver(registry)
    for n in range(150):
        observer.ended([ObservedRun(n, f"type-{n}", "q", 1, outcome="success")])
        observer.enqueued("type-0", f"queue-{n}", 2)
    name = "proletarian_jobs_total"
    labels = {"job_type": "(other)", "outcome": "success"}
    assert registry.get_sample_value(name, labels) == 50
    assert registry.get_sample_value(name, labels | {"job_type": "type-99"}) == 1
    assert registry.get_sample_value(name, labels | {"job_type": "type-100"}) is None
    labels = {"job_type": "type-0", "queue": "(other)"}
    assert registry.get_sample_value("proletarian_jobs_enqueued_total", labels) == 100


def test_the_users_own_metrics_are_there_by_default(engine: Engine) -> None:
    """The registry of the process, which has its memory, too."""
    with health.serve(QueueWorker(engine, succeed), port=0) as served:
        body = get(served, "/metrics")[2].decode()
    assert "process_resident_memory_bytes" in body
    assert "proletarian_worker_ready 0.0" in body


def test_a_missing_extra_is_named() -> None:
    """For the observer, and for those who want metrics without the server."""
    program = """
import sys
sys.modules["prometheus_client"] = None
from sqlalchemy import create_engine
from sqlalchemy_proletarian import QueueWorker, health
worker = QueueWorker(create_engine("postgresql+psycopg://"), lambda job_type, payload: None)
def observer():
    import sqlalchemy_proletarian.telemetry.prometheus
def export():
    with health.export_metrics(worker): pass
for function in (observer, export):
    try:
        function()
    except ImportError as error:
        assert "pip install 'sqlalchemy-proletarian[prometheus]'" in str(error), error
    else:
        raise AssertionError(function)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nothing_of_it_is_in_memory_without_it() -> None:
    program = """
import sys
from sqlalchemy import create_engine
from sqlalchemy_proletarian import Handlers, QueueWorker
from sqlalchemy_proletarian.telemetry import observers
handlers = Handlers()
handlers("job")(lambda payload: None)
QueueWorker(create_engine("postgresql+psycopg://"), handlers)
unwanted = {"prometheus_client", "http.server", "sqlalchemy_proletarian.health",
    "sqlalchemy_proletarian.worker.health", "sqlalchemy_proletarian.worker.queue_watch"}
assert not unwanted & {*sys.modules}, unwanted & {*sys.modules}
assert not observers._observers
"""
    subprocess.run([sys.executable, "-c", program], check=True)
