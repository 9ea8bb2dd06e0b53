"""What the page of one job shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import inspect as sa_inspect
from sqlalchemy import select
from sqlalchemy.orm import Session

from .. import manage
from ..callbacks import call_user_function
from ..clock import utcnow
from ..manage import JobDetails
from ..manage.cursors import parse_job_id
from ..models.job_classes import bind_arguments, class_of
from ..models.values import Status
from ..serializers.json_serializer import JSONSerializer
from .formats import pretty, pretty_value
from .options import DashboardOptions, JobTables

_HIDDEN: Final = "The payload is hidden: redact raised an error."


@dataclass(frozen=True)
class Moment:
    """A line of the life of a job."""

    at: datetime | None
    text: str
    kind: str = ""
    """"good" or "bad", or nothing of both."""


@dataclass(frozen=True)
class Related:
    """A row of the application that a job refers to by a foreign key."""

    table: str
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class JobView:
    """What the page shows."""

    now: datetime
    details: JobDetails
    payload: str
    result: str
    headers: str
    moments: Sequence[Moment]
    trace_url: str
    """The address of the job's trace; empty if there is none."""
    related: Sequence[Related]


def read_job(
    session: Session, tables: JobTables, text: str, options: DashboardOptions
) -> JobView | None:
    """Return what the page shows; None if there is no such job.

    :param text: the id, as in the address.
    """
    try:
        job_id = parse_job_id(tables.job_model, text)
    except ValueError:
        return None
    details = manage.get_job(
        session, job_id, **tables.of_jobs, running_job_model=tables.running_job_model
    )
    if details is None:
        return None
    headers = dict(details.headers or {})
    return JobView(
        utcnow(),
        details,
        shown_payload(details.job.job_type, details.payload, options),
        pretty(details.result),
        pretty_value(headers) if headers else "",
        _moments(details),
        _trace_url(options.trace_url, str(headers.get("traceparent", ""))),
        list(_related(session, tables, details)) if options.show_related else [],
    )


def is_complete_id(tables: JobTables, text: str) -> bool:
    """Return whether a text looks like the id of a job."""
    try:
        job_id = parse_job_id(tables.job_model, text)
    except ValueError:
        return False
    return not isinstance(job_id, str)


def shown_payload(job_type: str, text: str, options: DashboardOptions) -> str:
    """Return a payload as it may be shown."""
    if options.redact is None:
        return pretty(text)
    try:
        payload = JSONSerializer().decode(text)
    except Exception:  # it is of another serializer
        payload = text
    try:
        shown = call_user_function(options.redact, job_type, payload)
    except Exception:
        return _HIDDEN
    return shown if isinstance(shown, str) else pretty_value(shown)


def _moments(details: JobDetails) -> list[Moment]:
    job, run = details.job, details.running
    moments = [Moment(job.enqueued_at, "enqueued")]
    if run is not None:
        worker = run.worker or "a worker"
        moments.append(Moment(run.started_at, f"attempt {run.attempt} runs in {worker}"))
        if run.alive is False:
            moments.append(Moment(None, "the worker has crashed", "bad"))
    elif not job.is_archived:
        waits = f"waits for the limit {details.waits_for}" if details.waits_for else "due"
        moments.append(Moment(None if details.waits_for else job.process_at, waits))
    if job.finished_at is not None:
        good = job.status == Status.SUCCESS
        attempts = "1 attempt" if job.attempts == 1 else f"{job.attempts} attempts"
        text = f"{_ENDS.get(job.status, 'ended')} after {attempts}"
        moments.append(Moment(job.finished_at, text, "good" if good else "bad"))
    if job.retried_at is not None:
        moments.append(Moment(job.retried_at, "enqueued again as another job"))
    return moments


_ENDS: Final = {
    Status.SUCCESS.value: "succeeded",
    Status.FAILURE.value: "failed",
    Status.CANCELLED.value: "was cancelled",
}


def _related(session: Session, tables: JobTables, details: JobDetails) -> Iterator[Related]:
    """Read the rows that the job refers to."""
    mapper = sa_inspect(class_of(tables.job_model, details.job.job_type))
    bind = bind_arguments(tables.job_model)
    for column in mapper.columns:
        value = details.columns.get(column.name)
        if value is None:
            continue
        for key in column.foreign_keys:
            other = key.column.table
            statement = select(other).where(key.column == value).limit(1)
            row = session.execute(statement, bind_arguments=bind).mappings().first()
            if row is not None:
                yield Related(str(other), dict(row))


def _trace_url(template: str | None, traceparent: str) -> str:
    parts = traceparent.split("-")
    if template is None or len(parts) != 4:  # noqa: PLR2004 - as W3C Trace Context says
        return ""
    return template.replace("{trace_id}", parts[1]).replace("{span_id}", parts[2])
