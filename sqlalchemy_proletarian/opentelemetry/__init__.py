"""Traces and metrics of jobs with OpenTelemetry.

::

    from sqlalchemy_proletarian import opentelemetry

    opentelemetry.instrument()

Call it once in each process that enqueues jobs or runs them, after the SDK is set up and before
workers start. A job then belongs to the trace in which it was enqueued. The page on OpenTelemetry
lists the spans and the metrics.
"""

from __future__ import annotations

from .instrumentation import instrument, uninstrument

__all__ = ["instrument", "uninstrument"]
