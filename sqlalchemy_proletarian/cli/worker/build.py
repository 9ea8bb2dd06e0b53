"""From the target and the options to a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click
from sqlalchemy import URL, Engine, create_engine

from ...database.dialects import features_of
from ...database.urls import async_url, require_existing, sync_url
from ...errors import HandlerError
from ...handlers.registry import Handlers
from ...models.defaults import SCHEMA
from ..app import NO_URL, database_url
from .plan import Plan

if TYPE_CHECKING:
    from ...worker.core import WorkerCore
    from ...worker.in_loop import AsyncQueueWorker
    from ...worker.threaded import QueueWorker
    from .target import Loaded

    AnyWorker: TypeAlias = QueueWorker | AsyncQueueWorker

_OF_A_WORKER: Final = {
    "url": "--url",
    "models": "--models",
    "queues": "--queues",
    "threads": "--threads",
    "concurrency": "--concurrency",
    "in_a_loop": "--asyncio",
    "lease": "--lease",
    "shutdown_timeout": "--shutdown-timeout",
    "pool_size": "--pool-size",
}
"""The options that a worker has already."""

_OF_ALL_COMMANDS: Final = {"url", "models"}
"""Settings of the project, which other commands need."""

_DEFAULT_CONCURRENCY: Final = 10


@dataclass(frozen=True)
class Built:
    """A worker, and what it was made of."""

    worker: AnyWorker
    in_a_loop: bool
    """Whether it is an AsyncQueueWorker."""
    own_engine: Any = None
    """The engine that was created for it, or None if the target has one."""

    @property
    def core(self) -> WorkerCore:
        """The part that both kinds of worker have."""
        return self.worker._core

    @property
    def engine(self) -> Engine:
        """The engine of the job tables; of an AsyncEngine its ``sync_engine``."""
        return self.core.settings.engine


def build_worker(target: Loaded, plan: Plan) -> Built:
    """Return the worker for a target.

    :raises click.ClickException: if the options do not fit the target.
    """
    if not isinstance(target, Handlers):
        _refuse_options(plan, type(target).__name__)
        from ...worker.threaded import QueueWorker

        return Built(target, in_a_loop=not isinstance(target, QueueWorker))
    if plan.url is None:
        raise click.ClickException(NO_URL)
    coroutines = [handler.job_type for handler in target if handler.signature.is_async]
    if coroutines and plan.threads is not None:
        msg = (
            f"--threads runs plain functions, but the handler of {coroutines[0]!r} is async: use "
            f"--concurrency {plan.threads}"
        )
        raise click.ClickException(msg)
    try:
        if plan.in_a_loop or coroutines:
            return _in_a_loop(target, plan, plan.url)
        return _with_threads(target, plan, plan.url)
    except HandlerError as error:
        msg = f"{error} (make TARGET a worker with these options)"
        raise click.ClickException(msg) from error


def _refuse_options(plan: Plan, kind: str) -> None:
    given = [
        option
        for name, option in _OF_A_WORKER.items()
        if name in plan.given and (name not in _OF_ALL_COMMANDS or name in plan.typed)
    ]
    if given:
        msg = (
            f"{plan.target} is a {kind}, which has its own options: {', '.join(given)} cannot "
            f"change them. Change them in the code, or make TARGET a Handlers"
        )
        raise click.ClickException(msg)


def _with_threads(handlers: Handlers, plan: Plan, given: str) -> Built:
    from ...worker.threaded import QueueWorker

    url = _existing(sync_url(database_url(given)))
    engine = create_engine(url, **_engine_options(plan))
    _translate_schema(engine)
    threads = plan.threads or plan.concurrency or 1
    worker = QueueWorker(engine, handlers, threads=threads, **_worker_options(plan))
    return Built(worker, in_a_loop=False, own_engine=engine)


def _in_a_loop(handlers: Handlers, plan: Plan, given: str) -> Built:
    from ...extras import require_extra

    require_extra("greenlet", "asyncio")
    from sqlalchemy.ext.asyncio import create_async_engine

    from ...worker.in_loop import AsyncQueueWorker

    _existing(database_url(given))  # its errors do not show the URL
    engine = create_async_engine(async_url(given), **_engine_options(plan))
    _translate_schema(engine.sync_engine)
    worker = AsyncQueueWorker(
        engine,
        handlers,
        concurrency=plan.concurrency or _DEFAULT_CONCURRENCY,
        **_worker_options(plan),
    )
    return Built(worker, in_a_loop=True, own_engine=engine)


def _existing(url: URL) -> URL:
    """Return a URL; refuse a SQLite file that does not exist."""
    try:
        require_existing(url)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    return url


def _engine_options(plan: Plan) -> dict[str, Any]:
    return {} if plan.pool_size is None else {"pool_size": plan.pool_size, "max_overflow": 0}


def _translate_schema(engine: Engine) -> None:
    """Use the tables without their schema, where there are no schemas."""
    if not features_of(engine.dialect).schemas:
        engine.update_execution_options(schema_translate_map={SCHEMA: None})


def _worker_options(plan: Plan) -> Any:
    options = {
        "queues": plan.queues,
        "lease": plan.lease,
        "shutdown_timeout": plan.shutdown_timeout,
    }
    models = {}
    if plan.models:
        from ..models import load_models

        models = load_models(plan.models).of_worker
    return models | {name: value for name, value in options.items() if value is not None}
