"""The counters and histograms of what a process enqueues and runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opentelemetry.metrics import Meter

from ..telemetry.calls import EnqueueCall
from ..telemetry.limited import Limited
from ..telemetry.observers import ObservedRun
from .names import (
    ENQUEUE,
    ERROR_TYPE,
    JOB_TYPE,
    OPERATION_NAME,
    OUTCOME,
    PROCESS,
    PROLETARIAN,
    QUEUE,
    SYSTEM,
    type_of,
)

_DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The boundaries that the semantic conventions recommend, in seconds, and some for long jobs."""

_LONG: Final = (30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """Instruments of one meter; the number of their attributes' values is limited."""

    def __init__(self, meter: Meter) -> None:
        self.queues: Limited = Limited()
        self._job_types = Limited()
        self._errors = Limited()
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Jobs that were enqueued."
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Runs of jobs that have ended."
        )
        self._duration = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "How long handlers ran.",
            explicit_bucket_boundaries_advisory=[*_DURATIONS, *_LONG],
        )
        self._wait = meter.create_histogram(
            "proletarian.job.wait",
            "s",
            "How long jobs were due before their handlers started.",
            explicit_bucket_boundaries_advisory=[*_DURATIONS, *_LONG],
        )

    def enqueued(self, call: EnqueueCall) -> None:
        """Count what a call has enqueued."""
        for (queue, job_type), number in call.enqueued.items():
            self._sent.add(number, self._attributes(ENQUEUE, queue, job_type))

    def refused(self, call: EnqueueCall, error: BaseException) -> None:
        """Count a call that raised, and enqueued nothing, as one job."""
        attributes = self._attributes(ENQUEUE, call.queue, call.job_type)
        self._sent.add(1, attributes | {ERROR_TYPE: self._errors(type_of(error))})

    def ended(self, runs: Sequence[ObservedRun]) -> None:
        """Count runs that have ended, and how long their jobs waited."""
        for run in runs:
            self._consumed.add(1, self._of(run, run.outcome))
            if run.wait is not None:
                self._wait.record(run.wait, self._attributes(PROCESS, run.queue, run.job_type))

    def took(self, run: ObservedRun, outcome: str) -> None:
        """Record the duration of a handler; of a batch handler once for all its jobs."""
        if run.duration is not None:
            self._duration.record(run.duration, self._of(run, outcome))

    def _of(self, run: ObservedRun, outcome: str) -> dict[str, str]:
        attributes = self._attributes(PROCESS, run.queue, run.job_type)
        attributes[OUTCOME] = outcome
        if run.error is not None and is_failure(outcome):
            attributes[ERROR_TYPE] = self._errors(type_of(run.error))
        return attributes

    def _attributes(
        self, operation: str, queue: str | None, job_type: str | None
    ) -> dict[str, str]:
        attributes = {SYSTEM: PROLETARIAN, OPERATION_NAME: operation}
        if isinstance(queue, str):
            attributes[QUEUE] = self.queues(queue)
        if isinstance(job_type, str):
            attributes[JOB_TYPE] = self._job_types(job_type)
        return attributes


def is_failure(outcome: str) -> bool:
    """Return whether a run with this outcome is an attempt that failed."""
    return outcome in {"failure", "retried"}
