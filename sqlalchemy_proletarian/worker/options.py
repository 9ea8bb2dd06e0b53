"""The options of a worker, and how they are checked."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict
from uuid import uuid4

from sqlalchemy import Engine, Table
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session

from ..arguments import at_least_one
from ..clock import Clock, as_timedelta, checked_clock, utcnow
from ..database.dialects import Database, database_of, require_file
from ..execution.report import FailedFunction
from ..handlers.checks import (
    claim_filter,
    queue_names,
    queue_weights,
    require_middleware,
    require_served,
    require_sessions,
)
from ..handlers.registry import Handlers
from ..lifecycle.outcomes import FormatFunction, error_text
from ..liveness.poison import MAX_DEATHS
from ..models.defaults import ArchivedJob, Job, LimitPlace, PausedQueue, RecurringJob, RunningJob
from ..models.job_classes import check_models, job_table
from ..models.limits import LimitPlaceMixin
from ..models.mixins import ArchivedJobMixin, JobMixin, PausedQueueMixin, RunningJobMixin
from ..models.recurring import RecurringJobMixin
from ..models.values import DEFAULT_QUEUE
from ..producer.options import JSON
from ..retry import RetryFunction, RetryLike, RetryStrategy, as_retries
from ..serializers import Serializer
from ..store.claim_filter import ClaimFilter
from ..telemetry.events import LogFunction
from .archive_pruning import Retention, as_retention
from .sessions import SessionSource

if TYPE_CHECKING:
    from ..periodic.definitions import Definition

DEFAULT_LEASE: Final = timedelta(minutes=1)
"""The default lease on SQLite, where a transaction cannot hold a job."""


class WorkerOptions(TypedDict, total=False):
    """The options that every worker takes, all of them optional: see :class:`.QueueWorker`.

    .. versionadded:: 0.1
    """

    queues: str | Sequence[str] | Mapping[str, int]
    batch_size: int
    batch_window: timedelta
    lease: timedelta | None
    polling_interval: timedelta
    shutdown_timeout: timedelta
    job_model: type[JobMixin]
    archived_job_model: type[ArchivedJobMixin]
    running_job_model: type[RunningJobMixin] | Literal["default"] | None
    paused_queue_model: type[PausedQueueMixin] | Literal["default"] | None
    recurring_job_model: type[RecurringJobMixin] | Literal["default"] | None
    limit_place_model: type[LimitPlaceMixin] | Literal["default"]
    serializer: Serializer
    retry_strategy: RetryFunction | RetryLike | None
    max_deaths: int
    on_failed: FailedFunction | None
    on_polling_error: Callable[[BaseException], object] | None
    on_shutdown: Callable[[], object] | None
    format_error: FormatFunction
    archive_retention: timedelta | Mapping[str, timedelta] | None
    name: str | None
    log: LogFunction | None
    clock: Clock
    notify: bool


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """The checked options of one worker, with their defaults; durations are in seconds."""

    name: str
    engine: Engine
    database: Database
    make_session: Callable[..., Session]
    handlers: Handlers
    concurrency: int
    """How many handlers run at a time."""
    queues: tuple[str, ...]
    weights: Mapping[str, int] | None
    """The weights of the queues; None if they are served strictly in their order."""
    claim_filter: ClaimFilter | None
    batch_size: int
    batch_window: timedelta
    lease: timedelta | None
    """The duration of leases; None for transaction mode."""
    polling_interval: float
    shutdown_timeout: float
    job_model: type[JobMixin]
    archived_job_model: type[ArchivedJobMixin]
    running: Table | None
    """The table of running markers; None if the worker uses none."""
    paused: Table | None
    """The table of paused queues; None if the worker reads none."""
    recurring: type[RecurringJobMixin] | None
    """The mapped class of recurring jobs; None if the worker has none."""
    definitions: Sequence[Definition]
    """The recurring jobs of the handlers."""
    places: Table | None
    """The table of the places of limits; None if no handler has a limit."""
    serializer: Serializer
    retry: RetryFunction | RetryStrategy | None
    max_deaths: int
    on_failed: FailedFunction | None
    on_polling_error: Callable[[BaseException], object] | None
    on_shutdown: Callable[[], object] | None
    format_error: FormatFunction
    retention: Retention
    """How long jobs stay in the archive; empty if the worker does not prune it."""
    log: LogFunction | None
    clock: Clock
    now: Clock
    """The clock, which raises if it returns a naive datetime."""
    notify: bool


def check_options(
    sessions: SessionSource,
    handlers: Handlers,
    concurrency: int,
    *,
    queues: str | Sequence[str] | Mapping[str, int] = DEFAULT_QUEUE,
    batch_size: int = 500,
    batch_window: timedelta = timedelta(milliseconds=50),
    lease: timedelta | None = None,
    polling_interval: timedelta = timedelta(seconds=1),
    shutdown_timeout: timedelta = timedelta(seconds=10),
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    running_job_model: type[RunningJobMixin] | Literal["default"] | None = "default",
    paused_queue_model: type[PausedQueueMixin] | Literal["default"] | None = "default",
    recurring_job_model: type[RecurringJobMixin] | Literal["default"] | None = "default",
    limit_place_model: type[LimitPlaceMixin] | Literal["default"] = "default",
    serializer: Serializer = JSON,
    retry_strategy: RetryFunction | RetryLike | None = None,
    max_deaths: int = MAX_DEATHS,
    on_failed: FailedFunction | None = None,
    on_polling_error: Callable[[BaseException], object] | None = None,
    on_shutdown: Callable[[], object] | None = None,
    format_error: FormatFunction = error_text,
    archive_retention: timedelta | Mapping[str, timedelta] | None = None,
    name: str | None = None,
    log: LogFunction | None = None,
    clock: Clock = utcnow,
    notify: bool = True,
) -> WorkerSettings:
    """Return the settings of a worker.

    :raises TypeError: if an option is of the wrong type.
    :raises ValueError: if a number or duration is out of range, or no queue is named.
    """
    engine = sessions.engine
    name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[-6:]}"
    timeout = as_timedelta("shutdown_timeout", shutdown_timeout)
    lease = None if lease is None else as_timedelta("lease", lease, zero=False)
    require_file(engine)
    database = database_of(engine.dialect)
    if lease is None and database.requires_lease:
        lease = DEFAULT_LEASE
    if running_job_model == "default":
        running_job_model = RunningJob if job_model is Job else None
    if paused_queue_model == "default":
        paused_queue_model = PausedQueue if job_model is Job else None
    require_served(handlers, job_model)
    require_middleware(handlers)
    require_sessions(handlers, sessions.plain_class, sessions.async_class)
    check_models(job_model, archived_job_model, running_job_model)
    return WorkerSettings(
        name=name,
        engine=engine,
        database=database,
        make_session=sessions.make,
        handlers=handlers,
        concurrency=concurrency,
        queues=queue_names(queues),
        weights=queue_weights(queues),
        claim_filter=claim_filter(handlers, job_model),
        batch_size=at_least_one("batch_size", batch_size),
        batch_window=as_timedelta("batch_window", batch_window, zero=False),
        lease=lease,
        polling_interval=as_timedelta(
            "polling_interval", polling_interval, zero=False
        ).total_seconds(),
        shutdown_timeout=timeout.total_seconds(),
        job_model=job_model,
        archived_job_model=archived_job_model,
        running=_running_table(running_job_model, database),
        paused=None if paused_queue_model is None else job_table(paused_queue_model),
        recurring=_recurring_model(recurring_job_model, handlers, job_model),
        definitions=_definitions(handlers, job_model, serializer),
        places=_places_table(limit_place_model, handlers, job_model),
        serializer=serializer,
        retry=as_retries(retry_strategy),
        max_deaths=at_least_one("max_deaths", max_deaths),
        on_failed=on_failed,
        on_polling_error=on_polling_error,
        on_shutdown=on_shutdown,
        format_error=format_error,
        retention=as_retention(archive_retention),
        log=log,
        clock=clock,
        now=checked_clock(clock),
        notify=notify,
    )


def _running_table(model: type[Any] | None, database: Database) -> Table | None:
    if model is None or database.liveness_by is None:
        return None
    table: Table = sa_inspect(model).local_table
    return table


def _definitions(
    handlers: Handlers, job_model: type[JobMixin], serializer: Serializer
) -> Sequence[Definition]:
    """Return the recurring jobs of the handlers.

    :raises PayloadError: if a payload cannot be encoded.
    """
    if not handlers.recurring_jobs:  # then the modules do not need to be in memory
        return ()
    from ..handlers.recurring import definitions_of

    return definitions_of(handlers.recurring_jobs, job_model, serializer)


def _recurring_model(
    model: type[RecurringJobMixin] | Literal["default"] | None,
    handlers: Handlers,
    job_model: type[JobMixin],
) -> type[RecurringJobMixin] | None:
    """Return the mapped class of recurring jobs; None if the worker enqueues none.

    :raises ValueError: if the handlers define recurring jobs, but no class is given for the table.
    """
    if model is None or model != "default":
        return model
    if not handlers.recurring_jobs:
        return None
    if job_model is not Job:
        name = handlers.recurring_jobs[0].name
        msg = (
            f"the handlers define the recurring job {name!r}, but {job_model.__qualname__} has no "
            f"table of recurring jobs: map one with RecurringJobMixin and pass it as "
            f"recurring_job_model=, or pass recurring_job_model=None"
        )
        raise ValueError(msg)
    return RecurringJob


def _places_table(
    model: type[LimitPlaceMixin] | Literal["default"],
    handlers: Handlers,
    job_model: type[JobMixin],
) -> Table | None:
    """Return the table of the places of limits; None if no handler has a limit.

    :raises ValueError: if a handler has a limit, but no class is given for the table.
    """
    limited = next((handler.job_type for handler in handlers if handler.limit is not None), None)
    if limited is None:
        return None
    if model == "default":
        if job_model is not Job:
            msg = (
                f"the handler of {limited!r} has a limit, but {job_model.__qualname__} has no "
                f"table of places: map one with LimitPlaceMixin and pass it as limit_place_model="
            )
            raise ValueError(msg)
        model = LimitPlace
    table: Table = sa_inspect(model).local_table
    return table
