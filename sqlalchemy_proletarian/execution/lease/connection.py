"""The connection of a handler's session in lease mode."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ...database.connections import commit_now, is_lost, sever
from ...database.dialects import Database
from ...database.error_codes import causes_of, is_busy, is_undone, is_wrong_server
from ...errors import HandlerEndedTransactionError
from ..connection_state import ConnectionState, PooledStates, WatchedEngine
from ..guarded_session import kept_open

_REFUSED: Final = "proletarian_refused"


class ConnectionLostError(Exception):
    """The session of a handler lost its connection, or could not get one.

    Or it could not write, because other sessions wrote all the time.
    """


class LeaseConnection:
    """The connections of a session, of which one is to the database of the job table."""

    def __init__(self, database: Database, watched: WatchedEngine) -> None:
        self.connection: Connection | None = None
        self._database = database
        self._in_use: ExitStack | None = None
        self._pooled = PooledStates(watched)
        self._states: list[ConnectionState] = []
        self._others: list[Connection] = []

    def begun(self, connection: Connection) -> None:
        """Note that the transaction on the database of the job table has begun."""
        self.connection = connection
        self._database.begun(connection)

    def begun_elsewhere(self, connection: Connection) -> None:
        """Note that a transaction on another database has begun."""
        self._others.append(connection)

    # The state of the connections.

    def watch(self, connection: Connection) -> None:
        """Watch what the handler changes of the state of a connection."""
        self._states.append(self._pooled.watch(connection))

    @property
    def tainted(self) -> bool:
        """Whether the handler has changed the state of a connection permanently."""
        return any(state.tainted for state in self._states)

    def restore(self) -> None:
        """Restore what the handler has changed."""
        for state in self._states:
            state.restore()

    def discard_after(self, session: Session) -> None:
        """Close tainted connections when the session has committed."""
        self._pooled.discard_after(session)

    def discard(self) -> None:
        """Close tainted connections."""
        self._pooled.discard()

    # The transaction.

    def require_whole(self) -> None:
        """Raise an error unless the transaction is still the one that has begun."""
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

    def commit_others_first(self) -> None:
        """Commit in the other databases first, when the session commits.

        SQLAlchemy commits in any order. If the job completed first and another database refused to
        commit, or the process died in between, what the handler wrote there would be lost for good.
        """
        if self.connection is not None and self._others:
            event.listen(self.connection, "commit", self._commit_others)

    def _commit_others(self, connection: Connection) -> None:
        try:
            for other in self._others:
                if other.in_transaction():
                    # Not its transaction's commit(): the session calls that later, to no effect.
                    commit_now(other)
        except BaseException:
            # SQLAlchemy does not roll back after a commit that failed: the server has done it.
            connection.dialect.do_rollback(connection.connection)
            raise

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Let no handler commit or roll back the connections in the block."""
        try:
            with ExitStack() as self._in_use:
                yield
        finally:
            self._in_use = None

    def keep_open(self, connection: Connection) -> None:
        """Protect one more connection of the session."""
        if self._in_use is not None:
            # Not its close(): the session calls it when the handler closes the session.
            self._in_use.enter_context(kept_open(connection, "commit", "rollback"))

    def is_closed(self) -> bool:
        """Return whether the handler has closed the connection."""
        return self.connection is not None and self.connection.closed

    def sever(self) -> None:
        """Close the connection without waiting for the server."""
        if self.connection is not None:
            sever(self.connection, busy=False)

    def is_lost(self, error: BaseException) -> bool:
        """Return whether an error was caused by the loss of this connection, and of no other.

        A database to which other sessions were writing all the time counts as lost, too, and so
        does a server that takes no writes.
        """
        causes = list(causes_of(error))
        if any(hasattr(cause, _REFUSED) for cause in causes):
            return True
        if self.connection is None:
            return False
        if any(is_busy(cause) for cause in causes):
            return True
        if any(is_wrong_server(cause) for cause in causes):
            self.connection.invalidate()  # the next one may be to the right server
            return True
        # A cancelled query also closes its connection. A failed commit leaves it closed.
        gone = self.connection.invalidated or self.connection.closed
        return any(is_lost(cause) for cause in causes) and (gone or not _answers(self.connection))


def _answers(connection: Connection) -> bool:
    """Return whether the server answers on a connection, which is rolled back for that.

    SQLAlchemy does not know that a connection is lost whose server announced that it closes it.
    """
    try:
        connection.connection.rollback()
    except Exception as error:
        connection.invalidate(error)
        return False
    return True


def engine_for_handlers(engine: Engine, database: Database) -> Engine:
    """Return an engine on the same pool that marks its errors of connecting.

    Otherwise they look like errors of other databases that the handler connects to. Its connections
    use READ COMMITTED, even if the engine has another isolation level: with AUTOCOMMIT nothing
    could be rolled back, and above READ COMMITTED a job could not complete whose lease was extended
    meanwhile.
    """
    marking = engine.execution_options()
    isolation_level = database.isolation_level
    connect = marking.connect

    def connect_or_mark() -> Connection:
        try:
            connection = connect()
            try:
                if isolation_level is not None:
                    connection.execution_options(isolation_level=isolation_level)
            except BaseException:  # the pool's connection may be lost
                connection.invalidate()
                connection.close()
                raise
        except Exception as error:
            setattr(error, _REFUSED, True)
            raise
        return connection

    marking.connect = connect_or_mark  # type: ignore[method-assign]
    return marking
