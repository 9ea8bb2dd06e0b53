"""A common interface to all kinds of worker, so that each test can run with each kind.

A test that takes the fixture ``kind`` runs once for each of :data:`KINDS`. The decorators
:data:`transactions`, :data:`leases` and :data:`event_loops` select some of them. With
:data:`either_sort_of_handler` the handlers of the test also run as ``async def`` functions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from threading import Thread
from typing import Any, Self, TypeVar

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import sessionmaker

from sqlalchemy_proletarian import Handlers, QueueWorker
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker
from sqlalchemy_proletarian.handlers import Handler

from .support import MINUTE, connect_args

T = TypeVar("T")

LEASE = timedelta(seconds=30)
"""Longer than any test takes; other tests cover leases that expire."""


class Runs:
    """Methods that create and run workers of any kind."""

    def worker(self, bind: Any, handlers: Any, **options: Any) -> QueueWorker | WorkerInALoop:
        """Return a new worker; the arguments are those of QueueWorker."""
        raise NotImplementedError

    def run_all(self, bind: Any, handlers: Any, **options: Any) -> int:
        """Run due jobs with a new worker, and return the number of runs."""
        return self.worker(bind, handlers, **options).drain()

    def run_batch(self, bind: Any, handlers: Any, **options: Any) -> int:
        """Run due jobs with a large batch window, so that a slow machine does not split a batch."""
        return self.run_all(bind, handlers, batch_window=10 * MINUTE, **options)


@dataclass(frozen=True)
class Kind(Runs):
    """The driver and the mode of a worker, and the type of its handlers.

    :param driver: the driver of a worker in an event loop; None for a worker with threads.
    :param leased: whether the worker uses lease mode.
    :param coroutines: whether to convert the handlers of a test, which are plain functions, to
        ``async def`` functions. Such handlers must not block.
    """

    driver: str | None = None
    leased: bool = False
    coroutines: bool = False

    def worker(self, bind: Any, handlers: Any, **options: Any) -> QueueWorker | WorkerInALoop:
        """Return a new worker of this kind; the arguments are those of QueueWorker."""
        if self.leased:
            options.setdefault("lease", LEASE)
        if self.driver is None:
            return QueueWorker(bind, handlers, **options)
        options["concurrency"] = options.pop("threads", 1)
        if self.coroutines:
            handlers = as_coroutines(handlers)
        return WorkerInALoop(awaited(bind, self.driver), handlers, **options)

    def __str__(self) -> str:
        held = "lease" if self.leased else "transaction"
        waits = "threads" if self.driver is None else f"asyncio-{self.driver}"
        return f"{waits}-{held}{'-coroutines' if self.coroutines else ''}"


KINDS = [
    Kind(driver, leased) for driver in (None, "psycopg", "asyncpg") for leased in (False, True)
]
COROUTINES = [replace(kind, coroutines=True) for kind in KINDS if kind.driver is not None]


def only(*kinds: Kind) -> pytest.MarkDecorator:
    """Return a decorator that runs a test only with these kinds of worker."""
    return pytest.mark.parametrize("kind", kinds, ids=str)


transactions = only(*(kind for kind in KINDS if not kind.leased))
event_loops = only(*(kind for kind in KINDS if kind.driver is not None))
leases = only(*(kind for kind in KINDS if kind.leased))
either_sort_of_handler = only(*KINDS, *COROUTINES)


class WorkerInALoop:
    """An AsyncQueueWorker with the interface of a QueueWorker.

    It runs in its own event loop, which ``start`` runs in a thread. Its engine is disposed of with
    the loop.
    """

    def __init__(self, bind: async_sessionmaker[Any], handlers: Any, **options: Any) -> None:
        self._engine: AsyncEngine = bind.kw["bind"]
        self._worker = AsyncQueueWorker(bind, handlers, **options)
        self._core = self._worker._core
        self.name = self._worker.name
        self.request_stop = self._worker.request_stop
        self.health = self._worker.health
        self._thread: Thread | None = None

    @property
    def stopping(self) -> bool:
        return self._worker.stopping

    def drain(self) -> int:
        return asyncio.run(self._then_dispose(self._worker.drain()))

    def run(self) -> None:
        asyncio.run(self._then_dispose(self._worker.run()))

    async def _then_dispose(self, work: Awaitable[T]) -> T:
        try:
            return await work
        finally:
            await self._engine.dispose()

    def start(self) -> None:
        started: Future[None] = Future()
        self._thread = Thread(target=lambda: asyncio.run(self._then_dispose(self._life(started))))
        self._thread.start()
        started.result()

    async def _life(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        try:
            await self._worker.start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        await self._over.wait()

    def stop(self) -> None:
        if self._thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._worker.stop(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def inner(worker: QueueWorker | WorkerInALoop, engine: Engine) -> Engine:
    """Return the engine of a worker: the given one, or that of a worker in an event loop."""
    return worker._engine.sync_engine if isinstance(worker, WorkerInALoop) else engine


def awaited(bind: Engine | sessionmaker[Any], driver: str) -> async_sessionmaker[Any]:
    """Return the async counterpart of ``bind`` for a worker in an event loop."""
    if isinstance(bind, Engine):
        bind = sessionmaker(bind)
    options: dict[str, Any] = dict(bind.kw)
    engine: Engine = options.pop("bind")
    execution_options = engine.get_execution_options()
    options["bind"] = create_async_engine(
        engine.url.set(drivername=f"postgresql+{driver}"),
        connect_args=connect_args(driver, execution_options.get("settings", {})),
        execution_options=execution_options,
    )
    return async_sessionmaker(sync_session_class=bind.class_, **options)


def as_coroutines(handlers: Handlers | Callable[[str, Any], Any]) -> Any:
    """Return the handlers converted to ``async def`` functions."""
    if isinstance(handlers, Handlers):
        converted = copy(handlers)
        converted._handlers = {handler.job_type: _as_coroutine(handler) for handler in handlers}
        return converted

    async def of_every_type(job_type: str, payload: Any) -> Any:
        return handlers(job_type, payload)

    return of_every_type


def _as_coroutine(handler: Handler[Any, ..., Any]) -> Handler[Any, ..., Any]:
    if handler.signature.is_async:
        return handler

    async def function(payload: Any, **injected: Any) -> Any:
        call = partial(handler.function, payload, **injected)
        for name, value in injected.items():
            if isinstance(value, AsyncSession):
                return await value.run_sync(lambda session, name=name: call(**{name: session}))
        return call()

    converted = copy(handler)
    converted.function = function
    converted.signature = replace(handler.signature, is_async=True, session_types=())
    return converted
