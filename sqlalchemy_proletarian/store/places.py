"""The SQL of the places of limits.

A place is taken in two steps. The first locks its row, with SKIP LOCKED. From then on no other
worker can take it, or record a job in it. The second reads, in a statement of its own that sees
every commit before the lock, whether the recorded job still has its lease. One statement for both
would check the lease as it was before the lock, and could give a place to two jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import (
    Connection,
    Integer,
    Row,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    insert,
    not_,
    select,
    update,
)

from ..database.dialects import Database
from ..models.limits import LimitPlaceMixin
from ..models.requirements import TableUse

_MIN_AGE: Final = timedelta(minutes=10)
"""The age of a place that is deleted if it is free."""

_MOST_DELETED: Final = 500

Place = tuple[str, int]
"""A name and a number."""


class PlaceTable:
    """The statements for one table of places, and for the table of the jobs that hold them.

    Every method takes a Connection and neither commits nor rolls back.
    """

    def __init__(self, table: Table, job: Table, database: Database) -> None:
        self._database = database
        row = table.c
        self.uses: Sequence[TableUse] = (
            TableUse(
                table,
                ("SELECT", "INSERT", "UPDATE", "DELETE"),
                frozenset(LimitPlaceMixin.__annotations__),
            ),
        )
        shared = bindparam("shared", type_=job.c.process_at.type)
        is_leased = exists().where(
            job.c.job_id == row.job_id, job.c.lease_id == row.lease_id, job.c.process_at > shared
        )
        name = row.name == bindparam("given_name", type_=row.name.type)
        most = bindparam("most", type_=Integer)
        self._known = select(row.name, row.number, is_leased.label("leased")).where(
            row.name.in_(bindparam("names", expanding=True)), row.number >= 1
        )
        recorded = select(row.name, row.number, row.job_id, row.lease_id)
        numbers = row.number.in_(bindparam("numbers", expanding=True))
        some = recorded.where(name, numbers).order_by(row.number).limit(most)
        self._lock = some.with_for_update(skip_locked=True)
        # Two that only look do not see each other's locks, if the database has shared locks that
        # skip rows.
        self._probe = some.with_for_update(skip_locked=True, read=database.arrays)
        self._lock_single = recorded.where(
            row.name.in_(bindparam("names", expanding=True)), row.number == 1
        ).with_for_update(skip_locked=True)
        ids = job.c.job_id.in_(bindparam("ids", expanding=True))
        self._holders = select(job.c.job_id, job.c.lease_id, job.c.process_at).where(ids)
        self._lock_holders = select(job.c.job_id).where(ids).with_for_update(skip_locked=True)
        self._revoke = (
            update(job)
            .where(
                job.c.job_id == bindparam("id", type_=job.c.job_id.type),
                job.c.lease_id == bindparam("lease", type_=job.c.lease_id.type),
            )
            .values(lease_id=bindparam("new_lease", type_=job.c.lease_id.type))
        )
        number = row.number == bindparam("given_number", type_=Integer)
        self._record = (
            update(table)
            .where(name, number)
            .values(
                job_id=bindparam("id", type_=row.job_id.type),
                lease_id=bindparam("lease", type_=row.lease_id.type),
            )
        )
        self._lock_starts = (
            select(row.starts).where(name, row.number == 0).with_for_update(skip_locked=True)
        )
        self._starts = select(row.starts).where(name, row.number == 0)
        self._write_starts = update(table).where(name, row.number == 0)
        self._write_starts = self._write_starts.values(starts=bindparam("new_starts"))
        if database.conflict_insert is None:
            self._insert: Any = insert(table).prefix_with("IGNORE")
        else:
            self._insert = database.conflict_insert(table).on_conflict_do_nothing()
        created = row.created_at < bindparam("before", type_=row.created_at.type)
        self._old = (
            select(row.name, row.number)
            .where(and_(row.number >= 1, created, not_(is_leased)))
            .limit(_MOST_DELETED)
        )
        self._delete = delete(table).where(name, number)

    # Places.

    def known(
        self, connection: Connection, names: Iterable[str], shared: datetime
    ) -> dict[str, dict[int, bool]]:
        """Return the numbers of the rows of each name, and whether a lease seems to hold them.

        :param shared: the time by which leases have expired.
        """
        found: dict[str, dict[int, bool]] = {name: {} for name in names}
        rows = connection.execute(self._known, {"names": list(found), "shared": shared})
        for row in rows:
            found.setdefault(row.name, {})[row.number] = bool(row.leased)
        return found

    def create(self, connection: Connection, places: Iterable[Place], now: datetime) -> None:
        """Create the rows of places that do not have any."""
        # In one order, so that two workers do not wait for each other.
        rows = [{"name": name, "number": n, "created_at": now} for name, n in sorted(places)]
        if rows:
            connection.execute(self._insert, rows)

    def lock(
        self, connection: Connection, name: str, numbers: Sequence[int], most: int
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """Lock rows that are not locked, up to a number of them, and return them."""
        values = {"given_name": name, "numbers": list(numbers), "most": most}
        return connection.execute(self._lock, values).all()

    def lock_single(
        self, connection: Connection, names: Sequence[str]
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """Lock the rows with the number 1 that are not locked, and return them."""
        return connection.execute(self._lock_single, {"names": names}).all()

    def probe(self, connection: Connection, name: str, numbers: Sequence[int]) -> int:
        """Return how many of these rows are not locked."""
        values = {"given_name": name, "numbers": list(numbers), "most": len(numbers)}
        return len(connection.execute(self._probe, values).all())

    def free_of_leases(
        self, connection: Connection, rows: Sequence[Any], shared: datetime
    ) -> list[Any]:
        """Return those of the locked rows that no lease holds.

        If the lease of a recorded job has expired, the job loses it for good: its worker may be
        alive, and could extend it.
        """
        # A worker gives one lease to several jobs, and a job may be recorded under several leases.
        recorded = {(row.job_id, row.lease_id) for row in rows if row.job_id is not None}
        if not recorded:
            return list(rows)
        ids = list({job_id for job_id, _ in recorded})
        held: set[Any] = set()
        expired: set[Any] = set()
        for job in connection.execute(self._holders, {"ids": ids}):
            lease = job.job_id, job.lease_id
            if lease in recorded:
                held.add(lease)
                if job.process_at <= shared:
                    expired.add(lease)
        if expired:
            held -= self._revoked(connection, expired)
        return [row for row in rows if (row.job_id, row.lease_id) not in held]

    def _revoked(self, connection: Connection, expired: Iterable[Any]) -> set[Any]:
        """Take leases away from the jobs that no other session has locked; return the leases."""
        leases = dict(expired)
        revoked: set[Any] = set()
        for job_id in connection.scalars(self._lock_holders, {"ids": list(leases)}).all():
            values = {"id": job_id, "lease": leases[job_id], "new_lease": uuid4()}
            if connection.execute(self._revoke, values).rowcount:
                revoked.add((job_id, leases[job_id]))
        return revoked

    def record(self, connection: Connection, holders: Mapping[Place, tuple[Any, Any]]) -> None:
        """Record the jobs and leases that hold locked places."""
        rows = [
            {"given_name": name, "given_number": number, "id": job_id, "lease": lease_id}
            for (name, number), (job_id, lease_id) in holders.items()
        ]
        if rows:
            connection.execute(self._record, rows)

    def delete_old(self, connection: Connection, now: datetime, shared: datetime) -> None:
        """Delete free places that were created some time ago: a key may never come again."""
        values = {"before": now - _MIN_AGE, "shared": shared}
        old = connection.execute(self._old, values).all()
        free: list[Any] = []
        for name, number in sorted((row.name, row.number) for row in old):
            free += self.lock(connection, name, [number], 1)
        for row in self.free_of_leases(connection, free, shared):
            values = {"given_name": row.name, "given_number": row.number}
            connection.execute(self._delete, values)

    # Starts.

    def lock_starts(self, connection: Connection, name: str) -> tuple[bool, str | None]:
        """Lock the record of starts; return whether that was possible, and what it contains."""
        row = connection.execute(self._lock_starts, {"given_name": name}).one_or_none()
        return (False, None) if row is None else (True, row.starts)

    def starts(self, connection: Connection, name: str) -> tuple[bool, str | None]:
        """Return whether there is a record of starts, and what it contains."""
        row = connection.execute(self._starts, {"given_name": name}).one_or_none()
        return (False, None) if row is None else (True, row.starts)

    def write_starts(self, connection: Connection, name: str, starts: str) -> None:
        """Write the record of starts."""
        connection.execute(self._write_starts, {"given_name": name, "new_starts": starts})
