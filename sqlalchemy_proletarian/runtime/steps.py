"""Running a coroutine step by step in the task of the caller.

A task of its own for each coroutine takes longer than many coroutines do.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, Task
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Steps(Generic[T]):
    """An awaitable that runs a coroutine. Like a task, it has context variables of its own.

    :param when_waiting: called when the coroutine waits for the first time; not called if the
        coroutine ends without having waited.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, T], when_waiting: Callable[[], object] | None = None
    ) -> None:
        self.own_cancellations: int = 0
        """How often the coroutine has cancelled the task in which it runs."""
        self._coroutine = coroutine
        self._context = copy_context()
        self._when_waiting = when_waiting

    def __await__(self) -> Generator[Any, Any, T]:
        """Run the coroutine. What is raised here while it waits is raised in it."""
        task = _current_task()
        run, step = self._context.run, self._coroutine.send
        argument: Any = None
        while True:
            before = task.cancelling()
            try:
                awaited = run(step, argument)
            except StopIteration as ended:
                result: T = ended.value
                return result
            finally:
                self.own_cancellations += task.cancelling() - before
            if self._when_waiting is not None:
                when_waiting, self._when_waiting = self._when_waiting, None
                when_waiting()
            try:
                argument = yield awaited
                step = self._coroutine.send
            except BaseException as error:
                step, argument = self._coroutine.throw, error


class Cancellable(Generic[T]):
    """A coroutine that runs in the task of the caller, and can be cancelled without that task.

    :param coroutine: must not raise.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._steps = Steps(coroutine)
        self._task = _current_task()
        self._before = self._task.cancelling()
        self._is_cancelled = False

    def cancel(self) -> None:
        """Cancel the coroutine, unless it is being cancelled already."""
        # Only once: an event loop that ends cancels every task itself, and a second cancellation
        # would interrupt the clean-up of the coroutine.
        if self._task.cancelling() == self._before:
            self._is_cancelled = True
            self._task.cancel()

    async def run(self) -> T | CancelledError:
        """Return the result of the coroutine, or a CancelledError if it ended without noticing.

        :raises CancelledError: after the coroutine has ended, if the task itself was cancelled.
        """
        result = await self._steps
        if self._task.cancelling() == self._before:
            return result
        unnoticed = await _cancellation_under_way()
        for _ in range(self._is_cancelled + max(0, self._steps.own_cancellations)):
            self._task.uncancel()
        if self._task.cancelling() > self._before:
            raise CancelledError
        return result if unnoticed is None else unnoticed


async def _cancellation_under_way() -> CancelledError | None:
    """Return the cancellation that the next ``await`` of the task raises, if there is one."""
    try:
        await asyncio.sleep(0)
    except CancelledError as error:
        return error
    return None


def _current_task() -> Task[Any]:
    task = asyncio.current_task()
    if task is None:
        msg = "there is no running task"
        raise RuntimeError(msg)
    return task
