"""The transaction that holds a batch of jobs, and the session their handlers write through in it.

One failing job costs its own writes only: the handlers' session is joined into the claiming
transaction by a SAVEPOINT, which is sent when a handler first uses the database. A handler that
only adds objects does not: what it added waits, and is flushed together with what the other
handlers of the batch added, in one SAVEPOINT; if that fails, each on its own. It waits for the end
of the batch, or for the next handler that uses the database, which sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import chain
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction, make_transient

from ...callbacks import tamed
from ...database.error_codes import is_undone
from ...lifecycle.run import Run
from ..connection_state import PooledStates, SessionState
from ..guarded_session import TOUCHED, commit, ended_transaction, guard, kept_open, route_to


class JobUnit:
    """One transaction that holds jobs, and the session that their handlers write through in it.

    :param connection: whose transaction claims and settles.
    :param make_session: makes the handlers' session; a ``sessionmaker`` or ``Session`` itself.
    :param state: the state of the connection.
    """

    def __init__(
        self,
        connection: Connection,
        make_session: Callable[..., Session],
        state: SessionState | None = None,
    ) -> None:
        self.connection = connection
        self.state = state or SessionState(connection)
        self._others: PooledStates | None = None
        self.broken = False
        """Whether the connection or the transaction was lost with what waited: not by whoever used
        it then."""
        self._make_session = make_session
        self._joined: Session | None = None
        self._flusher: Session | None = None
        self._waiting: dict[Run, list[Any]] = {}
        self._errors: dict[Run, Exception] = {}

    @contextmanager
    def savepoint(self, owner: Run) -> Generator[Session]:
        """Hand out the handlers' session: all of the block's work takes effect, or none of it.

        Its commit reaches a SAVEPOINT only, and is refused to handlers.

        :param owner: whose work it is, see :meth:`flush`.
        """
        joined = self._session()
        transaction = joined.begin()
        joined.info[TOUCHED] = False
        with self.state.watched():
            try:
                with kept_open(self.connection, "commit", "rollback", "close"):
                    yield joined
                if joined.get_transaction() is not transaction:
                    raise ended_transaction()
                if _can_wait(joined):
                    self._waiting[owner] = list(joined.new)
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
        """Flush what waits, and return the owners whose work failed, with the errors."""
        self._flush_waiting()
        errors, self._errors = self._errors, {}
        return errors

    def _flush_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        given = {
            id(thing): frozenset(thing.__dict__) for thing in chain.from_iterable(waiting.values())
        }
        error = self._flush(chain.from_iterable(waiting.values()))
        if error is None:
            return
        self.broken = self.connection.invalidated
        if len(waiting) == 1:
            self._errors.update(dict.fromkeys(waiting, error))
            return
        for owner, things in waiting.items():
            for thing in things:
                _as_it_was(thing, given[id(thing)])
            if error := self._flush(things):
                self._errors[owner] = error

    def _flush(self, things: Iterable[Any]) -> Exception | None:
        """Flush in a SAVEPOINT; return what undid it, and raise what undid the transaction."""
        if self._flusher is None:
            self._flusher = self._new_session()
        flusher = self._flusher

        def flush() -> None:
            with self.state.watched(), flusher, flusher.begin():
                flusher.add_all(things)

        try:
            tamed(flush)  # defaults and listeners are the user's
        except Exception as error:
            if is_undone(error):
                self.broken = True
                raise
            return error
        return None

    def _session(self) -> Session:
        if self._joined is None:
            # The last moment before this session's own SAVEPOINT.
            joined = self._joined = self._new_session(self._flush_waiting)
            guard(joined)
            event.listen(joined, "after_begin", self._begun)
        return self._joined

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


def _can_wait(session: Session) -> bool:
    return not (session.info[TOUCHED] or session.dirty or session.deleted)


def _as_it_was(thing: Any, names: frozenset[str]) -> None:
    """Take back what a flush that was rolled back has set: ids, foreign keys, defaults."""
    make_transient(thing)
    for name in thing.__dict__.keys() - names:
        del thing.__dict__[name]
