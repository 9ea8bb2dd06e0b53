"""Running all due jobs in the transaction of a test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Unpack

from sqlalchemy import select
from sqlalchemy.orm import Session, scoped_session

from ..arguments import at_least_one
from ..clock import Clock, checked_clock, substituted, utcnow
from ..execution.invoke import Invoke, InvokeInThread
from ..handlers.checks import queue_names, sync_only
from ..handlers.every_type import as_handlers
from ..handlers.registry import Handlers
from ..models.defaults import Job
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import JobMixin
from ..models.requirements import TableUse, explained
from ..models.values import DEFAULT_QUEUE
from ..producer.options import JSON
from ..producer.sessions import immediate_session, require_bind
from ..telemetry.events import Events
from ..tracebacks import from_the_handler
from ..worker.in_session import JobsInSession, NextJobOptions, require_options
from ..worker.next_job import class_for
from .enqueued_jobs import MODULE
from .job_runs import JobRun, runs_of

__tracebackhide__ = True  # pytest shows the line of the test instead

MAX_RUNS = 1000
SUCH_A_SESSION = "call drain with such a session"


class DrainOptions(NextJobOptions, total=False):
    """The options of :func:`drain`.

    :param queues: as for :class:`.QueueWorker`, but all queues by default. Jobs run in the order of
        the queues, even if these have weights.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param archived_job_model: the mapped class of its archive; :class:`.ArchivedJob` by default.
    :param serializer: the serializer that the jobs were enqueued with; :class:`.JSONSerializer` by
        default.
    :param retry_strategy: as for :class:`.QueueWorker`.
    :param on_failed: as for :class:`.QueueWorker`.
    :param format_error: as for :class:`.QueueWorker`.
    :param log: as for :class:`.QueueWorker`.
    :param clock: returns the time as an aware datetime; :func:`.utcnow` by default.
    :param raise_errors: whether to raise the error of the first attempt that fails, when its job
        has been retried or archived; False by default.
    :param max_runs: the number of runs after which an error is raised, because jobs that enqueue
        each other would run forever; 1000 by default.

    .. versionadded:: 0.1
    """

    raise_errors: bool
    max_runs: int


def drain(
    session: Session | scoped_session[Any],
    handlers: Handlers | Callable[[str, Any], Any],
    **options: Unpack[DrainOptions],
) -> list[JobRun]:
    """Run jobs in the session's transaction until none is due, and return their runs.

    Jobs that handlers enqueue run too, as do retries without a delay. The session is committed
    after each run, so it must not be in a ``with session.begin()`` block. In a session that is
    joined into an outer transaction, nothing leaves that transaction; in a session on an engine,
    this is a real commit. Afterwards all objects in the session are expired, so that they show what
    the handlers wrote.

    :param session: a Session or scoped_session. For an AsyncSession, use
        :func:`sqlalchemy_proletarian.testing.asyncio.drain`.
    :param handlers: as for :class:`.QueueWorker`. Jobs of other types are not run, but logged.
    :param options: see :class:`.DrainOptions`. While jobs run, ``clock`` is also the default clock
        of everything that handlers enqueue.
    :return: the runs in order; a job that is retried at once has several.
    :raises Exception: what the handler raised, if ``raise_errors`` is given.
    :raises DatabaseNotReadyError: if the tables do not fit.
    :raises HandlerError: if a handler is ``async``, or takes another class of session.
    :raises RuntimeError: if more than ``max_runs`` jobs are due.
    :raises ValueError: if a job was enqueued at a time to which ``clock`` has not come yet.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "drain", "handlers", module=MODULE)
    registry = sync_only(as_handlers(handlers), remedy=f"use `await {MODULE}.drain(…)`")
    make_session = class_for(registry, Session, type(unit), remedy=SUCH_A_SESSION)
    try:
        return run_due(unit, registry, InvokeInThread, make_session, **options)
    finally:
        unit.expire_all()


