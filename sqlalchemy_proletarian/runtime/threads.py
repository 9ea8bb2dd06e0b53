"""How the parts of a worker wait and run side by side: here in threads, in :mod:`.tasks` in tasks.

Everything else about a worker is the same for both, and written once, as plain functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from socket import socket
from threading import Event, Lock, Thread, Timer, current_thread, main_thread
from typing import Any, Protocol

from ..errors import HandlerError
from ..handlers.registry import Handler
from ..lifecycle.run import Run
from ..telemetry.events import Events
from .doorbell import Flag


class Waiting(Protocol):
    """What differs between workers with threads and workers in an event loop."""

    def flag(self) -> Flag:
        """Return a flag that is not set."""
        ...

    def lock(self) -> AbstractContextManager[Any]:
        """Return a lock that may be held while waiting."""
        ...

    def readable(self, line: socket, seconds: float) -> None:
        """Wait until there is something to read on a line, or it has ended."""
        ...

    def spawn(self, work: Callable[[], object], name: str) -> None:
        """Run ``work`` beside the caller; it must not raise."""
        ...

    def apart(self, work: Callable[[Waiting], object], name: str) -> None:
        """Run ``work`` where nothing else that waits here can hold it up.

        :param work: is called with what it is to wait by; it must not raise.
        """
        ...

    def tell(self, message: Callable[[], object]) -> None:
        """Call ``message`` here, from what runs apart."""
        ...

    def ending(self) -> bool:
        """Tell whether what was spawned here and calls this is to end at once."""
        ...

    def call(self, run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any) -> None:
        """Run a handler to its end.

        :raises Exception: whatever ended it; if it was asked to end, the reason for that.
        """
        ...


class Threads:
    """Waits as threads do, and calls handlers where it is called."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def flag(self) -> Flag:
        """Return a flag; see :class:`Waiting`."""
        return Event()

    def lock(self) -> AbstractContextManager[Any]:
        """Return a lock; see :class:`Waiting`."""
        return Lock()

    def readable(self, line: socket, seconds: float) -> None:
        """Wait for a line; see :class:`Waiting`."""
        with DefaultSelector() as selector:
            selector.register(line, EVENT_READ)
            selector.select(seconds)

    def spawn(self, work: Callable[[], object], name: str) -> None:
        """Run ``work`` in a thread, which does not keep the process alive."""
        Thread(target=work, name=name, daemon=True).start()

    def apart(self, work: Callable[[Waiting], object], name: str) -> None:
        """Run ``work`` in a thread; see :class:`Waiting`."""
        self.spawn(partial(work, self), name)

    def tell(self, message: Callable[[], object]) -> None:
        """Call ``message``; see :class:`Waiting`."""
        message()

    def ending(self) -> bool:
        """Tell that nobody ends a thread; see :class:`Waiting`."""
        return False

    def call(self, run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any) -> None:
        """Call a handler; one that outlasts its timeout is reported, for nothing can stop it."""
        if handler.timeout is None:
            _call(run, handler, payload, session)
            return
        about = {**run.job.about(), "timeout": handler.timeout}
        late = Timer(handler.timeout, self._events.emit, ["job-timed-out"], about)
        late.daemon = True
        late.start()
        try:
            _call(run, handler, payload, session)
        finally:
            late.cancel()


def _call(run: Run, handler: Handler[Any, ..., Any], payload: Any, session: Any) -> None:
    try:
        refuse_unstarted(handler.run(payload, session, run.row), handler)
    except Exception as error:
        if run.asked is not None:
            raise run.asked from error
        raise
    except BaseException as error:
        # Where it cannot be Ctrl-C, it is the handler's own doing.
        if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
            raise
        msg = f"the handler raised {error!r}"
        raise RuntimeError(msg) from error


def refuse_unstarted(result: Any, handler: Handler[Any, ..., Any]) -> None:
    """Raise if what a plain function returned is its own body, of which nothing has run."""
    if result is None:
        return
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # says that it was never awaited otherwise
        msg = (
            f"the handler of {handler.job_type!r} returned a coroutine, but is no 'async def' "
            f"function itself: make it one"
        )
        raise HandlerError(msg)
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        msg = f"the handler of {handler.job_type!r} is a generator: take the 'yield' out of it"
        raise HandlerError(msg)
