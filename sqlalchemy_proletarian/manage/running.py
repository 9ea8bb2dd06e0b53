"""Which jobs are running: where, and since when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from sqlalchemy import Table
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Session, scoped_session

from ..clock import utcnow
from ..database.dialects import database_of
from ..database.marker_servers import has_markers
from ..models.defaults import Job, RunningJob
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import JobMixin, RunningJobMixin
from ..models.requirements import TableUse, explained
from ..producer.sessions import immediate_session
from ..store.markers import open_marker_table
from ..store.statistics import leased_jobs, running_jobs

RunningModel: TypeAlias = type[RunningJobMixin] | Literal["default"] | None


@dataclass(frozen=True)
class Running:
    """A job that a worker has; see :func:`running`.

    .. versionadded:: 0.1
    """

    job_id: Any
    """The id of the job."""
    queue: str
    """The name of the queue."""
    job_type: str
    """The type of the job."""
    attempt: int
    """The number of the attempt, from 1."""
    worker: str | None
    """The worker: its name, with a suffix that differs for each start. None if it is unknown."""
    alive: bool | None
    """False if the worker has crashed; None if that is unknown."""
    started_at: datetime | None
    """When the worker began with the job or, for fast jobs, with the transaction whose first job
    it is; None if it is unknown."""
    batch_size: int | None
    """How many jobs the worker runs in that transaction, or at the same time in lease mode; None if
    it is unknown."""
    lease_until: datetime | None
    """When the lease expires, unless the worker extends it; None in transaction mode."""


def running(
    session: Session | scoped_session[Any],
    *,
    job_model: type[JobMixin] = Job,
    running_job_model: type[RunningJobMixin] | Literal["default"] | None = "default",
) -> list[Running]:
    """Return the jobs that workers are running, those that began first at the beginning.

    In transaction mode, fast jobs share a transaction, which appears as its first job. A job that
    takes longer than the worker's ``batch_window`` runs alone, so it always appears.

    A job whose worker has crashed is ``alive=False`` until another worker claims it.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.running``.
    :param job_model: the mapped class of the job table.
    :param running_job_model: the mapped class of the running markers of its workers. By default
        :class:`.RunningJob` if ``job_model`` is :class:`.Job`, otherwise None. With None, and where
        there are no markers, the result has the jobs of workers in lease mode only, without their
        workers, and the whole job table is read. There are none on SQLite, on a standby of
        PostgreSQL, and in a Galera cluster.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "running", arguments="")
    bind: dict[str, Any] = {"bind_arguments": bind_arguments(job_model)}
    engine = unit.get_bind(**bind["bind_arguments"])
    database = database_of(engine.dialect)
    job, table = job_table(job_model), marker_table(unit, job_model, running_job_model)
    uses = [TableUse(one, ("SELECT",)) for one in (job, table) if one is not None]
    with explained(engine, *uses):
        if table is None:
            now = utcnow() if database.now is None else unit.scalar(database.now, **bind)
            return [
                _of(row, None, None, None, None)
                for row in unit.execute(leased_jobs(job, now), **bind)
            ]
        markers = open_marker_table(database, table)
        alive = set(unit.scalars(markers.alive_workers(), **bind))
        return [
            _of(row, row.worker, row.worker in alive, row.started_at, row.batch_size)
            for row in unit.execute(running_jobs(job, table), **bind)
        ]


def _of(
    row: Any,
    worker: str | None,
    alive: bool | None,
    started_at: datetime | None,
    batch_size: int | None,
) -> Running:
    return Running(
        row.job_id,
        row.queue,
        row.job_type,
        row.attempts + 1,
        worker,
        alive,
        started_at,
        batch_size,
        None if row.lease_id is None else row.process_at,
    )


def marker_table(session: Session, job_model: type[JobMixin], model: RunningModel) -> Table | None:
    """Return the table of markers that workers of a job table use; None if it cannot be read."""
    if model == "default":
        model = RunningJob if job_model is Job else None
    bind = bind_arguments(job_model)
    if model is None or not has_markers(session.connection(bind_arguments=bind)):
        return None
    table: Table = sa_inspect(model).local_table
    return table
