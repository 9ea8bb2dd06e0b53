"""Passing calls that enqueue to observers."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from .calls import EnqueueCall
from .events import logger
from .observers import Observer, current_observers
from .shield import shielded


@contextmanager
def observed(call: EnqueueCall) -> Generator[EnqueueCall]:
    """Let all observers see a call, which runs in the block."""
    observers = current_observers()
    call.with_headers = partial(_headers, observers)
    with ExitStack() as stack:
        for observer in observers:
            make = partial(observer.around_enqueue, call)
            stack.enter_context(shielded(make, partial(_report, observer)))
        yield call


def _headers(
    observers: Sequence[Observer], job_type: str, queue: str, headers: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    for observer in observers:
        try:
            headers = observer.enqueuing(job_type, queue, headers)
        except Exception:
            _report(observer)
    return headers


def _report(observer: Observer, _error: object = None) -> None:
    logger.exception("the observer %r raised while a job was enqueued", observer)
