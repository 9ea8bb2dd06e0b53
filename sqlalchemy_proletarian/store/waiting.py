"""The SQL of jobs that wait for a limit.

Such a job has ``process_at`` in the year 9000, so that no claim reads it: neither the claims of
this library, whose statements know nothing of limits, nor those of a Clojure worker. ``waits_for``
names the limit, and ``due_at`` keeps the time when the job came due.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import (
    Connection,
    Integer,
    Row,
    Table,
    bindparam,
    func,
    literal,
    null,
    select,
    update,
)

from ..database.column_types import DateTimeUTC
from ..database.dialects import Database
from ..models.values import WAITING_AT

_LAST: Final = literal(WAITING_AT, DateTimeUTC)


class WaitingJobs:
    """The statements for the waiting jobs of one job table.

    Every method takes a Connection and neither commits nor rolls back.
    """

    def __init__(self, job: Table, database: Database) -> None:
        row = job.c
        self._arrays = database.arrays
        name = bindparam("name", type_=row.waits_for.type)
        most = bindparam("most", type_=Integer)
        # In the order of the index: without statistics, PostgreSQL would read the table until it
        # finds a row.
        self._any = (
            select(row.waits_for).where(row.waits_for.is_not(None)).order_by(row.waits_for).limit(1)
        )
        self._any_of = (
            select(row.waits_for)
            .where(row.waits_for.in_(bindparam("names", expanding=True)))
            .order_by(row.waits_for)
            .limit(1)
        )
        self._names = _names(job)
        self._type_of = (
            select(row.job_type).where(row.waits_for == name).order_by(row.priority).limit(1)
        )
        self._first = (
            select(row.job_id, row.queue, row.due_at)
            .where(row.waits_for == name, row.process_at == _LAST)
            .order_by(row.priority, row.due_at)
            .limit(most)
            .with_for_update(skip_locked=True)
        )
        of_id = row.job_id == bindparam("id", type_=row.job_id.type)
        # MySQL assigns one after the other, and a later value sees the earlier ones.
        parked = [(row.due_at, row.process_at), (row.process_at, _LAST)]
        if database.arrays:
            from ..database.arrays import array, arrays

            given = arrays(
                "given",
                job_id=("ids", row.job_id.type),
                waits_for=("names", row.waits_for.type),
            )
            self._park: Any = (
                update(job)
                .where(row.job_id == given.c.job_id)
                .ordered_values((row.waits_for, given.c.waits_for), *parked)
            )
            self._release: Any = (
                update(job)
                .where(row.job_id == func.any(array("ids", row.job_id.type)))
                .values(
                    process_at=func.coalesce(row.due_at, row.process_at),
                    waits_for=null(),
                    due_at=null(),
                )
            )
        else:
            self._park = (
                update(job)
                .where(of_id)
                .ordered_values((row.waits_for, bindparam("new_name")), *parked)
            )
            self._release = (
                update(job)
                .where(of_id)
                .ordered_values(
                    (row.process_at, func.coalesce(row.due_at, row.process_at)),
                    (row.waits_for, null()),
                    (row.due_at, null()),
                )
            )
        at = bindparam("at", type_=row.process_at.type)
        self._delay = update(job).where(of_id).values(process_at=at)
        lease_id = bindparam("lease", type_=row.lease_id.type)
        self._delay_leased = self._delay.values(lease_id=lease_id)

    def park(self, connection: Connection, names: Mapping[Any, str]) -> None:
        """Let locked jobs wait.

        :param names: the names of the limits they wait for, by job id.
        """
        if not names:
            return
        if self._arrays:
            values = {"ids": list(names), "names": list(names.values())}
            connection.execute(self._park, values)
        else:
            rows = [{"id": job_id, "new_name": name} for job_id, name in names.items()]
            connection.execute(self._park, rows)

    def delay(
        self, connection: Connection, ids: Iterable[Any], at: datetime, *, leased: bool
    ) -> None:
        """Let locked jobs be due at a time.

        :param leased: whether they had leases, which have expired, and which they lose for good. It
            can be seen that they had one.
        """
        if leased:
            rows = [{"id": job_id, "at": at, "lease": uuid4()} for job_id in ids]
            statement = self._delay_leased
        else:
            rows = [{"id": job_id, "at": at} for job_id in ids]
            statement = self._delay
        if rows:
            connection.execute(statement, rows)

    def any(self, connection: Connection) -> bool:
        """Return whether any job waits."""
        return connection.scalar(self._any) is not None

    def any_of(self, connection: Connection, names: Sequence[str]) -> bool:
        """Return whether any job waits for one of these limits."""
        return connection.scalar(self._any_of, {"names": names}) is not None

    def names(self, connection: Connection, after: str, most: int) -> Sequence[str]:
        """Return the names of limits for which jobs wait, with one probe of the index for each.

        :param after: return names that follow this one in the order of the index.
        """
        return connection.scalars(self._names, {"after": after, "most": most}).all()

    def type_of(self, connection: Connection, name: str) -> str | None:
        """Return the type of a job that waits for a limit."""
        job_type: str | None = connection.scalar(self._type_of, {"name": name})
        return job_type

    def release(
        self, connection: Connection, name: str, most: int
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """Let jobs be due again that wait for a limit, the most urgent first; return their rows.

        :param most: how many.
        """
        rows = connection.execute(self._first, {"name": name, "most": most}).all()
        ids = [row.job_id for row in rows]
        if ids and self._arrays:
            connection.execute(self._release, {"ids": ids})
        elif ids:
            connection.execute(self._release, [{"id": job_id} for job_id in ids])
        return rows


def _names(job: Table) -> Any:
    name = job.c.waits_for
    after = bindparam("after", type_=name.type)
    first = select(func.min(name).label("name"), literal(1).label("n")).where(name > after)
    found = first.cte("names", recursive=True)
    following = select(func.min(name)).where(name > found.c.name).scalar_subquery()
    names = found.union_all(
        select(following, found.c.n + 1).where(
            found.c.name.is_not(None), found.c.n < bindparam("most", type_=Integer)
        )
    )
    return select(names.c.name).where(names.c.name.is_not(None))
