"""Every kind of worker behind one face: what a test asks of a worker, it asks of each of them.

A test that takes the fixture ``kind`` runs once for each of :data:`KINDS`. A decorator from below
says where that is not so: :data:`transactions`, :data:`leases` and :data:`event_loops` narrow it;
with :data:`either_sort_of_handler` the handlers of the test run as ``async def`` functions as well.
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
"""Longer than any test takes: what becomes of leases that run out is tested elsewhere."""


class Runs:
    """What is done with a worker of whichever kind."""

    def worker(self, bind: Any, handlers: Any, **options: Any) -> QueueWorker | WorkerInALoop:
        """Make a worker; the arguments are those of QueueWorker."""
        raise NotImplementedError

    def run_all(self, bind: Any, handlers: Any, **options: Any) -> int:
        """Run what is due with a worker of its own, and return how many runs that took."""
        return self.worker(bind, handlers, **options).drain()

    def run_batch(self, bind: Any, handlers: Any, **options: Any) -> int:
        """Run what is due; a wide window keeps a slow machine from splitting a batch."""
        return self.run_all(bind, handlers, batch_window=10 * MINUTE, **options)


@dataclass(frozen=True)
class Kind(Runs):
    """How a worker waits, how it holds its jobs, and of which sort its handlers are.

    :param driver: that of a worker in an event loop; None is a worker with threads.
    :param coroutines: whether the handlers of a test, plain functions, become ``async def``
        functions. They must not block then.
    """

    driver: str | None = None
    leased: bool = False
    coroutines: bool = False

    def worker(self, bind: Any, handlers: Any, **options: Any) -> QueueWorker | WorkerInALoop:
        """Make a worker of this kind; the arguments are those of QueueWorker."""
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
    """Return a decorator: the test runs with these kinds of worker."""
    return pytest.mark.parametrize("kind", kinds, ids=str)


transactions = only(*(kind for kind in KINDS if not kind.leased))
event_loops = only(*(kind for kind in KINDS if kind.driver is not None))
leases = only(*(kind for kind in KINDS if kind.leased))
either_sort_of_handler = only(*KINDS, *COROUTINES)


class WorkerInALoop:
    """An AsyncQueueWorker that is called as a QueueWorker is.

    It has an event loop of its own, started in a thread, and an engine, disposed of with the loop.
    """

    def __init__(self, bind: async_sessionmaker[Any], handlers: Any, **options: Any) -> None:
        self._engine: AsyncEngine = bind.kw["bind"]
        self._worker = AsyncQueueWorker(bind, handlers, **options)
        self._core = self._worker._core
        self.name = self._worker.name
        self.request_stop = self._worker.request_stop
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
    """Return the engine whose connections a worker takes: that which it was given, or its own."""
    return worker._engine.sync_engine if isinstance(worker, WorkerInALoop) else engine


def awaited(bind: Engine | sessionmaker[Any], driver: str) -> async_sessionmaker[Any]:
    """Return what a worker in an event loop is given where one with threads is given ``bind``."""
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
    """Return the same handlers as ``async def`` functions."""
    if isinstance(handlers, Handlers):
        twin = copy(handlers)
        twin._handlers = {handler.job_type: _as_coroutine(handler) for handler in handlers}
        return twin

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

    twin = copy(handler)
    twin.function = function
    twin.signature = replace(handler.signature, is_async=True, session_types=())
    return twin
