"""The sessions of handlers whose jobs are leased: each has a transaction of its own.

It shares that with the completion of its job: both take effect, or neither.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from ...database import keepalive
from ...database.connections import is_lost, sever
from ...database.dialects import Database, database_of, driver_connection
from ...database.error_codes import causes_of, is_busy, is_undone
from ...errors import HandlerEndedTransactionError
from ...lifecycle.run import Run
from ...liveness.orphans import LeasedJobs
from ...models.job_classes import bind_arguments
from ..connection_state import PooledStates, SessionState, WatchedEngine
from ..guarded_session import TOUCHED, commit, ended_transaction, guard, kept_open, route_to

_REFUSED: Final = "proletarian_refused"


class ConnectionLostError(Exception):
    """The session that a handler was handed has lost its connection, or cannot get one.

    Or it cannot write to it, because somebody else does all the time.
    """


class OwnTransactions:
    """Sessions for handlers, each with a transaction of its own.

    :param make_session: makes them.
    :param engine: which the jobs are in. On its connections an isolation level of the engine's own
        gives way to READ COMMITTED: in AUTOCOMMIT nothing could be undone, and above it a job could
        not complete whose lease was extended meanwhile.
    :param lines: lets others find those connections.
    """

    def __init__(
        self,
        make_session: Callable[..., Session],
        engine: Engine,
        job_model: type[Any],
        lines: LeasedJobs | None,
    ) -> None:
        self._make_session = make_session
        self._engine = engine
        self._database = database_of(engine.dialect)
        self._read_committed = _marking(engine.execution_options(), self._database.isolation_level)
        self._watched = WatchedEngine(self._read_committed)
        self._job_model = job_model
        self._lines = lines

    @contextmanager
    def begin(self, owner: Run, complete: Callable[[Connection], object]) -> Generator[Session]:
        """Hand out a session; its transaction commits with the block.

        Its commit is refused to handlers. If it was not used at all, nothing is sent.

        :param owner: whose work it is.
        :param complete: called in the transaction, just before it commits; what it raises rolls
            back.
        :raises ConnectionLostError: if that is why the block, or the commit, has failed.
        """
        with ExitStack() as watches, _closed_at_the_end(self._make_session()) as session:
            guard(session)
            line = self._watch(session, watches, owner)
            session.info[TOUCHED] = False
            transaction = session.begin()
            try:
                try:
                    with line.handed_out():
                        yield session
                    self._end(session, transaction, line, owner, complete)
                finally:
                    line.discard()
            except CancelledError:  # the event loop ends, and need not wait for a rollback
                line.cut()
                raise
            except Exception as error:
                if line.is_lost(error):
                    raise ConnectionLostError from error
                raise

    def _end(
        self,
        session: Session,
        transaction: SessionTransaction,
        line: _Line,
        owner: Run,
        complete: Callable[[Connection], object],
    ) -> None:
        if session.get_transaction() is not transaction or line.is_closed():
            raise ended_transaction()
        if session.info[TOUCHED] or session.new or session.dirty or session.deleted:
            session.flush()
            line.restore()
            line.require_whole()
            owner.changed = line.changed
            complete(session.connection(bind_arguments=bind_arguments(self._job_model)))
            line.discard_after(session)
            commit(session)

    def _watch(self, session: Session, watches: ExitStack, owner: Run) -> _Line:
        line = _Line(self._database, self._watched)
        route_to(session, self._engine, self._read_committed)

        def begun(_session: Session, transaction: SessionTransaction, to: Connection) -> None:
            if not transaction.nested:
                if to.engine is self._read_committed:
                    line.begun(to)
                    if self._lines is not None:
                        self._lines.show(to, owner.job.job_id)
                line.keep_open(to)
                watches.enter_context(keepalive.at_both_ends(to, driver_connection(to)))
                line.watch(to)  # not what was set until now

        event.listen(session, "after_begin", begun)
        return line


class _Line:
    """A session's connection to the database that its job is in."""

    def __init__(self, database: Database, watched: WatchedEngine) -> None:
        self.connection: Connection | None = None
        self._database = database
        self._handed_out: ExitStack | None = None
        self._pooled = PooledStates(watched)
        self._states: list[SessionState] = []

    def begun(self, connection: Connection) -> None:
        """Note that the transaction has begun, and on which connection."""
        self.connection = connection
        self._database.begun(connection)

    def watch(self, connection: Connection) -> None:
        """Watch what the handler changes of the state of one of the session's connections."""
        self._states.append(self._pooled.watch(connection))

    @property
    def changed(self) -> bool:
        """Whether the handler has changed what cannot be undone."""
        return any(state.lasting for state in self._states)

    def restore(self) -> None:
        """Undo what the handler has changed."""
        for state in self._states:
            state.restore()

    def discard_after(self, session: Session) -> None:
        """Close them when the session has committed."""
        self._pooled.discard_after(session)

    def discard(self) -> None:
        """Close those connections that no other job may get."""
        self._pooled.discard()

    def require_whole(self) -> None:
        """Raise if the transaction is not the one that has begun."""
        if self.connection is None:
            return
        try:
            self._database.require_whole(self.connection)
        except DBAPIError as error:
            if not is_undone(error):
                raise
            msg = (
                "the database has undone the transaction of the handler's session at a deadlock, "
                "and the handler went on: let such an error pass, the job is retried as a whole"
            )
            raise HandlerEndedTransactionError(msg) from error

    @contextmanager
    def handed_out(self) -> Generator[None]:
        """Refuse to end the session's connections while a handler has them."""
        try:
            with ExitStack() as self._handed_out:
                yield
        finally:
            self._handed_out = None

    def keep_open(self, connection: Connection) -> None:
        """Note one more connection of the session's."""
        if self._handed_out is not None:
            # Not its close: the session closes it itself, when the handler ends the session.
            self._handed_out.enter_context(kept_open(connection, "commit", "rollback"))

    def is_closed(self) -> bool:
        """Tell whether the handler has closed it."""
        return self.connection is not None and self.connection.closed

    def cut(self) -> None:
        """End it at once."""
        if self.connection is not None:
            sever(self.connection, busy=False)

    def is_lost(self, error: BaseException) -> bool:
        """Tell whether ``error`` comes of the loss of it, and not of that of any other.

        A database that others were writing to all the time is as good as lost.
        """
        causes = list(causes_of(error))
        if any(hasattr(cause, _REFUSED) for cause in causes):
            return True
        if self.connection is None:
            return False
        if any(is_busy(cause) for cause in causes):
            return True
        # A query that is cancelled costs its connection too. A failed commit leaves it closed.
        gone = self.connection.invalidated or self.connection.closed
        return any(is_lost(cause) for cause in causes) and (gone or not _answers(self.connection))


def _answers(connection: Connection) -> bool:
    """Tell whether the server still answers on a connection that is to be rolled back anyway.

    One that is about to close it has said so, which SQLAlchemy does not take for the end.
    """
    try:
        connection.connection.rollback()
    except Exception as error:
        connection.invalidate(error)
        return False
    return True


@contextmanager
def _closed_at_the_end(session: Session) -> Generator[Session]:
    """Close a session; what ended it counts for more than that it could not be rolled back."""
    try:
        yield session
    except BaseException:
        with suppress(DBAPIError):
            session.close()
        raise
    session.close()


def _marking(engine: Engine, isolation_level: str | None) -> Engine:
    """Mark errors of connecting, which else look like those of whatever a handler connects to.

    :param isolation_level: of the connections, where it is not to be the engine's own.
    """
    connect = engine.connect

    def connect_or_mark() -> Connection:
        try:
            connection = connect()
            try:
                if isolation_level is not None:
                    connection.execution_options(isolation_level=isolation_level)
            except BaseException:  # the one that the pool had may be lost
                connection.invalidate()
                connection.close()
                raise
        except Exception as error:
            setattr(error, _REFUSED, True)
            raise
        return connection

    engine.connect = connect_or_mark  # type: ignore[method-assign]
    return engine
