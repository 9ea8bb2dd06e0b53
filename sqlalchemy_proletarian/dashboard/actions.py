"""What a visitor does with jobs, queues and recurring jobs.

Jobs are named by their ids, or by the filters of a list: then the action is for all jobs of the
list, up to a maximum, so that one request is never without end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from .. import manage
from ..manage.cursors import parse_job_id
from .filters import Filters
from .formats import number
from .options import JobTables

MOST: Final = 5_000
"""How many jobs one action changes at most."""

_PAGE: Final = 500


@dataclass(frozen=True)
class Kind:
    """A kind of action.

    :param verb: as in "Retry 3 jobs?".
    :param done: as in "3 jobs enqueued again."
    :param is_for: what it changes.
    :param warning: what to know before.
    """

    verb: str
    done: str
    is_for: str
    warning: str = ""


KINDS: Final[Mapping[str, Kind]] = {
    "retry": Kind("Retry", "enqueued again", "job"),
    "run-now": Kind("Run now", "made due", "job"),
    "cancel": Kind("Cancel", "cancelled", "job", "This cannot be undone."),
    "discard": Kind("Discard", "archived as failed", "job", "This cannot be undone."),
    "reschedule": Kind("Postpone by 1 hour", "postponed", "job"),
    "pause": Kind("Pause", "paused", "queue", "Workers finish what they run and claim no more."),
    "resume": Kind("Resume", "resumed", "queue"),
    "run-recurring": Kind("Run now", "enqueued", "recurring job"),
    "pause-recurring": Kind("Pause", "paused", "recurring job", "Its ticks pass without a job."),
    "resume-recurring": Kind("Resume", "resumed", "recurring job"),
}


@dataclass(frozen=True)
class Selection:
    """What an action is for.

    :param names: the ids of jobs, or the names of a queue or a recurring job.
    :param filters: the list whose jobs it is for, if no ids are given.
    """

    kind: str
    names: Sequence[str] = ()
    filters: Filters | None = None

    @classmethod
    def of(cls, form: Mapping[str, Sequence[str]]) -> Selection | None:
        """Return the selection of a form; None if it is not valid."""
        kind = (form.get("action") or [""])[0]
        if kind not in KINDS:
            return None
        names = [name for name in form.get("name", ()) if name]
        if names or "every" not in form:
            return cls(kind, names[:MOST])
        filters = Filters.of({name: values[0] for name, values in form.items() if values})
        return None if filters.problem else cls(kind, (), filters)

    def resolved(self, session: Session, tables: JobTables) -> Sequence[str]:
        """Return the names of everything that the action is for."""
        if self.filters is None:
            return self.names
        found: list[str] = []
        after: str | None = None
        while len(found) < MOST:
            page = manage.list_jobs(
                session,
                **self.filters.arguments(),
                limit=min(_PAGE, MOST - len(found)),
                after=after,
                **tables.of_jobs,
                running_job_model=tables.running_job_model,
            )
            found += [str(job.job_id) for job in page.jobs]
            after = page.after
            if after is None:
                break
        return found


def perform(
    session: Session, tables: JobTables, kind: str, names: Sequence[str], actor: str
) -> int:
    """Do it, in the transaction of the session; return for how many names it had an effect."""
    if KINDS[kind].is_for == "queue":
        return sum(_change_queue(session, tables, kind, name, actor) for name in names)
    if KINDS[kind].is_for == "recurring job":
        return sum(_change_recurring(session, tables, kind, name) for name in names)
    ids = [_id_of(tables, name) for name in names]
    if kind == "retry":
        parts = (ids[n : n + _PAGE] for n in range(0, len(ids), _PAGE))
        model = tables.archived_job_model
        return sum(
            manage.retry_where(session, model.job_id.in_(part), **tables.of_jobs) for part in parts
        )
    change = _of_job(session, tables, kind, actor)
    return sum(change(job_id) for job_id in ids)


def _of_job(session: Session, tables: JobTables, kind: str, actor: str) -> Callable[[Any], bool]:
    """Return what changes one job, and returns whether it has changed it."""
    if kind == "cancel":
        reason = f"cancelled by {actor}"
        return lambda job_id: (
            manage.cancel(session, job_id, reason=reason, **tables.of_jobs) is not None
        )
    if kind == "discard":
        reason = f"discarded by {actor}"
        return lambda job_id: (
            manage.discard(session, job_id, reason=reason, **tables.of_jobs) == "discarded"
        )
    delay = timedelta(hours=1) if kind == "reschedule" else timedelta(0)
    model = tables.job_model
    return lambda job_id: (
        manage.reschedule(session, job_id, process_in=delay, job_model=model) == "rescheduled"
    )


def _change_queue(session: Session, tables: JobTables, kind: str, queue: str, actor: str) -> bool:
    if tables.paused is None:
        return False
    if kind == "resume":
        return manage.resume(session, queue, paused_queue_model=tables.paused)
    return manage.pause(
        session, queue, paused_by=actor[:255] or None, paused_queue_model=tables.paused
    )


def _change_recurring(session: Session, tables: JobTables, kind: str, name: str) -> bool:
    model = tables.recurring
    if model is None:
        return False
    if kind == "run-recurring":
        job_id = manage.run_schedule(
            session, name, job_model=tables.job_model, recurring_job_model=model
        )
        return job_id is not None
    change = manage.pause_schedule if kind == "pause-recurring" else manage.resume_schedule
    return bool(change(session, name, recurring_job_model=model))


def _id_of(tables: JobTables, name: str) -> Any:
    try:
        return parse_job_id(tables.job_model, name)
    except ValueError:
        return name


def count_text(kind: str, count: int) -> str:
    """Return a number of what an action is for: "3 jobs"."""
    what = KINDS[kind].is_for
    return f"1 {what}" if count == 1 else f"{number(count)} {what}s"
