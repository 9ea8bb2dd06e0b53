"""The session that a handler is handed, whose transaction it must not end: it completes the job."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction

from .errors import HandlerEndedTransactionError

_MAY_COMMIT = "proletarian_may_commit"
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
