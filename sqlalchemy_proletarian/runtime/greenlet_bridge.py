"""Lets a plain handler in a thread use a session whose connection belongs to an event loop.

SQLAlchemy's asyncio drivers pass the objects that they await to the parent of the greenlet in which
they are called. For a handler in a thread the parent is a :class:`Bridge`, which awaits the object
in the event loop while the thread waits.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Task
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, wait
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from ..errors import JobInterruptedError
from ..extras import require_extra

_greenlet: Any = require_extra("greenlet", "asyncio").greenlet

_LOOK_AGAIN = 1.0
"""Seconds between checks whether the event loop was closed without an answer."""


class _HandlerGreenlet(_greenlet):  # type: ignore[misc]  # imported by its name
    """The greenlet in which a whole handler runs, without a greenlet switch for an awaitable.

    Switching would copy parts of the stack, which would crash a thread that is stopped in the
    middle of a handler, as happens to threads that are still running when the interpreter exits.
    """

    __sqlalchemy_greenlet_provider__ = True  # required by SQLAlchemy's await_

    def __init__(self, function: Callable[[], object], bridge: Bridge, context: Context) -> None:
        super().__init__(function)
        self.gr_context = context
        self._bridge = bridge

    @property
    def parent(self) -> Bridge:
        return self._bridge


class Bridge:
    """Awaits objects in the event loop for one thread, until :meth:`cut` is called."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._thread_loop = _ThreadLoop(loop)  # type: ignore[abstract]  # no other method is used
        self._call: Task[Any] | None = None
        self._is_cut = False

    def driven(self, function: Callable[[], object]) -> Callable[[], object]:
        """Return ``function`` wrapped for a thread, with the context variables of the caller."""
        return partial(self._drive, function, copy_context())

    def _drive(self, function: Callable[[], object], context: Context) -> object:
        asyncio.set_event_loop(self._thread_loop)
        return _HandlerGreenlet(function, self, context).switch()

    def switch(self, awaitable: Awaitable[Any]) -> Any:
        """Return the result of an awaitable; SQLAlchemy calls this instead of a greenlet switch."""
        answer: Future[Any] = Future()
        try:
            self._loop.call_soon_threadsafe(self._begin, awaitable, answer)
        except RuntimeError:  # the event loop is closed
            _forget(awaitable)
            raise _interrupted() from None
        # If the loop is closed before it runs the callback, no answer ever comes.
        while not wait([answer], timeout=_LOOK_AGAIN).done:
            if self._loop.is_closed():
                if answer.cancel():
                    _forget(awaitable)
                raise _interrupted()
        return answer.result()

    def _begin(self, awaitable: Awaitable[Any], answer: Future[Any]) -> None:
        if not answer.set_running_or_notify_cancel():
            return
        self._thread_loop.begin()
        if self._is_cut:
            _forget(awaitable)
            answer.set_exception(_interrupted())
            return
        self._call = self._loop.create_task(_as_coroutine(awaitable))
        self._call.add_done_callback(partial(_hand_over, answer))

    async def cut(self) -> None:
        """Cancel what the thread is waiting for, and reject its further awaitables."""
        self._is_cut = True
        call = self._call
        if call is not None and not call.done():
            if not call.cancelling():
                call.cancel()
            await asyncio.wait([call])


class _ThreadLoop(AbstractEventLoop):
    """The event loop that asyncio finds in a handler's thread; its tasks run in the real loop.

    SQLAlchemy creates a task in the current thread to close a lost connection.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._made: list[tuple[Coroutine[Any, Any, Any], asyncio.Future[Any]]] = []

    def create_task(  # type: ignore[override]  # returns a future in place of the task
        self, coro: Coroutine[Any, Any, Any], **_: Any
    ) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._made.append((coro, future))
        return future

    def begin(self) -> None:
        """Start the created tasks; called in the real loop, before anything waits for them."""
        made, self._made = self._made, []
        for coro, future in made:
            self._loop.create_task(coro).add_done_callback(partial(_pass_on, future))


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _hand_over(answer: Future[Any], call: Task[Any]) -> None:
    if call.cancelled():
        # Not a CancelledError: SQLAlchemy would close the connection in the handler's thread.
        answer.set_exception(_interrupted())
    elif (error := call.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(call.result())


def _pass_on(future: asyncio.Future[Any], task: Task[Any]) -> None:
    if future.done():
        return
    if task.cancelled():
        future.cancel()
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _forget(awaitable: Awaitable[Any]) -> None:
    if asyncio.iscoroutine(awaitable):
        awaitable.close()


def _interrupted() -> JobInterruptedError:
    return JobInterruptedError("the handler's session is closed because the event loop is ending")
