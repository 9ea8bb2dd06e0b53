"""The sessions of handlers in lease mode: each has a transaction of its own.

The job completes in that transaction: both take effect, or neither.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from ...database import keepalive
from ...database.dialects import database_of, driver_connection, features_of
from ...lifecycle.run import Run
from ...liveness.handler_connections import LeasedConnections
from ...models.job_classes import bind_arguments
from ..connection_state import WatchedEngine
from ..guarded_session import TOUCHED, commit, ended_transaction, guard, route_to
from ..pending import is_pending_only
from .connection import ConnectionLostError, LeaseConnection
from .group import GroupCompletion

Complete: TypeAlias = Callable[[Connection, bool], object]
"""Called with the connection, and with whether the handler changed its state permanently."""


class LeaseSession:
    """Opens sessions for handlers, each with a transaction of its own.

    :param make_session: makes the sessions.
    :param engine: the engine whose connections the handlers use; see :func:`.engine_for_handlers`.
    :param job_engine: the engine that the sessions choose for the job table.
    :param connections: makes the connections known to other workers.
    :param group: completes jobs together whose handlers have only added objects.
    """

    def __init__(
        self,
        make_session: Callable[..., Session],
        *,
        engine: Engine,
        job_engine: Engine,
        job_model: type[Any],
        connections: LeasedConnections | None,
        group: GroupCompletion | None,
    ) -> None:
        self._make_session = make_session
        self._engine = engine
        self._job_engine = job_engine
        self._database = database_of(engine.dialect)
        self._watched = WatchedEngine(engine)
        self._job_model = job_model
        self._connections = connections
        self._group = group

    @contextmanager
    def open(self, owner: Run, complete: Complete) -> Generator[Session]:
        """Yield a session; its transaction commits at the end of the block.

        The handler cannot commit it. If the session was not used, no statement is sent.

        :param owner: the run of the handler.
        :param complete: called in the transaction, just before it commits; an error rolls back.
        :raises ConnectionLostError: if the connection was lost in the block or at the commit.
        """
        with ExitStack() as watches, _closed_at_the_end(self._make_session()) as session:
            connection = self._watch(session, watches, owner)
            session.info[TOUCHED] = False
            transaction = session.begin()
            try:
                try:
                    with connection.in_use():
                        yield session
                    self._end(session, transaction, connection, owner, complete)
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
        owner: Run,
        complete: Complete,
    ) -> None:
        if session.get_transaction() is not transaction or connection.is_closed():
            raise ended_transaction()
        if is_pending_only(session) and (
            not session.new or self._completed_in_group(session, owner)
        ):
            return
        session.flush()
        connection.restore()
        connection.require_whole()
        arguments = bind_arguments(self._job_model)
        complete(session.connection(bind_arguments=arguments), connection.tainted)
        connection.discard_after(session)
        connection.commit_others_first()
        commit(session)

    def _completed_in_group(self, session: Session, owner: Run) -> bool:
        """Complete a job together with others, if its objects go to the database of the jobs."""
        # A listener for the commit is one for the commit of this session.
        if self._group is None or session.dispatch.after_commit:
            return False
        objects = list(session.new)
        for model in {type(thing) for thing in objects}:
            if session.get_bind(sa_inspect(model)) is not self._engine:
                return False
        session.expunge_all()
        if self._group.complete(owner, objects):
            return True
        session.add_all(objects)
        return False

    def _watch(self, session: Session, watches: ExitStack, owner: Run) -> LeaseConnection:
        connection = LeaseConnection(self._database, self._watched)
        route_to(session, self._job_engine, self._engine)

        def begun(_session: Session, transaction: SessionTransaction, to: Connection) -> None:
            if not transaction.nested:
                if to.engine is self._engine:
                    connection.begun(to)
                    if self._connections is not None:
                        self._connections.announce(to, owner.job.job_id)
                else:
                    connection.begun_elsewhere(to)
                connection.keep_open(to)
                has_settings = features_of(to.dialect).settings  # it may not be the jobs' database
                watches.enter_context(
                    keepalive.keepalive_in_transaction(
                        to, driver_connection(to), server=has_settings
                    )
                )
                connection.watch(to)  # last: the settings above are not the handler's

        guard(session, begun)
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
