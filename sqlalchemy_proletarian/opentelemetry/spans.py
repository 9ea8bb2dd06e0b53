"""The observer that makes spans: one for a call that enqueues, one for a call of a handler."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    SpanKind,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from ..telemetry.calls import EnqueueCall
from ..telemetry.observers import ObservedRun, Observer
from .handler_call import HandlerCall
from .metrics import Metrics
from .names import (
    ATTEMPT,
    ENQUEUE,
    ERROR_TYPE,
    JOB_ID,
    JOB_TYPE,
    JOBS,
    OPERATION_NAME,
    OPERATION_TYPE,
    PROCESS,
    PROLETARIAN,
    QUEUE,
    RECURRING,
    SEND,
    SYSTEM,
    WAIT,
    type_of,
)
from .propagation import context_of, with_context


class Telemetry(Observer):
    """Makes spans and records metrics.

    :param use_links: whether each run is a trace of its own, which is linked with the other one.
    """

    def __init__(self, tracer: Tracer, metrics: Metrics, *, use_links: bool) -> None:
        self.enabled: bool = True
        """Workers that are running keep the observer, also if it was removed."""
        self._tracer = tracer
        self._metrics = metrics
        self._use_links = use_links
        self._calls: WeakKeyDictionary[ObservedRun, HandlerCall] = WeakKeyDictionary()
        """The calls of handlers whose spans have not ended. If nobody reports the end of a run, its
        span is not exported, and no memory is kept."""

    # Enqueueing.

    def enqueuing(
        self,
        job_type: str,  # noqa: ARG002
        queue: str,  # noqa: ARG002
        headers: Mapping[str, Any] | None,
    ) -> Mapping[str, Any] | None:
        """Add the current context to the headers."""
        return with_context(headers)

    @contextmanager
    def around_enqueue(self, call: EnqueueCall) -> Generator[None]:
        """Make the span of a call that enqueues the current one."""
        # A tick is no part of what happened to be going on when its worker was started.
        token = attach(Context()) if call.recurring is not None else None
        name, before = self._name(SEND, call.queue), _before(call)
        try:
            with self._tracer.start_as_current_span(
                name, kind=SpanKind.PRODUCER, attributes=before
            ) as span:
                try:
                    yield
                except Exception as error:
                    span.set_attribute(ERROR_TYPE, type_of(error))
                    self._metrics.refused(call, error)
                    raise
                finally:
                    if span.is_recording():
                        if (now := self._name(SEND, _only(call, 0))) != name:
                            span.update_name(now)
                        span.set_attributes(dict(_after(call).items() - before.items()))
        finally:
            if token is not None:
                detach(token)
        self._metrics.enqueued(call)

    # Running.

    @contextmanager
    def around(self, runs: Sequence[ObservedRun]) -> Generator[None]:
        """Make the span of a call of a handler the current one."""
        if not self.enabled:
            yield
            return
        contexts = [context_of(run.headers) for run in runs]
        links = [
            Link(origin, {JOB_ID: str(run.job_id)})
            for run, context in zip(runs, contexts, strict=True)
            if (origin := get_current_span(context).get_span_context()).is_valid
        ]
        parent = Context()
        if len(runs) == 1:
            parent = contexts[0]
            if self._use_links:
                parent = set_span_in_context(INVALID_SPAN, parent)
        queue = runs[0].queue if len({run.queue for run in runs}) == 1 else None
        span = self._tracer.start_span(
            self._name(PROCESS, queue),
            parent,
            SpanKind.CONSUMER,
            attributes=_of_runs(runs, queue),
            links=links,
        )
        call = HandlerCall(span, len(runs))
        for run in runs:
            self._calls[run] = call
        token = attach(set_span_in_context(span, parent))
        try:
            yield
        except BaseException as error:
            call.returned(error)
            raise
        else:
            call.returned(None)
        finally:
            detach(token)

    def ended(self, runs: Sequence[ObservedRun]) -> None:
        """End the spans of runs."""
        if self.enabled:
            self._metrics.ended(runs)
        for run in runs:
            call = self._calls.pop(run, None)
            if call is not None and call.decided(run) and self.enabled:
                self._metrics.took(run, call.outcome)

    def undone(self, runs: Sequence[ObservedRun]) -> None:
        """End the spans of runs."""
        self.ended(runs)

    def _name(self, operation: str, queue: str | None) -> str:
        return f"{operation} {self._metrics.queues(queue)}" if isinstance(queue, str) else operation


def _before(call: EnqueueCall) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        SYSTEM: PROLETARIAN,
        OPERATION_NAME: ENQUEUE,
        OPERATION_TYPE: SEND,
    }
    known = {QUEUE: call.queue, JOB_TYPE: call.job_type, RECURRING: call.recurring}
    return attributes | {name: value for name, value in known.items() if isinstance(value, str)}


def _after(call: EnqueueCall) -> dict[str, Any]:
    """Return what is known of a call when it has ended."""
    attributes: dict[str, Any] = {
        QUEUE: _only(call, 0),
        JOB_TYPE: _only(call, 1),
        JOB_ID: None if call.job_id is None else str(call.job_id),
        JOBS: call.jobs if call.many else None,
    }
    return {name: value for name, value in attributes.items() if isinstance(value, str | int)}


def _only(call: EnqueueCall, place: int) -> str | None:
    """Return the queue or the job type of a call, if all of its jobs have the same."""
    if not call.many:
        return (call.queue, call.job_type)[place]
    found = {key[place] for key in call.enqueued}
    return found.pop() if len(found) == 1 else None


def _of_runs(runs: Sequence[ObservedRun], queue: str | None) -> dict[str, Any]:
    """Return what is known of a call of a handler when it begins."""
    first = runs[0]
    attributes: dict[str, Any] = {
        SYSTEM: PROLETARIAN,
        OPERATION_NAME: PROCESS,
        OPERATION_TYPE: PROCESS,
        QUEUE: queue,
        JOB_TYPE: first.job_type,
    }
    if len(runs) > 1:
        attributes[JOBS] = len(runs)
    else:
        attributes |= {JOB_ID: str(first.job_id), ATTEMPT: first.attempt, WAIT: first.wait}
    return {name: value for name, value in attributes.items() if value is not None}
