"""The session that a handler is handed, whose transaction it must not end: it completes the job."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, SessionTransaction

from ..errors import HandlerEndedTransactionError, HandlerError

_MAY_COMMIT = "proletarian_may_commit"
JOINED = "proletarian_joined"
"""The key of whether the session writes in a transaction of the worker's."""
TOUCHED = "proletarian_touched"
"""The key in a session's ``info`` of whether it was used."""


def guard(session: Session) -> None:
    """Refuse a session's commit to handlers, and note in its ``info`` when it is used."""
    event.listen(session, "before_commit", _refuse_commit)
    event.listen(session, "after_begin", _touched)


def commit(session: Session) -> None:
    """Commit a session that is guarded."""
    session.info[_MAY_COMMIT] = True
    try:
        session.commit()
    finally:
        del session.info[_MAY_COMMIT]


def _refuse_commit(session: Session) -> None:
    if _MAY_COMMIT not in session.info and not session.in_nested_transaction():
        raise ended_transaction()


@contextmanager
def kept_open(connection: Connection, *ends: str) -> Generator[None]:
    """Refuse to end a connection or its transaction, in which jobs complete, by these methods."""
    for name in ends:
        setattr(connection, name, _refuse)
    try:
        yield
    finally:
        for name in ends:
            delattr(connection, name)


def _refuse() -> None:
    raise ended_transaction()


def _touched(session: Session, _transaction: SessionTransaction, _connection: Connection) -> None:
    session.info[TOUCHED] = True


def ended_transaction() -> HandlerEndedTransactionError:
    """Return what to raise where a handler has ended it."""
    return HandlerEndedTransactionError(
        "the handler ended the transaction of the session it was handed (commit, rollback or "
        "close): it completes with the job; use session.begin_nested() for a part that may be "
        "undone, or a session of your own for what must stay whatever becomes of the job"
    )


def route_to(
    session: Session,
    engine: Engine,
    target: Engine | Connection,
    before_use: Callable[[], object] | None = None,
) -> None:
    """Make a session use ``target`` wherever it would use the engine that the jobs are in.

    What it says of other databases, by ``binds=`` or a ``get_bind`` of its class, stays.

    :param before_use: called each time that the session looks for a database.
    """
    find_bind = session.get_bind

    def get_bind(*args: Any, **kwargs: Any) -> Any:
        if before_use is not None:
            before_use()
        found = find_bind(*args, **kwargs)
        if found is engine or found is target:
            return target
        if isinstance(found, Engine) and found.pool is engine.pool:
            msg = (
                f"{type(session).__qualname__}.get_bind returned an engine on the database of the "
                f"jobs with execution options of its own, {dict(found.get_execution_options())}: "
                f"what is written through it would not commit with the job. Return the worker's "
                f"own engine, and set the options with session.connection(execution_options=…)"
            )
            raise HandlerError(msg)
        return found

    session.get_bind = get_bind  # type: ignore[method-assign]
    session.info[JOINED] = isinstance(target, Connection)
