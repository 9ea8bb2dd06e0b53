"""Completing leased jobs together, whose handlers have only added objects to their sessions.

A commit takes most of the time of a short job. So the first handler that ends completes its job,
and with it all jobs whose handlers end while its transaction is running: their objects are flushed,
and their rows archived, in one transaction. If anything goes wrong, that transaction is rolled
back, and each job completes in a transaction of its own, as if there were no group.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from threading import Lock
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from ...callbacks import call_user_function
from ...clock import Clock
from ...database import keepalive
from ...database.connections import is_lost, sever
from ...database.dialects import driver_connection
from ...lifecycle.run import Run, RunState
from ...liveness.markers import CrashMarkers
from ...runtime.base import Runtime
from ...store.base import Store
from ..connection_state import ConnectionState, PooledStates
from ..guarded_session import route_to
from ..pending import attributes_of, restore
from .connection import ConnectionLostError

MAX_GROUP: Final = 100
"""How many jobs share a transaction at most."""

TIMEOUTS: Final = {"lock_timeout": "200ms", "statement_timeout": "1s"}
"""How long a group waits for a lock of another session, and for a slow statement, such as an INSERT
with a trigger. It delays all jobs of the group."""


class _Member:
    """A job that waits to be completed."""

    def __init__(self, run: Run, objects: Sequence[Any], runtime: Runtime) -> None:
        self.run = run
        self.objects = objects
        self.turn = runtime.flag()
        """Set when the job is completed, or when its thread or task has to lead the next group."""
        self.is_done = False
        self.is_completed = False
        self.error: Exception | None = None
        """The loss of the connection during the commit, which may have taken effect."""


class GroupCompletion:
    """Completes jobs of one worker in groups.

    :param engine: the engine whose connections the handlers use.
    :param job_engine: the engine that the sessions choose for the job table.
    :param make_session: makes the session that flushes the objects.
    """

    def __init__(
        self,
        engine: Engine,
        job_engine: Engine,
        make_session: Callable[..., Session],
        *,
        store: Store,
        markers: CrashMarkers | None,
        runtime: Runtime,
        now: Clock,
    ) -> None:
        self._engine = engine
        self._job_engine = job_engine
        self._make_session = make_session
        self._store = store
        self._markers = markers
        self._runtime = runtime
        self._now = now
        self._lock = Lock()
        self._members: list[_Member] = []
        self._is_led = False

    def complete(self, run: Run, objects: Sequence[Any]) -> bool:
        """Complete a job with others; return False if it must complete on its own.

        :param objects: what its handler has added. They are as before if this returns False.
        :raises ConnectionLostError: if the connection was lost during the commit.
        """
        member = _Member(run, objects, self._runtime)
        with self._lock:
            self._members.append(member)
            leads, self._is_led = not self._is_led, True
        if not leads:
            self._wait(member)
        if not member.is_done:
            self._lead()
        if member.error is not None:
            raise ConnectionLostError from member.error
        return member.is_completed

    def _wait(self, member: _Member) -> None:
        """Wait until a job is completed, or its thread or task has to lead."""
        try:
            member.turn.wait()
        except BaseException:  # the event loop ends
            with self._lock:
                if member in self._members:
                    self._members.remove(member)
                leads = member.turn.is_set() and not member.is_done
            if leads:
                self._hand_over()
            raise

    def _lead(self) -> None:
        """Complete a group that includes the caller's job, then hand over to the next leader."""
        group: list[_Member] = []
        try:
            # Each job reports its own error, when it completes in a transaction of its own.
            with suppress(Exception):
                self._complete_group(group)
        finally:
            for member in group or self._take():
                member.is_done = True
                member.turn.set()
            self._hand_over()

    def _take(self) -> list[_Member]:
        """Return the next group, which includes the leader's job."""
        with self._lock:
            group = self._members[:MAX_GROUP]
            del self._members[:MAX_GROUP]
        return group

    def _hand_over(self) -> None:
        """Let the next job's thread or task lead, if there is one."""
        with self._lock:
            following = self._members[0] if self._members else None
            self._is_led = following is not None
        if following is not None:
            following.turn.set()

    def _complete_group(self, group: list[_Member]) -> None:
        """Complete jobs in one transaction, or none of them.

        :param group: gets the jobs when the transaction has begun: meanwhile more handlers end.
        """
        # The session controls the transaction: its rollback gives the objects their values back.
        make_session = partial(self._make_session, join_transaction_mode="control_fully")
        pooled = PooledStates()
        with self._engine.connect() as connection, make_session() as session:
            route_to(session, self._job_engine, connection)
            connection.begin()
            driver = driver_connection(connection)
            try:
                with keepalive.keepalive_in_transaction(connection, driver, TIMEOUTS):
                    group += self._take()
                    state = pooled.watch(connection)  # last: the settings above are the worker's
                    self._complete_all(connection, session, state, group)
            except CancelledError:  # the event loop ends: do not wait for a rollback
                sever(connection, busy=False)
                raise
            except Exception:
                session.rollback()
                raise
            finally:
                pooled.discard()

    def _complete_all(
        self,
        connection: Connection,
        session: Session,
        state: ConnectionState,
        group: Sequence[_Member],
    ) -> None:
        """Flush, settle and commit if all jobs of the group are still leased."""
        settling = [member for member in group if member.run.advance(RunState.SETTLING)]
        completed = False
        attributes = attributes_of(chain.from_iterable(member.objects for member in group))
        try:
            if (
                len(settling) == len(group)
                and self._flush(session, state, group)
                and self._settle(connection, group)
            ):
                self._commit(session, group)
                completed = True
            else:
                session.rollback()
        except Exception:
            session.rollback()
            raise
        finally:
            for member in settling:
                member.is_completed = completed
                if not (completed or member.error):
                    restore(member.objects, attributes)
                    member.run.advance(RunState.RUNNING)

    @staticmethod
    def _commit(session: Session, group: Sequence[_Member]) -> None:
        try:
            session.commit()
        except Exception as error:
            if is_lost(error):
                for member in group:
                    member.error = error
            raise

    @staticmethod
    def _flush(session: Session, state: ConnectionState, group: Sequence[_Member]) -> bool:
        """Flush the objects; return whether the state of the connection is as before."""

        def flush() -> None:
            for member in group:
                session.add_all(member.objects)
            session.flush()

        call_user_function(flush)  # it calls defaults and listeners of the user
        state.restore()
        return not state.tainted

    def _settle(self, connection: Connection, group: Sequence[_Member]) -> bool:
        """Archive the jobs of a group; return whether all of them were still leased."""
        jobs = [member.run.job for member in group]
        results = [(member.run.job, member.run.success) for member in group]
        written = self._store.settle_leased(connection, results, self._now(), wait=True)
        if self._markers is not None:
            self._markers.remove(connection, jobs)
        return len(written) == len(group)
