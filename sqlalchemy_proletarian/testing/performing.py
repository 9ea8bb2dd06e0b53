"""Running one handler in a test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, delete
from sqlalchemy.orm import Session, scoped_session

from ..clock import Clock, utcnow, uuid7
from ..database.dialects import database_of
from ..errors import OwnJobRemovedError
from ..execution.batch_call import invoke_alone
from ..execution.invoke import Invoke, InvokeInThread, decode_payload
from ..execution.perform import encode_result
from ..execution.transaction.session import BatchSession
from ..handlers.checks import require_middleware, sync_only
from ..handlers.handler import Handler
from ..handlers.registry import Handlers
from ..lifecycle.claimed import ClaimedJob
from ..lifecycle.run import Run
from ..models.defaults import Job
from ..models.foreign_keys import require_foreign_keys
from ..models.job_classes import attach, base_of, bind_arguments, job_table
from ..models.mixins import JobMixin
from ..models.requirements import TableUse, explained
from ..producer.options import JSON
from ..producer.sessions import require_bind, sync_session
from ..serializers.json_serializer import Serializer
from ..store.loading import JobLoader
from ..telemetry.events import Events
from ..tracebacks import from_the_handler
from ..worker.next_job import class_for
from .enqueued_jobs import MODULE

__tracebackhide__ = True  # pytest shows the line of the test instead

PayloadT = TypeVar("PayloadT")

SUCH_A_SESSION = "call perform with such a session"


def perform(
    handler: Handler[PayloadT, ..., Any],
    payload: PayloadT,
    *,
    session: Session | scoped_session[Any] | None = None,
    job_model: type[JobMixin] = Job,
    serializer: Serializer = JSON,
    attempt: int = 1,
    clock: Clock = utcnow,
    **columns: Any,
) -> None:
    """Run one handler as a worker does, and raise what it raises.

    The payload is encoded and decoded first. The handler gets a session of its own, in a SAVEPOINT
    in the transaction of ``session``, and cannot commit it. A job of that payload is in the table
    while the handler runs, and in no table afterwards. If the handler raises, nothing that it wrote
    is left. No retry strategy is applied; exceptions like :class:`.Snooze` are raised, too.

    A batch handler is called with a list of one payload; if it raises :class:`.BatchFailed`, the
    error of that payload is raised.

    :param handler: what ``@handlers(…)`` returned; or ``handlers.find(job_type)``.
    :param payload: the payload. For the handler of a job class, a new object of that class.
    :param session: a Session or scoped_session, which is flushed and not committed. Required if the
        handler takes a session or the job. For ``async`` handlers, use
        :func:`sqlalchemy_proletarian.testing.asyncio.perform`.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param serializer: the serializer of payloads, unless the handler has one;
        :class:`.JSONSerializer` by default.
    :param attempt: the number of the attempt, which is ``job.attempts``; 1 by default.
    :param clock: the clock by which the job is enqueued; :func:`.utcnow` by default.
    :param columns: values for the columns that ``job_model`` adds.
    :raises Exception: what the handler raised.
    :raises HandlerError: if the handler is ``async``, or takes another class of session.
    :raises PayloadError: if the payload, or a result to keep, would not be equal after decoding it.
    :raises TypeError: if an argument is of the wrong type, or the session is missing.

    .. versionadded:: 0.1
    """
    registry = registry_of(handler)
    sync_only(registry, remedy=f"use `await {MODULE}.perform(…)`")
    unit = None
    make_session: Callable[..., Session] = Session
    if session is not None:
        unit = sync_session(session)
        if not isinstance(session, Session | scoped_session):
            msg = (
                f"perform needs a synchronous session, not {type(session).__qualname__}: in "
                f"asyncio, use `await {MODULE}.perform(handler, payload, session=session)`"
            )
            raise TypeError(msg)
        make_session = class_for(registry, Session, type(unit), remedy=SUCH_A_SESSION)
    run_handler(
        handler,
        payload,
        unit,
        InvokeInThread,
        make_session,
        job_model=job_model,
        serializer=serializer,
        attempt=attempt,
        clock=clock,
        columns=columns,
    )
    if unit is not None:
        unit.expire_all()


def registry_of(handler: Any) -> Handlers:
    """Return a registry with one handler.

    :raises TypeError: if it is no handler.
    """
    if not isinstance(handler, Handler):
        msg = (
            f"perform runs what @handlers(…) returned, not {handler!r:.100}: if another decorator "
            f"is above it, take handlers.find(job_type)"
        )
        raise TypeError(msg)
    registry = Handlers()
    registry.add(handler)
    return registry


def run_handler(
    handler: Handler[Any, ..., Any],
    payload: Any,
    session: Session | None,
    new_invoke: Callable[[Events], Invoke],
    make_session: Callable[..., Session],
    *,
    job_model: type[JobMixin],
    serializer: Serializer,
    attempt: int,
    clock: Clock,
    columns: dict[str, Any],
) -> None:
    """Run one handler, as :func:`perform` does, of any kind.

    :param new_invoke: makes what calls the handler.
    :param make_session: makes the session of the handler.
    """
    require_middleware(registry_of(handler))
    invoke = new_invoke(Events(None))
    if session is None:
        if handler.needs_session or handler.needs_job:
            own = handler.signature.needs_session or handler.signature.needs_job
            msg = (
                f"{'' if own else 'a middleware of '}the handler of {handler.job_type!r} takes a "
                f"session or the job, so perform needs session="
            )
            raise TypeError(msg)
        annotation = handler.signature.payload_type or Any
        text = (handler.serializer or serializer).encode(payload, annotation)
        run = Run(ClaimedJob(uuid7(), handler.job_type, text, attempt), handler)
        _invoke(invoke, run, decode_payload(handler, text, serializer), None, serializer)
        return
    options: dict[str, Any] = {"notify": False, "clock": clock, **columns}
    if handler.job_class is None:
        options["job_model"] = job_model
        options["serializer"] = handler.serializer or serializer
    else:
        job_model = base_of(handler.job_class)
    require_bind(session, job_model)
    session.flush()
    connection = session.connection(bind_arguments=bind_arguments(job_model))
    require_foreign_keys(connection, job_model)
    database_of(connection.dialect).begun(connection)
    with session.begin_nested():
        queued = handler.enqueue(session, payload, **options)
        with explained(connection, TableUse(job_table(job_model), ("SELECT", "INSERT", "DELETE"))):
            session.flush()
        job = ClaimedJob(queued.job_id, handler.job_type, queued.payload, attempt)
        session.expunge(queued)
        run = Run(job, handler)
        if handler.needs_job:
            run.row = _load(connection, job, job_model)
        decoded = decode_payload(handler, job.payload, serializer)
        make = partial(make_session, bind=connection.engine)
        _call(run, decoded, connection, invoke, make, serializer=serializer)
        _remove(connection, job, job_model)


def _load(connection: Connection, job: ClaimedJob, job_model: type[JobMixin]) -> Any:
    has_id = job_model.job_id.in_(bindparam("ids", expanding=True))
    return JobLoader(job_model, has_id).load(connection, [job])[job.job_id]


def _call(
    run: Run,
    payload: Any,
    connection: Connection,
    invoke: Invoke,
    make_session: Callable[..., Session],
    *,
    serializer: Serializer,
) -> None:
    if not run.handler.needs_session:
        _invoke(invoke, run, payload, None, serializer)
        return
    batch = BatchSession(connection, make_session)
    try:
        with batch.savepoint(run) as session:
            if run.row is not None:
                attach(session, run.row)
            _invoke(invoke, run, payload, session, serializer)
        for error in batch.flush().values():
            raise error
    finally:
        batch.state.close()


def _invoke(invoke: Invoke, run: Run, payload: Any, session: Any, serializer: Serializer) -> None:
    try:
        if run.handler.batch_size is not None:
            invoke_alone(invoke, run, payload, session)
            return
        result = invoke(run, run.handler, payload, session)
        if run.handler.keep_result:
            encode_result(run.handler, result, serializer)
    except Exception as error:
        raise from_the_handler(error) from error.__cause__


def _remove(connection: Connection, job: ClaimedJob, job_model: type[JobMixin]) -> None:
    table = job_table(job_model)
    done = connection.execute(delete(table).where(table.c.job_id == job.job_id))
    if done.rowcount == 0:
        raise OwnJobRemovedError
