"""Functions that run concurrently: in threads, and in tasks of an event loop."""

from __future__ import annotations

import asyncio
import threading
from asyncio import CancelledError
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy.util import await_

from sqlalchemy_proletarian.runtime.base import Work
from sqlalchemy_proletarian.runtime.steps import Cancellable, Steps
from sqlalchemy_proletarian.runtime.tasks import Tasks
from sqlalchemy_proletarian.runtime.threads import Threads

SECONDS = 30
SEEN: ContextVar[int] = ContextVar("SEEN", default=0)


def test_each_function_that_waits_has_a_thread() -> None:
    """Twenty functions that wait for each other all start."""
    together = threading.Barrier(20)
    names: list[str] = []

    def meet() -> None:
        names.append(threading.current_thread().name)
        together.wait(SECONDS)

    ended = threading.Event()
    works: list[Work] = [(meet, f"work {n}") for n in range(19)]
    Threads().spawn_all([*works, (lambda: (meet(), ended.set()), "work 19")])
    assert ended.wait(SECONDS)
    assert sorted(names) == sorted(f"work {n}" for n in range(20))


def test_functions_in_one_thread_do_not_see_the_context_variables_of_each_other() -> None:
    """They are as in a new thread."""
    seen: list[int] = []
    ended = threading.Event()

    def work() -> None:
        seen.append(SEEN.get())
        SEEN.set(1)
        if len(seen) == 100:
            ended.set()

    Threads().spawn_all([(work, "work")] * 100)
    assert ended.wait(SECONDS)
    assert seen == [0] * 100


def test_no_function_runs_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets the error of the system."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    ran: list[int] = []
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Threads().spawn_all([(lambda: ran.append(1), "work")])
    assert ran == []


def test_functions_that_end_at_once_share_a_task() -> None:
    """A function that waits has a task of its own from its beginning."""
    tasks: dict[str, Any] = {}
    names: dict[str, str] = {}

    async def main() -> None:
        runtime, may_end, ended = Tasks(), asyncio.Event(), asyncio.Event()

        def quick(name: str) -> None:
            note(name)

        def slow(name: str) -> None:
            note(name)
            await_(may_end.wait())
            assert asyncio.current_task() is tasks[name]
            ended.set()

        def note(name: str) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks[name], names[name] = task, task.get_name()

        runtime.spawn_all(
            [
                (lambda: quick("a"), "a"),
                (lambda: quick("b"), "b"),
                (lambda: slow("c"), "c"),
                (lambda: quick("d"), "d"),
                (lambda: quick("e"), "e"),
            ]
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sorted(tasks) == ["a", "b", "c", "d", "e"]
        may_end.set()
        await asyncio.wait_for(ended.wait(), SECONDS)

    asyncio.run(main())
    assert tasks["a"] is tasks["b"] is tasks["c"]
    assert tasks["d"] is tasks["e"]
    assert tasks["c"] is not tasks["d"]
    assert names == {name: name for name in "abcde"}


def test_a_coroutine_that_is_run_in_steps_has_its_own_context_variables() -> None:
    """Before and after it has waited."""

    async def work() -> int:
        SEEN.set(1)
        await asyncio.sleep(0)
        return SEEN.get()

    async def main() -> None:
        assert await Steps(work()) == 1
        assert SEEN.get() == 0

    asyncio.run(main())


def test_cancelling_a_coroutine_does_not_cancel_its_task() -> None:
    """Its clean-up runs, and the task goes on."""

    async def main() -> None:
        log: list[str] = []

        async def work() -> str:
            try:
                await asyncio.sleep(SECONDS)
            except CancelledError:
                await asyncio.sleep(0)
                log.append("cleaned up")
                return "cancelled"
            return "completed"

        called = Cancellable(work())
        asyncio.get_running_loop().call_soon(called.cancel)
        asyncio.get_running_loop().call_soon(called.cancel)
        assert await called.run() == "cancelled"
        assert log == ["cleaned up"]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(main())


@pytest.mark.parametrize("waits", [True, False])
def test_a_coroutine_that_cancels_its_own_task_is_cancelled(waits: bool) -> None:
    """The task is not, even if the coroutine ends before the cancellation reaches it."""

    async def main() -> None:
        async def work() -> BaseException | None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            try:
                if waits:
                    await asyncio.sleep(SECONDS)
            except CancelledError as error:
                return error
            return None

        assert isinstance(await Cancellable(work()).run(), CancelledError)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(main())


def test_the_cancellation_of_the_task_reaches_the_coroutine_and_then_the_task() -> None:
    """As at the end of an event loop."""
    log: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(SECONDS)
        except CancelledError:
            log.append("coroutine")

    async def run() -> None:
        try:
            await Cancellable(work()).run()
        except CancelledError:
            log.append("task")
            raise

    async def main() -> None:
        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(CancelledError):
            await task

    asyncio.run(main())
    assert log == ["coroutine", "task"]


def test_timeouts_and_task_groups_work_in_a_coroutine_that_is_run_in_steps() -> None:
    """They cancel the task, and take the cancellation back."""

    async def fail() -> None:
        raise ValueError("child")

    async def in_a_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(SECONDS)

    async def work() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(SECONDS)
        with pytest.raises(BaseExceptionGroup, match="unhandled"):
            await in_a_group()
        return "done"

    async def main() -> None:
        assert await Cancellable(work()).run() == "done"

    asyncio.run(main())


def test_isolated_work_has_ended_when_its_event_loop_is_closed() -> None:
    """A greenlet that still runs when the interpreter ends may crash it."""
    loops: list[asyncio.AbstractEventLoop] = []
    closed: list[bool] = []

    async def main() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def when_ended() -> None:
            closed.append(loops[0].is_closed())
            loop.call_soon_threadsafe(ended.set)

        Tasks().spawn_isolated(
            lambda _: loops.append(asyncio.get_running_loop()), "isolated", when_ended
        )
        await asyncio.wait_for(ended.wait(), SECONDS)

    asyncio.run(main())
    assert closed == [True]
