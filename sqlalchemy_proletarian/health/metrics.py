"""Metrics of workers and of their queues, read when Prometheus asks for them."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..models.job_classes import job_table
from ..telemetry.limited import OTHER, Limited
from ..telemetry.observers import add_observer, remove_observer
from ..telemetry.prometheus import PrometheusObserver

if TYPE_CHECKING:
    from ..manage.stats import JobCounts
    from ..worker.core import WorkerCore

logger: logging.Logger = logging.getLogger("sqlalchemy_proletarian")

PATIENCE: Final = 5.0
"""Seconds that a scrape waits for the database at the most."""

STATES: Final = ("due", "running", "scheduled", "retrying", "waiting", "refused")


@contextmanager
def exported(core: WorkerCore, registry: CollectorRegistry | None) -> Generator[None]:
    """Keep the metrics of a worker in a registry, in the block."""
    registry = REGISTRY if registry is None else registry
    with _exports_lock:
        export = _exports.get(registry)
        if export is None:
            export = _exports[registry] = _Export(registry)
    export.add(core)
    try:
        yield
    finally:
        export.remove(core)


class _Export:
    """What is in one registry: it is there once, for all workers of the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._observer = PrometheusObserver(registry)
        self._collector = WorkerCollector()
        self._lock = Lock()
        registry.register(self._collector)

    def add(self, core: WorkerCore) -> None:
        with self._lock:
            if not self._collector.cores:
                add_observer(self._observer)
            self._collector.cores = [*self._collector.cores, core]

    def remove(self, core: WorkerCore) -> None:
        with self._lock:
            rest = list(self._collector.cores)
            rest.remove(core)
            self._collector.cores = rest
            if not rest:
                remove_observer(self._observer)


_exports: WeakKeyDictionary[CollectorRegistry, _Export] = WeakKeyDictionary()
_exports_lock = Lock()


class WorkerCollector(Collector):
    """Reads the health of workers, and the numbers of the queues in their tables."""

    def __init__(self) -> None:
        self.cores: Sequence[WorkerCore] = ()
        self._names = Limited()
        self._queues: dict[str, None] = {}
        """All queues that have been seen, so that an empty one is 0 and does not vanish."""
        self._has_failed = False

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the metrics without values."""
        return _families().values()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the metrics; an error of the database is a metric, too."""
        families, cores = _families(), self.cores
        if not cores:
            return []
        self._add_health(families, cores)
        try:
            self._add_queues(families, cores)
        except Exception as error:
            if not self._has_failed:
                logger.warning("the queues cannot be counted for metrics: %r", error)
            self._has_failed = True
        else:
            self._has_failed = False
        families["scrape_error"].add_metric([], float(self._has_failed))
        return families.values()

    @staticmethod
    def _add_health(families: dict[str, GaugeMetricFamily], cores: Sequence[WorkerCore]) -> None:
        healths = [core.health_check.look() for core in cores]
        families["worker_ready"].add_metric([], float(all(health.ready for health in healths)))
        families["worker_live"].add_metric([], float(all(health.live for health in healths)))
        polls = [health.last_poll for health in healths]
        if known := [at.timestamp() for at in polls if at is not None]:
            families["worker_last_poll"].add_metric([], min(known))

    def _add_queues(
        self, families: dict[str, GaugeMetricFamily], cores: Sequence[WorkerCore]
    ) -> None:
        found = self._counts(cores)
        if found is None:
            return
        jobs: dict[tuple[str, str], int] = {}
        ages: dict[str, float] = {}
        for core in cores:
            self._queues |= dict.fromkeys(map(self._names, core.settings.queues))
        for counts in found:
            queue = self._names(counts.queue)
            self._queues[queue] = None
            for state in STATES:
                key = queue, state
                jobs[key] = jobs.get(key, 0) + getattr(counts, state)
            if counts.oldest_due is not None:
                ages[queue] = max(ages.get(queue, 0.0), counts.oldest_due.total_seconds())
        for queue in sorted(self._queues, key=lambda name: (name == OTHER, name)):
            for state in STATES:
                families["queue_jobs"].add_metric([queue, state], jobs.get((queue, state), 0))
            families["queue_oldest_due"].add_metric([queue], ages.get(queue, 0.0))

    @staticmethod
    def _counts(cores: Sequence[WorkerCore]) -> Sequence[JobCounts] | None:
        """Return the numbers of all queues, once for each table; None if no worker runs."""
        deadline = monotonic() + PATIENCE
        found: dict[Any, Sequence[JobCounts]] = {}
        for core in cores:
            table = core.settings.engine.url, str(job_table(core.settings.job_model))
            if table in found:
                continue
            counts = core.health_check.counts(max(0.0, deadline - monotonic()))
            if counts is not None:
                found[table] = counts
        return [each for counts in found.values() for each in counts] if found else None


def _families() -> dict[str, GaugeMetricFamily]:
    return {
        "worker_ready": GaugeMetricFamily(
            "proletarian_worker_ready", "1 if the worker runs and reaches the database."
        ),
        "worker_live": GaugeMetricFamily(
            "proletarian_worker_live", "0 if only a new process can help."
        ),
        "worker_last_poll": GaugeMetricFamily(
            "proletarian_worker_last_poll_timestamp_seconds",
            "When a poll last reached the database.",
        ),
        "queue_jobs": GaugeMetricFamily(
            "proletarian_queue_jobs",
            "Jobs in the table by queue and state, up to 10,000 of each queue.",
            labels=["queue", "state"],
        ),
        "queue_oldest_due": GaugeMetricFamily(
            "proletarian_queue_oldest_due_seconds",
            "For how long the oldest due job of a queue has been due; 0 if none is due.",
            labels=["queue"],
        ),
        "scrape_error": GaugeMetricFamily(
            "proletarian_scrape_error", "1 if the queues could not be counted."
        ),
    }
