"""What the tests of OpenTelemetry see: spans and metrics in memory."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from sqlalchemy_proletarian import opentelemetry


class Seen:
    """The SDK with exporters in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.tracer = self.tracers.get_tracer("test")

    def instrument(self, **options: Any) -> None:
        opentelemetry.instrument(
            tracer_provider=self.tracers, meter_provider=self.meters, **options
        )

    def spans(self, kind: SpanKind | None = None) -> list[ReadableSpan]:
        """Return the spans that have ended, in the order of their starts."""
        found = [s for s in self._exporter.get_finished_spans() if kind in (None, s.kind)]
        return sorted(found, key=lambda span: span.start_time or 0)

    def span(self, name: str) -> ReadableSpan:
        """Return the only span with a name."""
        (found,) = [span for span in self.spans() if span.name == name]
        return found

    @property
    def sent(self) -> list[ReadableSpan]:
        return self.spans(SpanKind.PRODUCER)

    @property
    def processed(self) -> list[ReadableSpan]:
        return self.spans(SpanKind.CONSUMER)

    def clear(self) -> None:
        self._exporter.clear()

    def points(self, name: str) -> list[Any]:
        """Return the data points of a metric."""
        data = self._reader.get_metrics_data()
        if data is None:
            return []
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def values(self, name: str, *attributes: str) -> dict[Any, Any]:
        """Return the values of a counter or gauge by these attributes."""
        return {
            tuple((point.attributes or {}).get(attribute) for attribute in attributes): point.value
            for point in self.points(name)
        }


@contextmanager
def instrumented(**options: Any) -> Generator[Seen]:
    """Instrument with exporters in memory, and undo it."""
    seen = Seen()
    seen.instrument(**options)
    try:
        yield seen
    finally:
        opentelemetry.uninstrument()
        seen.tracers.shutdown()
        seen.meters.shutdown()


@pytest.fixture
def seen() -> Generator[Seen]:
    """Yield what OpenTelemetry sees of a test."""
    with instrumented() as seen:
        yield seen


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def trace_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


def linked(span: ReadableSpan) -> set[int]:
    """Return the ids of the spans to which a span has links."""
    return {link.context.span_id for link in span.links}


def errors(span: ReadableSpan) -> list[str]:
    """Return the types of the exceptions that a span has recorded."""
    return [
        str((event.attributes or {})["exception.type"])
        for event in span.events
        if event.name == "exception"
    ]
