"""Tracks and undoes the changes that a handler makes to the state of its connection.

``SET LOCAL`` and ``SET LOCAL ROLE`` last until the end of the transaction, which several jobs may
share. ``SET`` lasts as long as the connection. Execution options belong to SQLAlchemy's
``Connection``. None of these may affect the next job or the worker's own statements.

Therefore the statements of handlers are watched. Settings that a statement changes by name are read
before the change, and restored when the handler ends. After any other change that lasts or may last
longer (``SET``, ``DISCARD``, ``DO``, ``CALL``, a temporary table), no other job gets the
connection. Changes that a function in the database makes are not detected.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Text, bindparam, event, func, select
from sqlalchemy.orm import Session

from ..database.dialects import database_of
from .state_changes import change_of


class ConnectionState:
    """The state of one connection, watched while handlers use it.

    :param connection: the connection of the handlers' transaction.
    :param options: the execution options to restore; by default the current ones.
    :param listens: whether to register an event listener on the connection. If False, a
        :class:`WatchedEngine` passes its statements.
    """

    def __init__(
        self,
        connection: Connection,
        options: Mapping[str, Any] | None = None,
        *,
        listens: bool = True,
    ) -> None:
        self.connection = connection
        self.tainted: bool = False
        """Whether no other job may get the connection after the transaction."""
        self.rolled_back: bool = False
        """Whether a handler's SAVEPOINT was rolled back, since this was last set to False."""
        database = database_of(connection.dialect)
        self._settings = database.settings
        self._options: Any = connection.get_execution_options() if options is None else options
        self._before: dict[str, str | None] = {}
        self._watching = False
        if listens:
            event.listen(connection, "before_cursor_execute", self.inspect_statement)

    @contextmanager
    def watched(self) -> Generator[None]:
        """Watch the statements of the block, and undo its changes unless it raises.

        If it raises, the caller must roll back.
        """
        outside, self._watching = self._watching, True
        before, self._before = self._before, {}
        try:
            yield
            self._watching = False
            self._write_back()
        finally:
            self._restore_options()
            self._watching, self._before = outside, before

    def close(self) -> None:
        """Remove the event listener from the connection."""
        event.remove(self.connection, "before_cursor_execute", self.inspect_statement)

    def watch(self) -> None:
        """Watch the statements until :meth:`restore` is called."""
        self._watching = True

    def restore(self) -> None:
        """Undo the changes and stop watching."""
        self._watching = False
        self._restore_options()
        self._write_back()

    def _write_back(self) -> None:
        """Restore the settings that were changed."""
        before, self._before = self._before, {}
        if before:
            # The role first: the other settings may require it.
            settings = sorted(before, key=lambda name: name != "role")
            self.connection.execute(
                select(
                    *(
                        func.set_config(
                            bindparam(f"name_{n}", name, type_=Text),
                            bindparam(f"value_{n}", before[name] or "", type_=Text),
                            True,  # noqa: FBT003 - until the transaction ends
                        )
                        for n, name in enumerate(settings)
                    )
                )
            )

    def _restore_options(self) -> None:
        if self.connection.get_execution_options() is not self._options:
            self.connection._execution_options = self._options

    def inspect_statement(
        self,
        _connection: Connection,
        _cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        _executemany: bool,
    ) -> None:
        """Note what a statement changes; called before it is executed."""
        # A statement compiled from insert(), update() or delete() changes no settings.
        if not self._watching or context.isinsert or context.isupdate or context.isdelete:
            return
        self.rolled_back = self.rolled_back or statement.startswith("ROLLBACK")
        change = change_of(statement, parameters, settings=self._settings)
        self.tainted = self.tainted or change.lasting
        if new := change.names - self._before.keys():
            self._before |= self._read(sorted(new))

    def _read(self, names: Iterable[str]) -> dict[str, str | None]:
        listed = list(names)
        self._watching = False
        try:
            row = self.connection.execute(
                select(
                    *(
                        func.current_setting(bindparam(f"name_{n}", name, type_=Text), True)  # noqa: FBT003
                        for n, name in enumerate(listed)
                    )
                )
            ).one()
        finally:
            self._watching = True
        return dict(zip(listed, row, strict=True))


class PooledStates:
    """The states of the connections that a handler's session takes from pools."""

    def __init__(self, watched: WatchedEngine | None = None) -> None:
        self._states: list[ConnectionState] = []
        self._watched = watched

    def watch(self, connection: Connection) -> ConnectionState:
        """Watch a connection from the beginning of its transaction."""
        # Restore the engine's options: the handler may already have set others on the connection.
        options = connection.engine.get_execution_options()
        known = self._watched is not None and connection.engine is self._watched.engine
        state = ConnectionState(connection, options, listens=not known)
        if known and self._watched is not None:
            self._watched.states[connection] = state
        state.watch()
        self._states.append(state)
        return state

    def discard(self) -> None:
        """Invalidate the connections that no other job may get, instead of returning them."""
        states, self._states = self._states, []
        for state in states:
            connection = state.connection
            if state.tainted and not (connection.closed or connection.invalidated):
                connection.invalidate()

    def discard_after(self, session: Session) -> None:
        """Call :meth:`discard` after the session's commit, before it returns its connections."""
        if any(state.tainted for state in self._states):
            event.listen(session, "after_commit", self._after_commit)

    def _after_commit(self, session: Session) -> None:
        if not session.in_nested_transaction():
            self.discard()


class WatchedEngine:
    """An engine of the worker that passes the statements of its connections to their states.

    One listener on the engine costs less than a listener on each connection per transaction.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.states: WeakKeyDictionary[Connection, ConnectionState] = WeakKeyDictionary()
        event.listen(engine, "before_cursor_execute", self._pass)

    def _pass(self, connection: Connection, *what: Any) -> None:
        state = self.states.get(connection)
        if state is not None:
            state.inspect_statement(connection, *what)