def run_due(
    session: Session,
    handlers: Handlers,
    new_invoke: Callable[[Events], Invoke],
    make_session: Callable[..., Session],
    *,
    raise_errors: bool = False,
    max_runs: int = MAX_RUNS,
    queues: str | Sequence[str] | Mapping[str, int] | None = None,
    clock: Clock = utcnow,
    **options: Any,
) -> list[JobRun]:
    """Run jobs until none is due, as :func:`drain` does, with handlers of any kind.

    :param new_invoke: makes what calls the handlers.
    :param make_session: makes the session of the handlers.
    """
    require_options("drain", options, DrainOptions)
    at_least_one("max_runs", max_runs)
    job_model, serializer = options.get("job_model", Job), options.get("serializer", JSON)
    require_bind(session, job_model)
    given = None if queues is None else queue_names(queues)
    runs: list[JobRun] = []
    with _default(clock):
        opened: dict[Sequence[str], JobsInSession] = {}
        while True:
            names = given or tuple(_queues(session, job_model)) or (DEFAULT_QUEUE,)
            if names not in opened:
                opened[names] = JobsInSession(
                    session,
                    handlers,
                    new_invoke,
                    make_session,
                    queues=names,
                    clock=clock,
                    **options,
                )
            batch = opened[names].run_next()
            latest = [
                *runs_of(batch.settled_first, handlers, serializer),
                *runs_of(batch, handlers, serializer),
            ]
            if not latest:
                break
            runs += latest
            if raise_errors:
                _raise_first(latest)
            if len(runs) > max_runs:
                raise _too_many(runs, max_runs)
        opened[names].report_unknown_types()
        _require_past(session, job_model, checked_clock(clock))
    return runs


def _default(clock: Clock) -> AbstractContextManager[None]:
    return nullcontext() if clock is utcnow else substituted(checked_clock(clock))


def _queues(session: Session, job_model: type[JobMixin]) -> Iterator[str]:
    """Return the names of all queues that have jobs, the default queue first."""
    statement = select(job_model.queue).distinct()
    session.flush()
    bind = session.get_bind(**bind_arguments(job_model))
    with explained(bind, TableUse(job_table(job_model), ("SELECT",))):
        names = session.scalars(statement, bind_arguments=bind_arguments(job_model)).all()
    return iter(sorted(names, key=lambda name: (name != DEFAULT_QUEUE, name)))


def _raise_first(runs: Sequence[JobRun]) -> None:
    for run in runs:
        if run.failed and run.error is not None:
            again = "" if run.process_at is None else f", {run.process_at.isoformat()}"
            run.error.add_note(
                f"Raised by attempt {run.attempt} of the job {run.job_type!r} with the payload "
                f"{run.payload!r:.200} ({run.outcome}{again})"
            )
            raise from_the_handler(run.error)


def _too_many(runs: Sequence[JobRun], max_runs: int) -> RuntimeError:
    counts = Counter(f"{run.job_type!r} ({run.outcome})" for run in runs).most_common(3)
    common = ", ".join(f"{number} of {what}" for what, number in counts)
    return RuntimeError(
        f"drain ran more than {max_runs} jobs: {common}. If they do not enqueue each other "
        f"forever, pass a higher max_runs"
    )


def _require_past(session: Session, job_model: type[JobMixin], now: Clock) -> None:
    """Raise ValueError if a job was enqueued later than now, by another clock."""
    statement = (
        select(job_model.job_type, job_model.enqueued_at)
        .where(job_model.enqueued_at > now())
        .order_by(job_model.enqueued_at)
        .limit(1)
    )
    row = session.execute(statement, bind_arguments=bind_arguments(job_model)).first()
    if row is not None:
        msg = (
            f"a job of type {row.job_type!r} was enqueued at {row.enqueued_at.isoformat()}, but "
            f"the clock of drain shows {now().isoformat()}, so the job is not due: it was enqueued "
            f"by another clock. Run the code that enqueues in a block `with clock:`, or with the "
            f"fixture proletarian_clock"
        )
        raise ValueError(msg)
