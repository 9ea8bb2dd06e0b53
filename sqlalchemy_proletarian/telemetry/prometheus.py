"""Metrics of jobs for Prometheus.

::

    add_observer(PrometheusObserver())

They are in the registry of :mod:`prometheus_client`, together with the metrics of your own code.
``proletarian worker --health-port`` and :func:`sqlalchemy_proletarian.health.serve` do this, and
add the metrics of queues and workers.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final

from ..extras import require_extra
from .limited import Limited
from .observers import ObservedRun, Observer

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError:
    require_extra("prometheus_client", "prometheus")
    raise

__all__ = ["PrometheusObserver"]

SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0),
)
"""The upper bounds of the buckets: jobs take from milliseconds to hours."""


class PrometheusObserver(Observer):
    """Counts and measures the jobs of this process; a registry has one such observer.

    ``proletarian_jobs_total``, ``proletarian_job_duration_seconds``,
    ``proletarian_job_wait_seconds``, ``proletarian_jobs_running`` and
    ``proletarian_jobs_enqueued_total`` are described in the documentation, on the page about
    workers. A label has at most 100 values; "(other)" stands for all further ones.

    :param registry: the registry of the metrics; by default the one of the process.
    :raises ImportError: without the extra ``prometheus``.
    :raises ValueError: if the registry has these metrics already.

    .. versionadded:: 0.1
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._types = Limited()
        self._queues = Limited()
        self._ended = Counter(
            "proletarian_jobs_total",
            "Runs of jobs whose outcomes were committed.",
            ["job_type", "outcome"],
            registry=registry,
        )
        self._duration = Histogram(
            "proletarian_job_duration_seconds",
            "How long handlers ran.",
            ["job_type"],
            buckets=SECONDS,
            registry=registry,
        )
        self._wait = Histogram(
            "proletarian_job_wait_seconds",
            "The time from the due time of a job to the start of its handler.",
            ["job_type"],
            buckets=SECONDS,
            registry=registry,
        )
        self._running = Gauge(
            "proletarian_jobs_running",
            "Jobs whose handlers run in this process now.",
            ["job_type"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._enqueued = Counter(
            "proletarian_jobs_enqueued_total",
            "Jobs that this process has inserted.",
            ["job_type", "queue"],
            registry=registry,
        )

    def enqueued(self, job_type: str, queue: str, jobs: int) -> None:
        """Count jobs that were inserted."""
        self._enqueued.labels(self._types(job_type), self._queues(queue)).inc(jobs)

    @contextmanager
    def around(self, runs: Sequence[ObservedRun]) -> Generator[None]:
        """Count the jobs of a handler while it runs."""
        running = self._running.labels(self._types(runs[0].job_type))
        running.inc(len(runs))
        try:
            yield
        finally:
            running.dec(len(runs))

    def ended(self, runs: Sequence[ObservedRun]) -> None:
        """Count and measure runs whose outcomes were committed."""
        for run in runs:
            job_type = self._types(run.job_type)
            self._ended.labels(job_type, run.outcome).inc()
            if run.duration is not None:
                self._duration.labels(job_type).observe(run.duration)
            if run.wait is not None:
                self._wait.labels(job_type).observe(run.wait)
