"""The worker in an event loop, and awaitable twins of what talks to the database at once.

::

    async with AsyncQueueWorker(async_engine, handlers, concurrency=50):
        ...  # jobs run next to the application

:func:`.enqueue` needs no twin: it only adds to the session, and is called without ``await``. Every
statement and every decision is that of the worker with threads; here they run in tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal, Self, TypeAlias, Unpack, overload

from sqlalchemy import Engine
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from . import manage
from .arguments import at_least_one
from .clock import Clock, utcnow
from .errors import ShutdownTimeoutError
from .extras import require_extra
from .handlers.checks import require_session
from .handlers.registry import Handlers, as_handlers
from .models.defaults import ArchivedJob, Job
from .models.job_classes import bind_arguments
from .models.mixins import ArchivedJobMixin, JobMixin
from .producer import bulk, unique
from .producer.options import JobOptions, JobT
from .producer.sessions import sync_session
from .runtime.signals import on_stop_signals
from .worker.core import WorkerCore
from .worker.next_job import NextJobOptions, run_next_job
from .worker.options import WorkerOptions
from .worker.pool import WorkerPool
from .worker.sessions import SessionSource

try:
    from sqlalchemy.ext.asyncio import (
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )
except ImportError:
    require_extra("greenlet", "asyncio")
    raise

from .execution.invoke_async import InvokeInLoop
from .runtime.tasks import Tasks

__all__ = [
    "AsyncQueueWorker",
    "cancel",
    "enqueue_many",
    "enqueue_unique",
    "process_next_job",
]

AnyAsyncSession: TypeAlias = AsyncSession | async_scoped_session[Any]

_HEEDED = 2
"""How many signals the event loop deals with: one to stop, one to wait no longer."""


class AsyncQueueWorker:
    """Runs due jobs in tasks of the running event loop.

    Handlers are ``async def`` functions, which may take an AsyncSession, or plain functions, which
    run in a thread each and may take a Session.

    :param bind: an AsyncEngine, or an ``async_sessionmaker`` bound to one: handlers then get its
        sessions. Its driver is psycopg or asyncpg, asyncmy, or aiosqlite.
        The worker is to be started in the event loop that the engine is used in.
    :param handlers: :class:`.Handlers`, or a plain or ``async`` callable of (job_type, payload).
    :param concurrency: how many jobs run at a time; 10 by default. Without ``lease`` each takes a
        connection.
    :param options: those of :class:`.QueueWorker` but ``threads``, with the same defaults. When
        ``shutdown_timeout`` has passed, ``async`` handlers are cancelled.
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
        sessions = _session_source(bind, options.get("job_model", Job))
        self.concurrency: int = at_least_one("concurrency", concurrency)
        self._core = WorkerCore(sessions, as_handlers(handlers), concurrency, **options)
        self.name: str = self._core.name

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to stop; a long plain function looks here.

        A job whose handler raises after that is no failure: it is rolled back, not counted, and due
        again at once.
        """
        return self._core.stopping

    async def run(self) -> None:
        """Work until SIGINT or SIGTERM; a second signal no longer waits for running handlers.

        :raises DatabaseNotReadyError: if the tables or the role's privileges are not what it needs;
            the message says what to do.
        :raises ShutdownTimeoutError: if plain functions outlast ``shutdown_timeout``.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        signals = 0
        in_a_hurry = False

        def on_signal() -> None:
            nonlocal signals
            signals += 1
            loop.call_soon_threadsafe(heed)

        def heed() -> None:
            nonlocal in_a_hurry
            if self.stopping and task is not None:
                in_a_hurry = True
                task.cancel()
            self.request_stop()

        # A handler that blocks the loop keeps it from heeding two: the third one breaks in.
        with on_stop_signals(on_signal, again=lambda: signals >= _HEEDED):
            try:
                pool = await self._start()
                try:
                    await greenlet_spawn(pool.stopping.wait)
                finally:
                    if in_a_hurry:  # two signals at once
                        with suppress(ShutdownTimeoutError):
                            await greenlet_spawn(self._core.stop, 0)
                    else:
                        await self.stop()
            except asyncio.CancelledError:
                if in_a_hurry:
                    raise KeyboardInterrupt from None
                raise

    async def start(self) -> None:
        """Start the worker's tasks and return.

        :raises DatabaseNotReadyError: if the tables or the role's privileges are not what it needs;
            the message says what to do.
        :raises RuntimeError: if the worker is running.
        """
        await self._start()

    async def stop(self) -> None:
        """Claim no more jobs, wait for the running handlers, and return when they have ended.

        Coroutines that have not ended after ``shutdown_timeout`` are cancelled. Their jobs are due
        again at once, and the attempt is not counted.

        :raises ShutdownTimeoutError: if a plain function has not ended then, or a coroutine ignores
            its cancellation.
        """
        await greenlet_spawn(self._core.stop)

    def request_stop(self) -> None:
        """Ask the worker to stop and return at once; ``stop`` waits for it."""
        self._core.request_stop()

    async def __aenter__(self) -> Self:
        """Start the worker."""
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop the worker."""
        await self.stop()

    async def drain(self) -> int:
        """Run what is due now, ``concurrency`` jobs at a time; return how many runs that took.

        Retries that come due meanwhile are run too.

        :raises DatabaseNotReadyError: if the tables or the role's privileges are not what it needs;
            the message says what to do.
        :raises RuntimeError: if the worker is running.
        """
        invoke = InvokeInLoop(self._core.events)
        return await greenlet_spawn(self._core.drain, Tasks(), invoke)

    async def _start(self) -> WorkerPool:
        invoke = InvokeInLoop(self._core.events)
        return await greenlet_spawn(self._core.start, Tasks(), invoke)


def _session_source(
    bind: AsyncEngine | async_sessionmaker[Any], job_model: type[JobMixin]
) -> SessionSource:
    maker = async_sessionmaker(bind) if isinstance(bind, AsyncEngine) else bind
    if isinstance(maker, async_sessionmaker):
        with suppress(UnboundExecutionError):
            session = maker()
            inside = session.sync_session
            engine = inside.get_bind(**bind_arguments(job_model))
            if isinstance(engine, Engine):
                return SessionSource(engine, _sync_maker(maker), type(inside), type(session))
    msg = f"a worker needs an AsyncEngine, or an async_sessionmaker bound to one, not {bind!r}"
    raise TypeError(msg)


_ASYNC_SESSION = "sqlalchemy_proletarian.async_session"


def _sync_maker(maker: Callable[..., AsyncSession]) -> Callable[..., Session]:
    """Return what makes the Session inside of an AsyncSession, as the worker's code uses it."""

    def make_session(*, bind: Engine | None = None, **options: Any) -> Session:
        if bind is not None:
            options["bind"] = AsyncEngine(bind)
        session = maker(**options)
        # It lives as long as the Session, which alone does not keep it.
        session.sync_session.info[_ASYNC_SESSION] = session
        return session.sync_session

    return make_session


