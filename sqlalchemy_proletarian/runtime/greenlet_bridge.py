"""How a plain handler in a thread uses the session of a connection that belongs to an event loop.

SQLAlchemy's drivers for asyncio hand what they await to the parent of the greenlet they are called
in. For a handler in a thread that is a bridge: it sends it to the event loop, and waits.
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
"""Seconds between looks whether the event loop has gone without an answer."""


class _HandlerGreenlet(_greenlet):  # type: ignore[misc]  # imported by its name
    """The greenlet that a handler is called in, all of it: nothing is switched for what it awaits.

    Switching would move its stack about, which no thread survives that is cut off where it stands,
    as those are that outlive the interpreter.
    """

    __sqlalchemy_greenlet_provider__ = True  # what SQLAlchemy's await_ looks for

    def __init__(self, function: Callable[[], object], bridge: Bridge, context: Context) -> None:
        super().__init__(function)
        self.gr_context = context
        self._bridge = bridge

    @property
    def parent(self) -> Bridge:
        return self._bridge


class Bridge:
    """Awaits in the event loop what one thread waits for, until it is cut."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._thread_loop = _ThreadLoop(loop)  # type: ignore[abstract]  # nothing else is asked
        self._call: Task[Any] | None = None
        self._is_cut = False

    def driven(self, function: Callable[[], object]) -> Callable[[], object]:
        """Return ``function`` as a thread can call it, with the context variables of the caller."""
        return partial(self._drive, function, copy_context())

    def _drive(self, function: Callable[[], object], context: Context) -> object:
        asyncio.set_event_loop(self._thread_loop)
        return _HandlerGreenlet(function, self, context).switch()

    def switch(self, awaitable: Awaitable[Any]) -> Any:
        """Return what comes of an awaitable; SQLAlchemy calls it, as if to switch greenlets."""
        answer: Future[Any] = Future()
        try:
            self._loop.call_soon_threadsafe(self._begin, awaitable, answer)
        except RuntimeError:  # the event loop is closed
            _forget(awaitable)
            raise _interrupted() from None
        # What was sent in the loop's last moments is never answered.
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
        """Await nothing more for the thread: what it waits for is cancelled, the rest refused."""
        self._is_cut = True
        call = self._call
        if call is not None and not call.done():
            if not call.cancelling():
                call.cancel()
            await asyncio.wait([call])


class _ThreadLoop(AbstractEventLoop):
    """What asyncio takes for the event loop of a handler's thread: its tasks begin in the real one.

    To close a lost connection SQLAlchemy makes a task where it stands, which is in the thread.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._made: list[tuple[Coroutine[Any, Any, Any], asyncio.Future[Any]]] = []

    def create_task(  # type: ignore[override]  # what it returns stands for the task
        self, coro: Coroutine[Any, Any, Any], **_: Any
    ) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._made.append((coro, future))
        return future

    def begin(self) -> None:
        """Begin what was made; called in the real loop, before anything waits for it."""
        made, self._made = self._made, []
        for coro, future in made:
            self._loop.create_task(coro).add_done_callback(partial(_pass_on, future))


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _hand_over(answer: Future[Any], call: Task[Any]) -> None:
    if call.cancelled():
        # No CancelledError: SQLAlchemy would close the connection for it, here in the thread.
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
    return JobInterruptedError("the handler's session is closed: the event loop ends")
