"""Observers and OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_proletarian.opentelemetry import instrument, uninstrument
from sqlalchemy_proletarian.telemetry import EnqueueCall, ObservedRun, Observer, add_observer


class NotAJob: ...


class Own(Observer):
    def around_enqueue(self, call: EnqueueCall) -> AbstractContextManager[object]:
        jobs: int = call.jobs
        queue: str | None = call.queue
        assert jobs
        assert queue
        return nullcontext()

    def enqueuing(
        self, job_type: str, queue: str, headers: Mapping[str, Any] | None
    ) -> Mapping[str, Any] | None:
        return {"job_type": job_type, "queue": queue, **(headers or {})}

    def undone(self, runs: Sequence[ObservedRun]) -> None:
        assert runs[0].outcome


add_observer(Own())
instrument()
instrument(tracer_provider=TracerProvider(), meter_provider=MeterProvider(), use_links=True)
instrument(engine=create_engine("postgresql+psycopg://"))
instrument(engine=create_async_engine("postgresql+asyncpg://"))
uninstrument()
# error: mypy=arg-type pyright=reportArgumentType
instrument(engine="postgresql+psycopg://")
# error: mypy=arg-type pyright=reportArgumentType
instrument(job_model=NotAJob)
# error: mypy=arg-type pyright=reportArgumentType
add_observer(print)
