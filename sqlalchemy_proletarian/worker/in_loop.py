"""The worker in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.util import greenlet_spawn

from ..arguments import at_least_one
from ..errors import ShutdownTimeoutError
from ..execution.invoke_async import InvokeInLoop
from ..handlers.every_type import as_handlers
from ..handlers.registry import Handlers
from ..models.defaults import Job
from ..runtime.signals import on_stop_signals
from ..runtime.tasks import Tasks
from .async_sessions import async_session_source
from .core import WorkerCore
from .options import WorkerOptions
from .pool import WorkerPool

if TYPE_CHECKING:
    from .health import Health

_SIGNALS_IN_LOOP: Final = 2
"""How many signals the event loop handles: one to stop, one to stop without waiting."""


class AsyncQueueWorker:
    """Runs due jobs in tasks of the running event loop.

    Handlers are ``async def`` functions, which may take an AsyncSession, or plain functions, which
    may take a Session. Each plain function runs in a thread of its own.

    :param bind: an AsyncEngine, or an ``async_sessionmaker`` bound to one; handlers then get
        sessions from it. The driver is psycopg, asyncpg, asyncmy or aiosqlite. Start the worker in
        the event loop that uses the engine.
    :param handlers: :class:`.Handlers`, or a plain or ``async`` callable of (job_type, payload).
    :param concurrency: how many jobs run at a time; 10 by default. In transaction mode each of them
        uses a connection.
    :param options: the options of :class:`.QueueWorker` except ``threads``, with the same meanings
        and defaults. After ``shutdown_timeout``, ``async`` handlers are cancelled.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if a number or duration is out of range, or no queue is named.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        bind: AsyncEngine | async_sessionmaker[Any],
        handlers: Handlers | Callable[[str, Any], Any],
        *,
        concurrency: int = 10,
        **options: Unpack[WorkerOptions],
    ) -> None:
        sessions = async_session_source(bind, options.get("job_model", Job))
        self.concurrency: int = at_least_one("concurrency", concurrency)
        self._core = WorkerCore(sessions, as_handlers(handlers), concurrency, **options)
        self.name: str = self._core.name

    @property
    def stopping(self) -> bool:
        """Whether the worker was requested to stop; long plain functions may check this.

        If a handler raises after that, its job has not failed: it is rolled back and due again at
        once, and the attempt is not counted.
        """
        return self._core.stopping

    async def run(self) -> None:
        """Run jobs until SIGINT or SIGTERM; after a second signal, do not wait for handlers.

        :raises DatabaseNotReadyError: if the tables or the privileges of the role do not fit; the
            message says what to do.
        :raises ShutdownTimeoutError: if plain functions run longer than ``shutdown_timeout``.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        signals = 0
        hurry = False

        def on_signal() -> None:
            nonlocal signals
            signals += 1
            loop.call_soon_threadsafe(stop)

        def stop() -> None:
            nonlocal hurry
            if self.stopping and task is not None:
                hurry = True
                task.cancel()
            self.request_stop()

        # A handler that blocks the event loop delays two signals; the third one interrupts it.
        with on_stop_signals(on_signal, again=lambda: signals >= _SIGNALS_IN_LOOP):
            try:
                pool = await self._start()
                if signals:  # perhaps received before there was a pool to stop
                    self.request_stop()
                try:
                    await greenlet_spawn(pool.stopping.wait)
                finally:
                    if hurry:  # two signals at once
                        with suppress(ShutdownTimeoutError):
                            await greenlet_spawn(self._core.stop, 0)
                    else:
                        await self.stop()
            except asyncio.CancelledError:
                if hurry:
                    raise KeyboardInterrupt from None
                raise

    async def start(self) -> None:
        """Start the worker's tasks and return.

        :raises DatabaseNotReadyError: if the tables or the privileges of the role do not fit; the
            message says what to do.
        :raises RuntimeError: if the worker is running.
        """
        await self._start()

    async def stop(self) -> None:
        """Stop claiming jobs, wait until the running handlers have ended, and return.

        Coroutines that have not ended after ``shutdown_timeout`` are cancelled. Their jobs are due
        again at once, and the attempts are not counted.

        :raises ShutdownTimeoutError: if a plain function has not ended by then, or a coroutine
            ignores its cancellation.
        """
        await greenlet_spawn(self._core.stop)

    def request_stop(self) -> None:
        """Request that the worker stops, and return at once. Call ``stop`` to wait for it."""
        self._core.request_stop()

    def health(self) -> Health:
        """Return whether the worker is well, for the probes of an orchestrator and for metrics.

        It sends no statement and does not wait, so any thread may call it,
        also while the event loop is blocked.
        Call it every few seconds: a standstill is found by looking repeatedly. While it is called,
        the worker measures ``oldest_due`` on a connection of its own, every ten seconds.

        .. versionadded:: 0.1
        """
        return self._core.health_check.look()

    async def __aenter__(self) -> Self:
        """Start the worker."""
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop the worker."""
        await self.stop()

    async def drain(self) -> int:
        """Run jobs until none is due, ``concurrency`` at a time, and return the number of runs.

        Retries that come due in the meantime are run, too.

        :raises DatabaseNotReadyError: if the tables or the privileges of the role do not fit; the
            message says what to do.
        :raises RuntimeError: if the worker is running.
        """
        invoke = InvokeInLoop(self._core.events)
        return await greenlet_spawn(self._core.drain, Tasks(), invoke)

    async def _start(self) -> WorkerPool:
        invoke = InvokeInLoop(self._core.events)
        return await greenlet_spawn(self._core.start, Tasks(), invoke)
