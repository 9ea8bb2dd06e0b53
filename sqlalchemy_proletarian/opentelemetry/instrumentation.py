"""Turning traces and metrics on and off."""

from __future__ import annotations

from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Engine

from ..extras import require_extra
from ..models.defaults import ArchivedJob, Job
from ..models.mixins import ArchivedJobMixin, JobMixin
from ..telemetry.events import logger
from ..telemetry.observers import add_observer, remove_observer

require_extra("opentelemetry.metrics", "otel")

from opentelemetry import metrics, trace  # noqa: E402 - after the check

from .gauges import Gauges, reader  # noqa: E402
from .metrics import Metrics  # noqa: E402
from .spans import Telemetry  # noqa: E402

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import TracerProvider
    from sqlalchemy.ext.asyncio import AsyncEngine

_SCOPE: Final = "sqlalchemy_proletarian"
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.37.0"

_lock: Final = Lock()
_current: tuple[Telemetry, Gauges | None] | None = None


class _Instruments:
    """The instruments of one meter provider, which has them for good."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.metrics = Metrics(meter)
        self._gauges: Gauges | None = None

    def gauges(self) -> Gauges:
        if self._gauges is None:
            self._gauges = Gauges(self._meter)
        return self._gauges


_known: Final[WeakKeyDictionary[Any, _Instruments]] = WeakKeyDictionary()


def instrument(
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    use_links: bool = False,
    engine: Engine | AsyncEngine | None = None,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
) -> None:
    """Make spans and metrics of all jobs that this process enqueues or runs from now on.

    Workers that are running are not included: call it before they start. A second call has no
    effect until :func:`uninstrument` is called.

    :param tracer_provider: makes the spans; the global one by default.
    :param meter_provider: makes the metrics; the global one by default.
    :param use_links: False, the default, makes the span of a run a child of the span that enqueued
        the job. True makes it the first span of a trace of its own. In both cases it has a link to
        the span that enqueued the job.
    :param engine: the engine of the job table, for the gauges of queues; None, the default, for
        none. Each time metrics are collected, they send the statements of :func:`.manage.stats`,
        which read a bounded number of rows. An AsyncEngine is used in the event loop in which this
        function is called.
    :param job_model: the mapped class of the job table, for the gauges.
    :param archived_job_model: the mapped class of its archive.
    :raises ImportError: on import of this module, if the extra ``otel`` is not installed.
    :raises RuntimeError: if ``engine`` is an AsyncEngine, and no event loop is running.
    :raises TypeError: if ``engine`` is neither an Engine nor an AsyncEngine.

    .. versionadded:: 0.1
    """
    global _current  # noqa: PLW0603
    models = {"job_model": job_model, "archived_job_model": archived_job_model}
    read = None if engine is None else reader(engine, **models)
    with _lock:
        if _current is not None:
            logger.info("opentelemetry.instrument() was called before: this call has no effect")
            return
        release = version("sqlalchemy-proletarian")
        tracer = trace.get_tracer(_SCOPE, release, tracer_provider, _SCHEMA)
        instruments = _instruments_of(meter_provider, release)
        telemetry = Telemetry(tracer, instruments.metrics, use_links=use_links)
        gauges = None
        if read is not None:
            gauges = instruments.gauges()
            gauges.use(read)
        add_observer(telemetry)
        _current = telemetry, gauges


def uninstrument() -> None:
    """Undo :func:`instrument`; without one, do nothing.

    Spans of handlers that are running still end.

    .. versionadded:: 0.1
    """
    global _current  # noqa: PLW0603
    with _lock:
        if _current is None:
            return
        telemetry, gauges = _current
        _current = None
        telemetry.enabled = False
        remove_observer(telemetry)
        if gauges is not None:
            gauges.use(None)


def _instruments_of(provider: MeterProvider | None, release: str) -> _Instruments:
    """Return the instruments of a provider; making them twice would report them twice."""
    owner = metrics.get_meter_provider() if provider is None else provider
    if owner not in _known:
        meter = metrics.get_meter(_SCOPE, release, provider, _SCHEMA)
        _known[owner] = _Instruments(meter)
    return _known[owner]
