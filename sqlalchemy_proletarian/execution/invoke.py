"""Calling a handler's function, in the thread of the caller."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from threading import Timer, current_thread, main_thread
from typing import Any, Protocol, TypeAlias

from ..errors import HandlerError
from ..handlers.handler import Handler
from ..handlers.signature import JOB, JOBS, SESSION
from ..lifecycle.run import Run
from ..serializers import Serializer
from ..telemetry.events import Events

OpenSession: TypeAlias = Callable[[Run], AbstractContextManager[Any]]
"""Opens the session of a handler, for a run or for a call of a batch handler."""


class Invoke(Protocol):
    """Calls the handler of a run and waits until it ends."""

    def __call__(
        self, run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any
    ) -> Any:
        """Call the handler and return its result.

        :raises Exception: the handler's error; if the run was requested to end, the reason.
        """
        ...


class InvokeInThread:
    """Calls plain functions in the thread of the caller."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def __call__(
        self, run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any
    ) -> Any:
        """Call a handler; report that it exceeds its timeout, because nothing can stop it."""
        if handler.timeout is None:
            return _call(run, handler, payload, session)
        about = {**run.about(), "timeout": handler.timeout}
        late = Timer(handler.timeout, self._events.emit, ["job-timed-out"], about)
        late.daemon = True
        late.start()
        try:
            return _call(run, handler, payload, session)
        finally:
            late.cancel()


def _call(run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any) -> Any:
    try:
        result = call_function(run, handler, payload, session)
        if result is not None:
            require_completed(result, handler)
    except Exception as error:
        if run.end_reason is not None:
            raise run.end_reason from error
        raise
    except BaseException as error:
        # Only the main thread receives Ctrl-C; elsewhere the handler itself raised this.
        if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
            raise
        msg = f"the handler raised {error!r}"
        raise RuntimeError(msg) from error
    return result


def call_function(run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any) -> Any:
    """Call a handler's function with what its signature asks for, and return its result."""
    signature = handler.signature
    first = run.row if signature.takes_job else payload
    around = handler.around
    if around is None and not signature.injected:
        return handler.function(first)
    values = {SESSION: session, JOB: run.row}
    injected = {name: values[what] for name, what in signature.injected}
    if around is None:
        return handler.function(first, **injected)
    call = partial(handler.function, first, **injected)
    values[JOBS] = run.row if handler.batch_size is not None else [run.row]
    return (around.run_async if signature.is_async else around.run)(call, values)


def is_unfinished(result: Any) -> bool:
    """Return whether the result of a plain function still has to be run."""
    return inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result)


def require_completed(result: Any, handler: Handler[Any, ..., Any]) -> None:
    """Raise :class:`HandlerError` if the result of a plain function still has to be run."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # prevents the warning that it was never awaited
        msg = (
            f"the handler of {handler.job_type!r} returned a coroutine, but is no 'async def' "
            f"function itself: make it one"
        )
        raise HandlerError(msg)
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        msg = f"the handler of {handler.job_type!r} is a generator: take the 'yield' out of it"
        raise HandlerError(msg)


def decode_payload(handler: Handler[Any, ..., Any], text: str, serializer: Serializer) -> Any:
    """Return a payload as its handler declares it; None if the handler takes the job instead.

    :param serializer: for a handler that has no serializer of its own.
    """
    if handler.signature.takes_job:
        return None
    return (handler.serializer or serializer).decode(text, handler.signature.payload_type)
