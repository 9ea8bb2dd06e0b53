"""Running due jobs in a session of the caller, one job at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypedDict

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ..clock import Clock, checked_clock, utcnow
from ..execution.decide import OutcomeDecider
from ..execution.invoke import Invoke
from ..execution.observe import run_observer
from ..execution.perform import JobExecutor
from ..execution.report import FailedFunction, Reporter
from ..execution.transaction.batch import Batch
from ..execution.transaction.batch_size import BatchSize
from ..execution.transaction.recovery import TransactionRecovery
from ..execution.transaction.runner import TransactionRunner
from ..handlers.checks import (
    claim_filter,
    queue_names,
    queue_weights,
    require_middleware,
    require_served,
)
from ..handlers.registry import Handlers
from ..lifecycle.outcomes import FormatFunction, error_text
from ..liveness.connection_losses import ConnectionLosses
from ..models.defaults import ArchivedJob, Job
from ..models.foreign_keys import require_foreign_keys
from ..models.job_classes import bind_arguments, check_models
from ..models.mixins import ArchivedJobMixin, JobMixin
from ..models.requirements import explained
from ..models.values import DEFAULT_QUEUE
from ..producer.options import JSON
from ..retry import RetryFunction, RetryLike, as_retries
from ..runtime.threads import Threads
from ..serializers import Serializer
from ..store.open import open_store
from ..telemetry.events import Events, LogFunction
from ..telemetry.observers import Observers
from .unknown_types import report_unknown


class NextJobOptions(TypedDict, total=False):
    """The options of :func:`process_next_job`; each has the meaning that it has for a worker.

    .. versionadded:: 0.1
    """

    queues: str | Sequence[str] | Mapping[str, int]
    job_model: type[JobMixin]
    archived_job_model: type[ArchivedJobMixin]
    serializer: Serializer
    retry_strategy: RetryFunction | RetryLike | None
    on_failed: FailedFunction | None
    format_error: FormatFunction
    log: LogFunction | None
    clock: Clock


def require_options(function_name: str, options: Iterable[str], known: type[Any]) -> None:
    """Raise ``TypeError`` unless all options are known.

    :param known: a TypedDict of optional keys.
    """
    for name in options:
        if name not in known.__optional_keys__:
            msg = (
                f"{function_name}() got an unexpected keyword argument {name!r}: its options are "
                f"{', '.join(sorted(known.__optional_keys__))}"
            )
            raise TypeError(msg)


class JobsInSession:
    """Runs due jobs one at a time, each in the transaction of the caller's session.

    The parameters are those of :func:`run_next_job`.
    """

    def __init__(
        self,
        session: Session,
        handlers: Handlers,
        new_invoke: Callable[[Events], Invoke],
        make_session: Callable[..., Session],
        *,
        queues: str | Sequence[str] | Mapping[str, int] = DEFAULT_QUEUE,
        job_model: type[JobMixin] = Job,
        archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
        serializer: Serializer = JSON,
        retry_strategy: RetryFunction | RetryLike | None = None,
        on_failed: FailedFunction | None = None,
        format_error: FormatFunction = error_text,
        log: LogFunction | None = None,
        clock: Clock = utcnow,
    ) -> None:
        require_served(handlers, job_model)
        require_middleware(handlers)
        check_models(job_model, archived_job_model)
        self._session = session
        self._make_session = make_session
        self._job_model = job_model
        self._events = Events(log)
        self._now = checked_clock(clock)
        self._store = open_store(
            session.get_bind(**bind_arguments(job_model)).dialect,
            job_model,
            archived_job_model,
            queue_names(queues),
            claim_filter=claim_filter(handlers, job_model),
            weights=queue_weights(queues),
            keeping=handlers.keeping,
        )
        observers = Observers(partial(self._events.emit, "observer-error"))
        observer = run_observer(observers, self._events, self._now)
        if observer is not None:
            self._store.read_details()
        self._reporter = Reporter(self._events, on_failed, observers)
        self._decider = OutcomeDecider(
            self._store,
            handlers,
            retry=as_retries(retry_strategy),
            format_error=format_error,
            reporter=self._reporter,
            events=self._events,
            now=self._now,
            stopping=_never,
        )
        self._executor = JobExecutor(
            self._store,
            handlers,
            serializer=serializer,
            invoke=new_invoke(self._events),
            reporter=self._reporter,
            observer=observer,
        )

    def run_next(self) -> Batch:
        """Run the next due job and commit it; return what happened, nothing if no job is due."""
        self._session.flush()
        connection = self._connection()
        runner = self._new_runner(connection)
        batch = Batch()
        require_foreign_keys(connection, self._job_model)
        self._store.database.begun(connection)
        try:
            try:
                with explained(connection, *self._store.uses):
                    runner.run_due(connection, batch)
            finally:
                runner.close()
            self._session.commit()
        except BaseException as error:
            self._reporter.undone(batch.runs, error)
            raise
        self._reporter.publish(batch.settled_first)
        self._reporter.publish(batch)
        self._reporter.undone(batch.runs)
        return batch

    def report_unknown_types(self) -> None:
        """Report due jobs of types that no handler is registered for."""
        found = self._store.unknown_types(self._connection(), self._now())
        report_unknown(found, self._events)

    def _connection(self) -> Connection:
        return self._session.connection(bind_arguments=bind_arguments(self._job_model))

    def _new_runner(self, connection: Connection) -> TransactionRunner:
        recovery = TransactionRecovery(
            store=self._store,
            decider=self._decider,
            events=self._events,
            runtime=Threads(),  # it is used only after a transaction that failed
            now=self._now,
            stopping=_never,
            losses=ConnectionLosses(),
            owed={},
            max_deaths=self._decider.max_deaths,
        )
        return TransactionRunner(
            store=self._store,
            executor=self._executor,
            decider=self._decider,
            reporter=self._reporter,
            recovery=recovery,
            batch_size=BatchSize(1, timedelta(seconds=1)),
            make_session=partial(self._make_session, bind=connection.engine),
            now=self._now,
            stopping=_never,
        )


def _never() -> bool:
    return False
