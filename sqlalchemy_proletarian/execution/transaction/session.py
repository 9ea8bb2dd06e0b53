"""The session that the handlers of a batch share in transaction mode.

A failing job loses only its own writes: the session is joined into the claiming transaction with a
SAVEPOINT per job, which is sent when the handler first uses the database. A handler that only adds
objects sends no SAVEPOINT. Its objects are pending until the end of the batch, or until the next
handler uses the database. All pending objects are flushed in one SAVEPOINT; if that fails, the
objects of each job are flushed in a SAVEPOINT of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import chain
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session, SessionTransaction

from ...callbacks import call_user_function
from ...database.error_codes import is_undone
from ...lifecycle.run import Run
from ..connection_state import ConnectionState, PooledStates
from ..guarded_session import TOUCHED, commit, ended_transaction, guard, kept_open, route_to
from ..pending import attributes_of, is_pending_only, restore


class ExistingSavepoint:
    """A SAVEPOINT that was sent with another statement, as a transaction for a session."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.is_active: bool = True
        self._connection = connection
        self._name = name

    def commit(self) -> None:
        """Leave it to the end of the transaction to release the SAVEPOINT."""
        self.is_active = False

    def rollback(self) -> None:
        """Roll back to the SAVEPOINT."""
        self.is_active = False
        if not self._connection.invalidated:
            self._connection.dialect.do_rollback_to_savepoint(self._connection, self._name)

    def close(self) -> None:
        """Roll back unless that, or the commit, has happened."""
        if self.is_active:
            self.rollback()


class BatchSession:
    """The session of the handlers of one batch, and of the next one after :meth:`restart`.

    :param connection: the connection whose transaction claims and settles the jobs.
    :param make_session: makes the session; a ``sessionmaker`` or a session class.
    :param state: watches the state of the connection.
    """

    def __init__(
        self,
        connection: Connection,
        make_session: Callable[..., Session],
        state: ConnectionState | None = None,
    ) -> None:
        self.connection = connection
        self.state: ConnectionState = state or ConnectionState(connection)
        self._others: PooledStates | None = None
        self.broken: bool = False
        """Whether flushing pending objects lost the connection or the transaction: the cause is not
        the handler that was running then."""
        self._make_session = make_session
        self._joined: Session | None = None
        self._flusher: Session | None = None
        self._savepoint: str | None = None
        self._pending: dict[Run, list[Any]] = {}
        self._errors: dict[Run, Exception] = {}

    def restart(self, savepoint: str | None) -> None:
        """Begin the next batch.

        :param savepoint: the name of a SAVEPOINT that was set after the claim. It is used in place
            of the first SAVEPOINT that a session would send.
        """
        self._pending, self._errors = {}, {}
        self._savepoint = savepoint

    @contextmanager
    def savepoint(self, owner: Run) -> Generator[Session]:
        """Yield the session for one handler: all of its writes take effect, or none of them.

        The handler cannot commit the session.

        :param owner: the run of the handler, see :meth:`flush`.
        """
        joined = self._session()
        transaction = joined.begin()
        joined.info[TOUCHED] = False
        with self.state.watched(), self._first_savepoint():
            try:
                with kept_open(self.connection, "commit", "rollback", "close"):
                    yield joined
                if joined.get_transaction() is not transaction:
                    raise ended_transaction()
                if is_pending_only(joined):
                    self._pending[owner] = list(joined.new)
                    joined.expunge_all()
                else:
                    joined.flush()
                    if self._others is not None:
                        self._others.discard_after(joined)
                    commit(joined)
            finally:
                if self._others is not None:
                    self._others.discard()
                joined.close()

    def flush(self) -> dict[Run, Exception]:
        """Flush the pending objects; return the runs whose objects failed, with the errors."""
        self._flush_pending()
        errors, self._errors = self._errors, {}
        return errors

    def _flush_pending(self) -> None:
        pending, self._pending = self._pending, {}
        if not pending:
            return
        given = attributes_of(chain.from_iterable(pending.values()))
        error = self._flush(chain.from_iterable(pending.values()))
        if error is None:
            return
        self.broken = self.connection.invalidated
        if len(pending) == 1:
            self._errors.update(dict.fromkeys(pending, error))
            return
        for owner, things in pending.items():
            restore(things, given)
            if error := self._flush(things):
                self._errors[owner] = error

    def _flush(self, things: Iterable[Any]) -> Exception | None:
        """Flush in a SAVEPOINT and return its error; raise an error that undid the transaction."""
        if self._flusher is None:
            self._flusher = self._new_session()
        flusher = self._flusher

        def flush() -> None:
            with self.state.watched(), self._first_savepoint(), flusher, flusher.begin():
                flusher.add_all(things)

        try:
            call_user_function(flush)  # it calls defaults and listeners of the user
        except Exception as error:
            if is_undone(error):
                self.broken = True
                raise
            return error
        return None

    def _session(self) -> Session:
        if self._joined is None:
            # Pending objects are flushed just before the SAVEPOINT of this session.
            joined = self._joined = self._new_session(self._flush_pending)
            guard(joined, self._begun)
        return self._joined

    @contextmanager
    def _first_savepoint(self) -> Generator[None]:
        """Let the first session of the block that needs a SAVEPOINT use the one that exists."""
        name, connection = self._savepoint, self.connection
        if name is None:
            yield
            return

        def begin_nested() -> ExistingSavepoint:
            self._savepoint = None
            del connection.begin_nested
            return ExistingSavepoint(connection, name)

        connection.begin_nested = begin_nested  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            vars(connection).pop("begin_nested", None)

    def _begun(
        self, _session: Session, transaction: SessionTransaction, connection: Connection
    ) -> None:
        if connection is not self.connection and not transaction.nested:
            if self._others is None:
                self._others = PooledStates()
            self._others.watch(connection)

    def _new_session(self, before_use: Callable[[], object] | None = None) -> Session:
        session = self._make_session(join_transaction_mode="create_savepoint")
        route_to(session, self.connection.engine, self.connection, before_use)
        return session
