"""Making the table and the definitions of code agree: see :mod:`.definitions` for the rule."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection

from ..database.dialects import Database
from ..store.recurring import RecurringTable
from ..telemetry.events import Events
from .definitions import GONE, Definition, is_older

INTERVAL: Final = timedelta(minutes=1)
"""The time between two comparisons by one worker."""


class Agreement:
    """Writes the definitions of one worker to the table when it starts, and once a minute.

    :param owner: the owner of the definitions; rows of other owners are not touched.
    """

    def __init__(
        self,
        table: RecurringTable,
        database: Database,
        definitions: Sequence[Definition],
        owner: str,
        events: Events,
    ) -> None:
        self._table = table
        self._database = database
        self._definitions = {definition.name: definition for definition in definitions}
        self._owner = owner
        self._events = events
        self._checked: datetime | None = None
        self._since: datetime | None = None
        self._refused: set[str] = set()

    def check(self, connection: Connection, now: datetime) -> None:
        """Compare and write what differs, unless this was done less than a minute ago.

        :param connection: one that is not in a transaction.
        """
        if self._checked is not None and abs(now - self._checked) < INTERVAL:
            return
        self._since = self._since or now
        with connection.begin():
            rows = self._table.defined(connection, list(self._definitions), self._owner)
        for definition in self._definitions.values():
            self._agree(connection, definition, rows.pop(definition.name, None), now)
        if self._since <= now - GONE:
            for row in rows.values():
                self._remove(connection, row, now - GONE)
        self._checked = now

    def _agree(
        self, connection: Connection, definition: Definition, row: Any, now: datetime
    ) -> None:
        name, owner = definition.name, self._owner
        action = definition.decide(row, owner, now)
        written = False
        if action in {"add", "replace", "confirm"}:
            with self._database.begin(connection):
                if action == "add":
                    written = self._table.add(connection, definition.adding(owner, now))
                elif action == "replace":
                    values = definition.replacing(row, owner, now)
                    written = self._table.replace(connection, row, values)
                else:
                    self._table.confirm(connection, row, now)
        if written:
            what = "added" if action == "add" else "changed"
            self._events.emit("recurring-changed", recurring=name, change=what)
        if action != "refuse":
            self._refused.discard(name)
        elif name not in self._refused:
            self._refused.add(name)
            error = ValueError(
                f"the recurring job {name!r} of code (owner {owner!r}) has the name of a row of "
                + ("manage.schedule()" if row.owner is None else f"the owner {row.owner!r}")
                + ": choose another name, or delete that row"
            )
            self._events.emit("recurring-error", error, recurring=name)

    def _remove(self, connection: Connection, row: Any, before: datetime) -> None:
        if row.paused or not is_older(row.confirmed_at, before):
            return
        with self._database.begin(connection):
            removed = self._table.remove(connection, row, before)
        if removed:
            self._events.emit("recurring-changed", recurring=row.name, change="removed")
