"""The SQL of recurring jobs: find, lock and move what is due, and write the definitions of code.

A worker that finds a due row locks it with SKIP LOCKED (on SQLite, the writing transaction is the
only one). Every other statement says in its condition which state of the row it expects, so that it
changes nothing if another worker was faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Table,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..database.dialects import Database, features_of
from ..models.requirements import TableUse


class RecurringTable:
    """The statements for one table of recurring jobs.

    Every method takes a Connection and neither commits nor rolls back.

    :param model: the mapped class.
    :param job: the table into which the jobs are inserted.
    """

    def __init__(self, model: type[Any], job: Table, database: Database) -> None:
        self.table: Table = sa_inspect(model).local_table
        self._job = job
        self._database = database
        row = self.table.c
        name = row.name == bindparam("given_name", type_=row.name.type)
        now = bindparam("now", type_=row.next_at.type)
        self._next = select(
            select(func.min(row.next_at)).scalar_subquery(),
            exists(select(row.name).where(row.next_at.is_(None))),
        )
        self._due = (
            select(self.table)
            .where(
                or_(row.next_at <= now, row.next_at.is_(None)),
                row.name.not_in(bindparam("failed", expanding=True)),
            )
            .order_by(row.next_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        self._move = update(self.table).where(name)
        owner = row.owner == bindparam("given_owner", type_=row.owner.type)
        print_ = row.fingerprint == bindparam("given_print", type_=row.fingerprint.type)
        before = or_(
            row.confirmed_at.is_(None),
            row.confirmed_at < bindparam("before", type_=row.confirmed_at.type),
        )
        self._defined = select(self.table).where(
            or_(row.name.in_(bindparam("names", expanding=True)), owner)
        )
        self._replace = update(self.table).where(name, owner, print_)
        self._remove = delete(self.table).where(name, owner, print_, before, row.paused.is_(False))

    @property
    def uses(self) -> Sequence[TableUse]:
        """What a worker's statements do with the table, and with the table of jobs."""
        return (
            TableUse(
                self.table,
                ("SELECT", "INSERT", "UPDATE", "DELETE"),
                frozenset(self.table.c.keys()),
            ),
            TableUse(self._job, ("SELECT", "INSERT"), frozenset(self._job.c.keys())),
        )

    # Ticks.

    def next_at(self, connection: Connection, now: datetime) -> datetime | None:
        """Return the earliest next tick: ``now`` if one is to be calculated, None without rows."""
        first, is_unknown = connection.execute(self._next).one()
        return now if is_unknown else first

    def lock_due(
        self, connection: Connection, now: datetime, failed: Iterable[str]
    ) -> Row[Any] | None:
        """Lock a row whose tick is due and which no other transaction holds, and return it.

        :param failed: the names of rows that are left out.
        """
        return connection.execute(self._due, {"now": now, "failed": list(failed)}).first()

    def move(self, connection: Connection, name: str, values: Mapping[str, Any]) -> None:
        """Write values of a locked row."""
        connection.execute(self._move.values(values), {"given_name": name})

    # The definitions of code.

    def defined(
        self, connection: Connection, names: Sequence[str], owner: str
    ) -> dict[str, Row[Any]]:
        """Return the rows with these names, and all rows of an owner, by name."""
        rows = connection.execute(self._defined, {"names": names, "given_owner": owner})
        return {row.name: row for row in rows}

    def add(self, connection: Connection, values: Mapping[str, Any]) -> bool:
        """Insert a row unless there is one with its name; return whether it was inserted."""
        return _insert_or_nothing(connection, self._database, self.table, values)

    def replace(self, connection: Connection, row: Row[Any], values: Mapping[str, Any]) -> bool:
        """Change a row if its definition is still the one of ``row``; return whether it was."""
        return connection.execute(self._replace.values(values), _state(row)).rowcount > 0

    def confirm(self, connection: Connection, row: Row[Any], now: datetime) -> None:
        """Write that a worker has the definition of a row, if it is still the same."""
        connection.execute(self._replace.values(confirmed_at=now), _state(row))

    def remove(self, connection: Connection, row: Row[Any], before: datetime) -> bool:
        """Delete a row that no worker has confirmed since ``before``, unless it is paused."""
        return connection.execute(self._remove, {**_state(row), "before": before}).rowcount > 0


def _state(row: Row[Any]) -> dict[str, Any]:
    return {
        "given_name": row.name,
        "given_owner": row.owner,
        "given_print": row.fingerprint,
    }


def _insert_or_nothing(
    executor: Any, database: Database, into: Any, values: Any, **options: Any
) -> bool:
    """Insert a row with a ``name`` unless there is one."""
    if database.conflict_insert is not None:
        statement = database.conflict_insert(into).values(values)
        statement = statement.on_conflict_do_nothing(index_elements=["name"])
        # The drivers do not agree on the number of rows that an INSERT reports.
        inserted = executor.execute(statement.returning(literal_column("1")), **options)
        return inserted.first() is not None
    try:  # MySQL and MariaDB: a duplicate key undoes only the statement
        executor.execute(insert(into).values(values), **options)
    except IntegrityError as error:
        if "PRIMARY" in str(error.orig):
            return False
        raise
    return True


def lock_or_add(
    session: Session, model: type[Any], name: str, values: Mapping[str, Any], bind: dict[str, Any]
) -> tuple[Any, bool]:
    """Lock the row of a recurring job in a session's transaction; insert it if there is none.

    :param values: of the row that is inserted.
    :param bind: the bind arguments of the session.
    :return: the object, and whether it was inserted.
    """
    database = features_of(session.get_bind(**bind).dialect)
    options: dict[str, Any] = {"bind_arguments": bind}
    added = False
    while True:
        row = lock_one(session, model, name, bind)
        if row is not None:
            return row, added
        added = _insert_or_nothing(session, database, model, {"name": name, **values}, **options)


def lock_one(session: Session, model: type[Any], name: str, bind: dict[str, Any]) -> Any:
    """Lock the row of a recurring job in a session's transaction; return None if there is none."""
    return session.get(
        model, name, with_for_update=True, populate_existing=True, bind_arguments=bind
    )
