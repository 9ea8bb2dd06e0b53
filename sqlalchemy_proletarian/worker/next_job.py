"""Running one job at a time, in a session of the caller: for tests and the REPL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypedDict, Unpack

from sqlalchemy.orm import Session

from ..clock import Clock, checked_clock, utcnow
from ..execution.decide import OutcomeDecider
from ..execution.invoke import Invoke, InvokeInThread
from ..execution.perform import JobExecutor
from ..execution.report import FailedFunction, Reporter
from ..execution.transaction.batch import Batch
from ..execution.transaction.batch_size import BatchSize
from ..execution.transaction.recovery import TransactionRecovery
from ..execution.transaction.runner import TransactionRunner
from ..handlers.checks import (
    claim_filter,
    queue_names,
    require_served,
    require_session,
    sync_only,
)
from ..handlers.registry import Handlers, as_handlers
from ..lifecycle.outcomes import INTERRUPTED, FormatFunction, error_text
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


class NextJobOptions(TypedDict, total=False):
    """The options of :func:`process_next_job`; each has the meaning that it has for a worker.

    .. versionadded:: 0.1
    """

    queues: str | Sequence[str]
    job_model: type[JobMixin]
    archived_job_model: type[ArchivedJobMixin]
    serializer: Serializer
    retry_strategy: RetryFunction | RetryLike | None
    on_failed: FailedFunction | None
    format_error: FormatFunction
    log: LogFunction | None
    clock: Clock


def process_next_job(
    session: Session,
    handlers: Handlers | Callable[[str, Any], Any],
    **options: Unpack[NextJobOptions],
) -> bool | None:
    """Run the next due job in the session's transaction and commit it; for tests and the REPL.

    Works in a session that is joined into an outer transaction, and sees pending objects.

    :param session: is committed, with all its other changes.
    :param handlers: as for :class:`.QueueWorker`, and so are the options: ``queues``,
        ``job_model``, ``archived_job_model``, ``serializer``, ``retry_strategy``, ``on_failed``,
        ``format_error``, ``log`` and ``clock``.
    :return: True if a job ran, successfully or not; False if its run was interrupted; None if no
        job was due that ``handlers`` know.
    :raises DatabaseNotReadyError: if the tables or the privileges of the role do not fit.

    .. versionadded:: 0.1
    """
    registry = sync_only(as_handlers(handlers))
    make_session = class_for(registry, Session, type(session))
    return run_next_job(session, registry, InvokeInThread, make_session, **options)


def class_for(handlers: Handlers, usual: type[Any], given: type[Any]) -> type[Any]:
    """Return the class of the handlers' session, if the caller's session is of the class ``given``.

    :raises HandlerError: if a handler is annotated with another class.
    """
    wanted = [kind for handler in handlers for kind in handler.signature.session_types]
    made = usual if all(issubclass(usual, kind) for kind in wanted) else given
    for handler in handlers:
        require_session(handler, made, remedy="call process_next_job with such a session")
    return made


def run_next_job(
    session: Session,
    handlers: Handlers,
    new_invoke: Callable[[Events], Invoke],
    make_session: Callable[..., Session],
    *,
    queues: str | Sequence[str] = DEFAULT_QUEUE,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    serializer: Serializer = JSON,
    retry_strategy: RetryFunction | RetryLike | None = None,
    on_failed: FailedFunction | None = None,
    format_error: FormatFunction = error_text,
    log: LogFunction | None = None,
    clock: Clock = utcnow,
) -> bool | None:
    """Run the next due job, as :func:`process_next_job` does, with handlers of any kind.

    :param new_invoke: makes what calls the handlers.
    :param make_session: makes the session of the handlers.
    """
    require_served(handlers, job_model)
    check_models(job_model, archived_job_model)
    events, now = Events(log), checked_clock(clock)
    store = open_store(
        session.get_bind(**bind_arguments(job_model)).dialect,
        job_model,
        archived_job_model,
        queue_names(queues),
        claim_filter=claim_filter(handlers, job_model),
    )
    reporter = Reporter(events, on_failed)
    decider = OutcomeDecider(
        store,
        handlers,
        retry=as_retries(retry_strategy),
        format_error=format_error,
        reporter=reporter,
        events=events,
        now=now,
        stopping=_never,
    )
    executor = JobExecutor(
        store, handlers, serializer=serializer, invoke=new_invoke(events), reporter=reporter
    )
    session.flush()
    connection = session.connection(bind_arguments=bind_arguments(job_model))
    runner = TransactionRunner(
        store=store,
        executor=executor,
        decider=decider,
        reporter=reporter,
        recovery=TransactionRecovery(
            store=store,
            decider=decider,
            events=events,
            runtime=Threads(),  # it is used only after a transaction that failed
            now=now,
            stopping=_never,
            losses=ConnectionLosses(),
            owed={},
        ),
        batch_size=BatchSize(1, timedelta(seconds=1)),
        make_session=partial(make_session, bind=connection.engine),
        now=now,
        stopping=_never,
    )
    batch = Batch()
    require_foreign_keys(connection, job_model)
    store.database.begun(connection)
    try:
        with explained(connection, *store.uses):
            runner.run_due(connection, batch)
    finally:
        runner.close()
    session.commit()
    reporter.publish(batch.settled_first)
    reporter.publish(batch)
    if not batch.results:
        return True if batch.settled_first.results else None
    return batch.results[0][1] is not INTERRUPTED


def _never() -> bool:
    return False
