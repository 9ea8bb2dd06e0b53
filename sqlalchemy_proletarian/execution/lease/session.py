"""The sessions of handlers in lease mode: each has a transaction of its own.

The job completes in that transaction: both take effect, or neither.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from random import uniform
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from ...database import keepalive
from ...database.cluster import Cluster
from ...database.dialects import database_of, driver_connection, features_of
from ...database.error_codes import is_undone
from ...lifecycle.run import Run
from ...liveness.handler_connections import LeasedConnections
from ...models.job_classes import bind_arguments
from ...retry import Snooze
from ..connection_state import WatchedEngine
from ..guarded_session import TOUCHED, commit, ended_transaction, guard, route_to
from ..pending import is_pending_only
from .connection import ConnectionLostError, LeaseConnection
from .group import GroupCompletion

Complete: TypeAlias = Callable[[Connection, bool], object]
"""Called with the connection, and with whether the handler changed its state permanently."""

_AFTER_CONFLICT: Final = 0.05, 0.5
"""Seconds, from and to."""


class LeaseSession:
    """Opens sessions for handlers, each with a transaction of its own.

    :param make_session: makes the sessions.
    :param engine: the engine whose connections the handlers use; see :func:`.engine_for_handlers`.
    :param job_engine: the engine that the sessions choose for the job table.
    :param connections: makes the connections known to other workers.
    :param group: completes jobs together whose handlers have only added objects.
    :param cluster: whether the server is a node of a cluster.
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
        cluster: Cluster,
    ) -> None:
        self._make_session = make_session
        self._engine = engine
        self._job_engine = job_engine
        self._database = database_of(engine.dialect)
        self._watched = WatchedEngine(engine)
        self._job_model = job_model
        self._connections = connections
        self._group = group
        self._cluster = cluster

    @contextmanager
    def open(self, owner: Run, complete: Complete) -> Generator[Session]:
        """Yield a session; its transaction commits at the end of the block.

        The handler cannot commit it. If the session was not used, no statement is sent.

        :param owner: the run of the handler.
        :param complete: called in the transaction, just before it commits; an error rolls back.
        :raises ConnectionLostError: if the connection was lost in the block or at the commit.
        :raises Snooze: if another node of a cluster has changed the same rows at the same time.
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
                if self._cluster.found and is_undone(error):
                    raise Snooze(_after_conflict()) from error
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


def _after_conflict() -> timedelta:
    """Return a random delay, so that jobs that change the same rows do not meet again."""
    return timedelta(seconds=uniform(*_AFTER_CONFLICT))  # noqa: S311


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