async def enqueue_many(
    session: AnyAsyncSession,
    rows: Iterable[Mapping[str, Any] | tuple[str, Any]],
    *,
    job_model: type[JobMixin] = Job,
    **options: Unpack[JobOptions],
) -> int:
    """Insert many jobs in the session's transaction and return their number.

    See :func:`sqlalchemy_proletarian.enqueue_many` for the parameters and errors.

    .. versionadded:: 0.1
    """
    call = partial(bulk.enqueue_many, sync_session(session), rows, job_model=job_model, **options)
    return await greenlet_spawn(call)


@overload
async def enqueue_unique(
    session: AnyAsyncSession,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    job_model: type[JobT],
    **options: Any,
) -> JobT | None: ...
@overload
async def enqueue_unique(
    session: AnyAsyncSession,
    job_type: str,
    payload: Any = None,
    *,
    unique_key: str,
    **options: Unpack[JobOptions],
) -> Job | None: ...
async def enqueue_unique(
    session: AnyAsyncSession, job_type: str, payload: Any = None, **options: Any
) -> Any:
    """Insert a job, unless the queue has a waiting or running job with the same key.

    See :func:`sqlalchemy_proletarian.enqueue_unique` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    call = partial(unique.enqueue_unique, sync_session(session), job_type, payload, **options)
    return await greenlet_spawn(call)


async def cancel(
    session: AnyAsyncSession,
    job_id: Any,
    *,
    reason: str = "cancelled",
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    clock: Clock = utcnow,
) -> Literal["cancelled", "requested"] | None:
    """Cancel a job in the session's transaction; the caller commits.

    See :func:`sqlalchemy_proletarian.manage.cancel` for the parameters, the result and errors.

    .. versionadded:: 0.1
    """
    call = partial(
        manage.cancel,
        sync_session(session),
        job_id,
        reason=reason,
        job_model=job_model,
        archived_job_model=archived_job_model,
        clock=clock,
    )
    return await greenlet_spawn(call)


async def process_next_job(
    session: AnyAsyncSession,
    handlers: Handlers | Callable[[str, Any], Any],
    **options: Unpack[NextJobOptions],
) -> bool | None:
    """Run the next due job in the session's transaction and commit it; for tests and the REPL.

    As :func:`sqlalchemy_proletarian.process_next_job`, with handlers of both kinds.

    .. versionadded:: 0.1
    """
    registry = as_handlers(handlers)
    one = session.registry() if isinstance(session, async_scoped_session) else session
    coroutines = [handler for handler in registry if handler.signature.is_async]
    make = AsyncSession
    for handler in coroutines:
        if not all(issubclass(AsyncSession, kind) for kind in handler.signature.session_types):
            make = type(one)
    for handler in registry:
        gets = make if handler.signature.is_async else make.sync_session_class
        require_session(handler, gets, remedy="call process_next_job with such a session")
    return await greenlet_spawn(
        run_next_job, sync_session(session), registry, InvokeInLoop, _sync_maker(make), **options
    )
