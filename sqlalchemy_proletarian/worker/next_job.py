"""One job at a time, in a session of yours: for tests and the REPL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypedDict, Unpack

from sqlalchemy.orm import Session

from ..clock import Clock, utcnow
from ..execution.perform import FailedFunction, Performer
from ..execution.transaction.batch_size import Pace
from ..execution.transaction.runner import Batch, TransactionDesk
from ..handlers.checks import claim_filter, queue_names, require_served, require_session, sync_only
from ..handlers.registry import Handlers, as_handlers
from ..lifecycle.outcomes import INTERRUPTED, FormatFunction, error_text
from ..models.job_classes import bind_arguments, check_models, require_foreign_keys
from ..models.mixins import DEFAULT_QUEUE, ArchivedJob, ArchivedJobMixin, Job, JobMixin
from ..models.requirements import explained
from ..producer.options import JSON
from ..retry import RetryFunction, RetryLike, as_retries
from ..runtime.threads import Threads, Waiting
from ..serializers.json_serializer import Serializer
from ..store.open import open_store
from ..telemetry.events import Events, LogFunction


class NextJobOptions(TypedDict, total=False):
    """The options of :func:`process_next_job`; each means what it means to a worker.

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

    Works in a session that is joined into an outer transaction, and sees what is pending in it.

    :param session: it is committed, whatever else it holds included.
    :param handlers: as for :class:`.QueueWorker`, and so are the options: ``queues``,
        ``job_model``, ``archived_job_model``, ``serializer``, ``retry_strategy``, ``on_failed``,
        ``format_error``, ``log`` and ``clock``.
    :return: True if a job ran, successfully or not; False if its run was interrupted; None if
        nothing was due that ``handlers`` know.
    :raises DatabaseNotReadyError: if the tables or the role's privileges are not what it needs.

    .. versionadded:: 0.1
    """
    registry = sync_only(as_handlers(handlers))
    make_session = class_for(registry, Session, type(session))
    return run_next_job(session, registry, Threads, make_session, **options)


def class_for(handlers: Handlers, usual: type[Any], given: type[Any]) -> type[Any]:
    """Return the class of the session that handlers get, in a session of the class ``given``.

    :raises HandlerError: if a handler wants one of another class.
    """
    wanted = [kind for handler in handlers for kind in handler.signature.session_types]
    made = usual if all(issubclass(usual, kind) for kind in wanted) else given
    for handler in handlers:
        require_session(handler, made, remedy="call process_next_job with such a session")
    return made


def run_next_job(
    session: Session,
    handlers: Handlers,
    new_waiting: Callable[[Events], Waiting],
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
    """Run the next due job, as :func:`process_next_job` says, with handlers of any kind.

    :param new_waiting: what calls the handlers.
    :param make_session: makes the handlers' session.
    """
    require_served(handlers, job_model)
    check_models(job_model, archived_job_model)
    events = Events(log)
    dialect = session.get_bind(**bind_arguments(job_model)).dialect
    performer = Performer(
        open_store(
            dialect,
            job_model,
            archived_job_model,
            queue_names(queues),
            claim_filter=claim_filter(handlers, job_model),
        ),
        handlers,
        serializer=serializer,
        retry=as_retries(retry_strategy),
        on_failed=on_failed,
        format_error=format_error,
        events=events,
        clock=clock,
        stopping=lambda: False,
        waiting=new_waiting(events),
    )
    pace = Pace(1, timedelta(seconds=1))
    batch = Batch()
    session.flush()
    connection = session.connection(bind_arguments=bind_arguments(job_model))
    bound = partial(make_session, bind=connection.engine)
    desk = TransactionDesk(performer, make_session=bound, pace=pace)
    require_foreign_keys(connection, job_model)
    performer.store.database.begun(connection)
    try:
        with explained(connection, *performer.store.uses):
            desk.run_due(connection, batch)
    finally:
        desk.close()
    session.commit()
    performer.tell(batch.written)
    performer.tell(batch)
    if not batch.results:
        return True if batch.written.results else None
    return batch.results[0][1] is not INTERRUPTED
