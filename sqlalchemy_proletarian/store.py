"""The worker's SQL, all of it: claim, settle, load, and when the next job is due.

Every function takes a Session and neither commits nor rolls back: the caller owns the transaction.
Statements are built once per store, so that SQLAlchemy and the driver can keep them prepared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    DateTime,
    Integer,
    SmallInteger,
    Text,
    Values,
    bindparam,
    column,
    delete,
    func,
    insert,
    select,
    true,
    update,
    values,
)
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql.selectable import TableValuedAlias

from .errors import TablesMissingError
from .models import PRIORITIES, ArchivedJobMixin, JobMixin
from .outcomes import Cancelled, Failed, Outcome, Retried, Snoozed, Succeeded

UNDEFINED_TABLE = "42P01"
INVALID_SCHEMA = "3F000"


class ClaimedJob(NamedTuple):
    """What running a job takes; its whole row is loaded for handlers that ask for it.

    ``attempts`` counts this run.
    """

    job_id: Any
    job_type: str
    payload: str
    attempts: int


Result: TypeAlias = tuple[ClaimedJob, Outcome]


class NextDue(NamedTuple):
    """What waits in the lanes of a worker that has found nothing to claim.

    ``overdue``: due jobs exist, so other workers hold them. ``at``: when the next one comes due.
    """

    overdue: bool
    at: datetime | None


class Store:
    """The statements for one pair of tables and the queues that one worker serves.

    :param queues: names of the queues, the most urgent first.
    """

    def __init__(
        self,
        job_model: type[JobMixin],
        archived_job_model: type[ArchivedJobMixin],
        queues: Sequence[str],
    ) -> None:
        self.job_model = job_model
        self.archived_job_model = archived_job_model
        self.queues = tuple(queues)
        self._job = sa_inspect(job_model).local_table
        self._archived = sa_inspect(archived_job_model).local_table
        self._id_type = self._job.c.job_id.type
        self._claim = self._claim_statement()
        self._next_due = self._next_due_statement()
        self._archive = self._archive_statement()
        self._reschedule = self._reschedule_statement()
        self._load = select(job_model).where(
            job_model.job_id == func.any(bindparam("ids", type_=ARRAY(self._id_type)))
        )

    # What a worker does, in the order it does it.

    def claim(self, session: Session, limit: int, now: datetime) -> list[ClaimedJob]:
        """Lock up to ``limit`` due jobs and return them, the most urgent first."""
        rows = session.execute(self._claim, {"now": now, "limit": limit})
        return [ClaimedJob(row[0], row[1], row[2], row[3] + 1) for row in rows]

    def reclaim(self, session: Session, job: ClaimedJob) -> bool:
        """Lock one job again, as it was when it was claimed; tell whether it is still there."""
        model = self.job_model
        statement = (
            select(model.job_id)
            .where(model.job_id == job.job_id, model.attempts == job.attempts - 1)
            .with_for_update(skip_locked=True)
        )
        return session.execute(statement).first() is not None

    def load(self, session: Session, jobs: Iterable[ClaimedJob]) -> dict[Any, Any]:
        """Return the rows of claimed jobs as detached objects, by job id.

        Their ``attempts`` count this run.
        """
        attempts = {job.job_id: job.attempts for job in jobs}
        if not attempts:
            return {}
        found = session.scalars(
            self._load, {"ids": list(attempts)}, execution_options={"populate_existing": True}
        ).all()
        for row in found:
            session.expunge(row)
            set_committed_value(row, "attempts", attempts[row.job_id])
        return {row.job_id: row for row in found}

    def settle(self, session: Session, results: Sequence[Result], now: datetime) -> None:
        """Write how jobs ended: finished ones to the archive, others back to their queue.

        A job that was interrupted, or has no result, stays as it was.
        """
        finished = [
            (job.job_id, outcome)
            for job, outcome in results
            if isinstance(outcome, Succeeded | Failed | Cancelled)
        ]
        if finished:
            session.execute(
                self._archive,
                {
                    "ids": [job_id for job_id, _ in finished],
                    "statuses": [outcome.status.value for _, outcome in finished],
                    "errors": [outcome.error for _, outcome in finished],
                    "now": now,
                },
            )
        rescheduled = [
            (job.job_id, outcome)
            for job, outcome in results
            if isinstance(outcome, Retried | Snoozed)
        ]
        if rescheduled:
            session.execute(
                self._reschedule,
                {
                    "ids": [job_id for job_id, _ in rescheduled],
                    "times": [outcome.process_at for _, outcome in rescheduled],
                    "counts": [outcome.counted for _, outcome in rescheduled],
                    "errors": [outcome.error for _, outcome in rescheduled],
                },
            )

    def next_due(self, session: Session, now: datetime) -> NextDue:
        """Return what waits in the worker's lanes."""
        overdue, at = session.execute(self._next_due, {"now": now}).one()
        return NextDue(bool(overdue), at)

    def check_tables(self, connection: Connection) -> None:
        """Raise :class:`TablesMissingError` unless both tables are there."""
        if connection.dialect.name != "postgresql":
            msg = f"the worker runs on PostgreSQL; {connection.dialect.name} is not supported yet"
            raise NotImplementedError(msg)
        for table in (self._job, self._archived):
            require_table(connection, table)

    # How it says so.

    def _lanes(self) -> Values:
        """Queues and priorities, the most urgent first."""
        return values(column("queue", Text), column("priority", SmallInteger), name="lane").data(
            [(queue, priority) for queue in self.queues for priority in PRIORITIES]
        )

    def _in_lane(self, lanes: Values) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return (
            self.job_model.queue == lanes.c.queue,
            self.job_model.priority == lanes.c.priority,
        )

    def _claim_statement(self) -> Any:
        # One index probe per lane, stopped by the outer LIMIT: rows of the later lanes are neither
        # read nor locked. ORDER BY priority, process_at over all of them would read the whole
        # backlog, jobs scheduled for the future included.
        model, lanes = self.job_model, self._lanes()
        limit = bindparam("limit", type_=Integer)
        due = (
            select(model.job_id, model.job_type, model.payload, model.attempts)
            .where(*self._in_lane(lanes), model.process_at <= bindparam("now"))
            .order_by(model.process_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .lateral("due")
        )
        return select(due).select_from(lanes.join(due, true())).limit(limit)

    def _next_due_statement(self) -> Any:
        model, lanes = self.job_model, self._lanes()
        now = bindparam("now", type_=DateTime(timezone=True))

        def first(*where: ColumnElement[bool], name: str) -> Any:
            return (
                select(model.process_at)
                .where(*self._in_lane(lanes), *where)
                .order_by(model.process_at)
                .limit(1)
                .lateral(name)
            )

        due = first(model.process_at <= now, name="due")
        future = first(model.process_at > now, name="future")
        return select(func.count(due.c.process_at) > 0, func.min(future.c.process_at)).select_from(
            lanes.outerjoin(due, true()).outerjoin(future, true())
        )

    def _given(self, **columns: tuple[str, Any]) -> TableValuedAlias:
        """Arrays of parameters as a table: ``name=(parameter, type)`` makes a column."""
        arrays = [bindparam(parameter, type_=ARRAY(type_)) for parameter, type_ in columns.values()]
        named = [column(name, type_) for name, (_, type_) in columns.items()]
        return func.unnest(*arrays).table_valued(*named, name="given").render_derived()

    def _archive_statement(self) -> Any:
        job, archived = self._job, self._archived
        given = self._given(
            job_id=("ids", self._id_type), status=("statuses", Text()), error=("errors", Text())
        )
        carried = {c.name: c for c in job.c if c.name in archived.c}
        carried["attempts"] = (job.c.attempts + 1).label("attempts")
        carried["error"] = func.coalesce(given.c.error, job.c.error).label("error")
        done = (
            delete(job)
            .where(job.c.job_id == given.c.job_id)
            .returning(*carried.values(), given.c.status)
            .cte("done")
        )
        finished_at = bindparam("now", type_=DateTime(timezone=True))
        return insert(archived).from_select(
            [*carried, "status", "finished_at"],
            select(*(done.c[name] for name in carried), done.c.status, finished_at),
        )

    def _reschedule_statement(self) -> Any:
        job = self._job
        given = self._given(
            job_id=("ids", self._id_type),
            process_at=("times", DateTime(timezone=True)),
            counted=("counts", Integer()),
            error=("errors", Text()),
        )
        return (
            update(job)
            .where(job.c.job_id == given.c.job_id)
            .values(
                process_at=given.c.process_at,
                attempts=job.c.attempts + given.c.counted,
                error=func.coalesce(given.c.error, job.c.error),
            )
        )


def require_table(connection: Connection, table: Any) -> None:
    """Raise :class:`TablesMissingError` unless the table is there."""
    if not sa_inspect(connection).has_table(table.name, schema=table.schema):
        raise tables_missing(str(table))


def tables_missing(detail: str) -> TablesMissingError:
    """Return the error that names what is missing and the command that creates it."""
    return TablesMissingError(
        f"{detail} does not exist: create the job tables with 'proletarian migrate upgrade --url "
        f"…', or with sqlalchemy_proletarian.migrations.upgrade() in a revision of your own"
    )


@contextmanager
def explain_missing_tables() -> Iterator[None]:
    """Turn the database's word for a missing table into :class:`TablesMissingError`."""
    try:
        yield
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) in (UNDEFINED_TABLE, INVALID_SCHEMA):
            raise tables_missing(str(error.orig).partition("\n")[0]) from error
        raise
