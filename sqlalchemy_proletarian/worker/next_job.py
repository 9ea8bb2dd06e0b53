"""Running one job at a time, in a session of the caller: for tests and the REPL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from sqlalchemy.orm import Session

from ..execution.invoke import Invoke, InvokeInThread
from ..handlers.checks import declared_session_types, require_session, sync_only
from ..handlers.every_type import as_handlers
from ..handlers.registry import Handlers
from ..lifecycle.outcomes import INTERRUPTED
from ..telemetry.events import Events
from .in_session import JobsInSession, NextJobOptions, require_options


def process_next_job(
    session: Session,
    handlers: Handlers | Callable[[str, Any], Any],
    **options: Unpack[NextJobOptions],
) -> bool | None:
    """Run the next due job in the session's transaction and commit it; for tests and the REPL.

    Works in a session that is joined into an outer transaction, and sees pending objects. Applies
    no limits of job types.

    :param session: is committed, with all its other changes.
    :param handlers: as for :class:`.QueueWorker`.
    :param options: as for :class:`.QueueWorker`: ``queues``, ``job_model``, ``archived_job_model``,
        ``serializer``, ``retry_strategy``, ``on_failed``, ``format_error``, ``log`` and ``clock``.
    :return: True if a job ran, successfully or not; False if its run was interrupted; None if no
        job was due that ``handlers`` know.
    :raises DatabaseNotReadyError: if the tables or the privileges of the role do not fit.

    .. versionadded:: 0.1
    """
    registry = sync_only(as_handlers(handlers))
    make_session = class_for(registry, Session, type(session))
    return run_next_job(session, registry, InvokeInThread, make_session, **options)


def class_for(
    handlers: Handlers,
    usual: type[Any],
    given: type[Any],
    *,
    remedy: str = "call process_next_job with such a session",
) -> type[Any]:
    """Return the class of the handlers' session, if the caller's session is of the class ``given``.

    :param remedy: the advice in the error message.
    :raises HandlerError: if a handler is annotated with another class.
    """
    wanted = declared_session_types(handlers)
    made = usual if all(issubclass(usual, kind) for kind in wanted) else given
    for handler in handlers:
        require_session(handler, made, None, remedy=remedy)
    return made


def run_next_job(
    session: Session,
    handlers: Handlers,
    new_invoke: Callable[[Events], Invoke],
    make_session: Callable[..., Session],
    **options: Unpack[NextJobOptions],
) -> bool | None:
    """Run the next due job, as :func:`process_next_job` does, with handlers of any kind.

    :param new_invoke: makes what calls the handlers.
    :param make_session: makes the session of the handlers.
    """
    require_options("process_next_job", options, NextJobOptions)
    batch = JobsInSession(session, handlers, new_invoke, make_session, **options).run_next()
    if not batch.results:
        return True if batch.settled_first.results else None
    return batch.results[0][1] is not INTERRUPTED
