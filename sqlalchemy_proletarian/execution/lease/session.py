"""The sessions of handlers in lease mode: each has a transaction of its own.

The job completes in that transaction: both take effect, or neither.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from ...database import keepalive
from ...database.dialects import database_of, driver_connection
from ...lifecycle.run import Run
from ...liveness.handler_connections import LeasedConnections
from ...models.job_classes import bind_arguments
from ..connection_state import WatchedEngine
from ..guarded_session import TOUCHED, commit, ended_transaction, guard, route_to
from .connection import LeaseConnection, engine_for_handlers

Complete: TypeAlias = Callable[[Connection, bool], object]
"""Called with the connection, and with whether the handler changed its state permanently."""


class ConnectionLostError(Exception):
    """The session of a handler lost its connection, or could not get one.

    Or it could not write, because other sessions wrote all the time.
    """


class LeaseSession:
    """Opens sessions for handlers, each with a transaction of its own.

    :param make_session: makes the sessions.
    :param engine: the engine of the job table. Its connections use READ COMMITTED here, even if the
        engine has another isolation level: with AUTOCOMMIT nothing could be rolled back, and above
        READ COMMITTED a job could not complete whose lease was extended meanwhile.
    :param connections: makes the connections known to other workers.
    """

    def __init__(
        self,
        make_session: Callable[..., Session],
        engine: Engine,
        job_model: type[Any],
        connections: LeasedConnections | None,
    ) -> None:
        self._make_session = make_session
        self._engine = engine
        self._database = database_of(engine.dialect)
        self._read_committed = engine_for_handlers(engine, self._database)
        self._watched = WatchedEngine(self._read_committed)
        self._job_model = job_model
        self._connections = connections

    @contextmanager
    def open(self, owner: Run, complete: Complete) -> Generator[Session]:
        """Yield a session; its transaction commits at the end of the block.

        The handler cannot commit it. If the session was not used, no statement is sent.

        :param owner: the run of the handler.
        :param complete: called in the transaction, just before it commits; an error rolls back.
        :raises ConnectionLostError: if the connection was lost in the block or at the commit.
        """
        with ExitStack() as watches, _closed_at_the_end(self._make_session()) as session:
            guard(session)
            connection = self._watch(session, watches, owner)
            session.info[TOUCHED] = False
            transaction = session.begin()
            try:
                try:
                    with connection.in_use():
                        yield session
                    self._end(session, transaction, connection, complete)
                finally:
                    connection.discard()
            except CancelledError:  # the event loop ends: do not wait for a rollback
                connection.sever()
                raise
            except Exception as error:
                if connection.is_lost(error):
                    raise ConnectionLostError from error
                raise

    def _end(
        self,
        session: Session,
        transaction: SessionTransaction,
        connection: LeaseConnection,
        complete: Complete,
    ) -> None:
        if session.get_transaction() is not transaction or connection.is_closed():
            raise ended_transaction()
        if session.info[TOUCHED] or session.new or session.dirty or session.deleted:
            session.flush()
            connection.restore()
            connection.require_whole()
            arguments = bind_arguments(self._job_model)
            complete(session.connection(bind_arguments=arguments), connection.tainted)
            connection.discard_after(session)
            commit(session)

    def _watch(self, session: Session, watches: ExitStack, owner: Run) -> LeaseConnection:
        connection = LeaseConnection(self._database, self._watched)
        route_to(session, self._engine, self._read_committed)

        def begun(_session: Session, transaction: SessionTransaction, to: Connection) -> None:
            if not transaction.nested:
                if to.engine is self._read_committed:
                    connection.begun(to)
                    if self._connections is not None:
                        self._connections.announce(to, owner.job.job_id)
                connection.keep_open(to)
                watches.enter_context(keepalive.keepalive_in_transaction(to, driver_connection(to)))
                connection.watch(to)  # last: the settings above are not the handler's

        event.listen(session, "after_begin", begun)
        return connection


@contextmanager
def _closed_at_the_end(session: Session) -> Generator[Session]:
    """Close a session; an error of the block hides one of the rollback."""
    try:
        yield session
    except BaseException:
        with suppress(DBAPIError):
            session.close()
        raise
    session.close()
