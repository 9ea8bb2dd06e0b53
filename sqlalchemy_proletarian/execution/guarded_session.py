"""Protecting the handler's session, whose transaction completes the job, against being ended."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, SessionTransaction

from ..errors import HandlerEndedTransactionError, HandlerError

_MAY_COMMIT = "proletarian_may_commit"
_ON_BEGIN = "proletarian_on_begin"
_GUARDED = "_proletarian_guarded_class"
JOINED = "proletarian_joined"
"""The key in a session's ``info`` of whether it joined the transaction that claims jobs."""
TOUCHED = "proletarian_touched"
"""The key in a session's ``info`` of whether it was used."""


BeginFunction: TypeAlias = Callable[[Session, SessionTransaction, Connection], object]
"""A listener for the event ``after_begin`` of a session."""


def guard(session: Session, on_begin: BeginFunction) -> None:
    """Prevent handlers from committing a session, and note in its ``info`` when it is used.

    :param on_begin: called when the session begins a transaction on a connection.
    """
    session.info[_ON_BEGIN] = on_begin
    if "dispatch" in vars(session):  # it has listeners of its own
        _listen(session)
    else:
        # Adding listeners to each session would take longer than many jobs do.
        session.__class__ = _guarded_class(type(session))


def _guarded_class(session_class: type[Session]) -> type[Session]:
    """Return a subclass with the listeners, as ``sessionmaker`` creates subclasses."""
    guarded: type[Session] | None = vars(session_class).get(_GUARDED)
    if guarded is None:
        namespace = {"__module__": session_class.__module__, "__doc__": session_class.__doc__}
        guarded = type(session_class.__name__, (session_class,), namespace)
        _listen(guarded)
        setattr(session_class, _GUARDED, guarded)
    return guarded


def _listen(target: Session | type[Session]) -> None:
    event.listen(target, "before_commit", _prevent_commit)
    event.listen(target, "after_begin", _begun)


def _begun(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    session.info[TOUCHED] = True
    session.info[_ON_BEGIN](session, transaction, connection)


def commit(session: Session) -> None:
    """Commit a guarded session."""
    session.info[_MAY_COMMIT] = True
    try:
        session.commit()
    finally:
        del session.info[_MAY_COMMIT]


def _prevent_commit(session: Session) -> None:
    if _MAY_COMMIT not in session.info and not session.in_nested_transaction():
        raise ended_transaction()


@contextmanager
def kept_open(connection: Connection, *ends: str) -> Generator[None]:
    """Let these methods of a connection raise in the block, so that handlers cannot end it."""
    for name in ends:
        setattr(connection, name, _raise_ended)
    try:
        yield
    finally:
        for name in ends:
            delattr(connection, name)


def _raise_ended() -> None:
    raise ended_transaction()


def ended_transaction() -> HandlerEndedTransactionError:
    """Return the error to raise if a handler ended the transaction."""
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
    """Make a session use ``target`` where it would use the engine of the job table.

    Other databases that it uses, by ``binds=`` or a ``get_bind`` of its class, stay the same.

    :param before_use: called each time before the session chooses a database.
    """
    original = session.get_bind

    def get_bind(*args: Any, **kwargs: Any) -> Any:
        if before_use is not None:
            before_use()
        found = original(*args, **kwargs)
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
