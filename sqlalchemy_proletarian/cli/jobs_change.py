"""The commands that change jobs: ``proletarian jobs retry`` and its siblings."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Final, TypeAlias

import click
from sqlalchemy.orm import Session

from .. import manage
from ..clock import utcnow
from ..manage.cursors import parse_job_id
from .filters import ARCHIVED, QUEUED, Filters, filter_options
from .output import NOT_DONE, NOT_FOUND, Tracker, at, confirm, in_parts, print_json
from .target import Target, on_database
from .values import duration, time

_PART: Final = 500
"""How many ids one statement or transaction has at most."""

_PAUSE: Final = 0.2
"""Seconds after which a transaction with several jobs commits."""

_Result: TypeAlias = tuple[Any, str, Any]
"""The id of a job, what became of it, and a detail."""

_Act: TypeAlias = Callable[[Session, Any], tuple[str, Any]]
"""Changes a job; returns what became of it, and a detail."""

_GOOD: Final = ("retried", "cancelled", "requested", "discarded", "rescheduled")

_MEANINGS: Final = {
    "requested": "it is running; its worker is requested to cancel it",
    "running": "it is running: wait, or cancel it",
    "not found": "there is no such job",
    "queued": "it is queued, not archived: use 'proletarian jobs reschedule'",
    "archived": "it has ended",
    "retried before": "it was retried before",
    "not retried": "its unique key is taken, or another transaction has locked it",
}


def _selecting(statuses: Sequence[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for the arguments and options that select the jobs to change."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            [
                click.argument("job_ids", metavar="[JOB_ID]…", nargs=-1),
                filter_options(statuses=statuses),
                click.option("--all", "every", is_flag=True, help="All jobs, without a filter."),
                click.option("--yes", "-y", is_flag=True, help="Do not ask."),
                click.option("--json", "as_json", is_flag=True, help="Print JSON."),
            ]
        ):
            command = option(command)  # type: ignore[operator]
        return on_database(command)

    return decorate


@click.command()
@_selecting(ARCHIVED)
def retry(target: Target, **selection: Any) -> None:
    """Enqueue archived jobs again, by their ids or by filters; by default those that failed."""
    models = target.models.of_jobs

    def act(session: Session, job_id: Any) -> tuple[str, Any]:
        new_id = manage.retry(session, job_id, **models)
        if new_id is not None:
            return "retried", new_id
        found = manage.get_job(session, job_id, running_job_model=None, **models)
        if found is None:
            return "not found", None
        if not found.job.is_archived:
            return "queued", None
        return ("retried before" if found.job.retried_at else "not retried"), None

    def retry_part(session: Session, ids: Sequence[Any]) -> int:
        return manage.retry_where(session, target.models.archived.job_id.in_(ids), **models)

    _change(target, "retry", "failure", act, retry_part=retry_part, **selection)


@click.command()
@click.option("--reason", default="cancelled", help="Stored as the error of the job.")
@_selecting(QUEUED)
def cancel(target: Target, reason: str, **selection: Any) -> None:
    """Cancel queued or running jobs, by their ids or by filters."""

    def act(session: Session, job_id: Any) -> tuple[str, Any]:
        done = manage.cancel(session, job_id, reason=reason, **target.models.of_jobs)
        return done or _absent(target, session, job_id), None

    _change(target, "cancel", "queued", act, **selection)


@click.command()
@click.option("--reason", default="discarded", help="Stored as the error of the job.")
@_selecting(QUEUED)
def discard(target: Target, reason: str, **selection: Any) -> None:
    """Archive waiting jobs as failures, by their ids or by filters."""

    def act(session: Session, job_id: Any) -> tuple[str, Any]:
        done = manage.discard(session, job_id, reason=reason, **target.models.of_jobs)
        return done or _absent(target, session, job_id), None

    _change(target, "discard", "queued", act, always_ask=True, **selection)


@click.command()
@click.option("--in", "process_in", type=duration, metavar="DURATION", help="In 5m, 2h, 1d.")
@click.option("--at", "process_at", type=time, metavar="TIME", help="At a time in ISO 8601.")
@click.option("--now", "now", is_flag=True, help="At once.")
@_selecting(QUEUED)
def reschedule(
    target: Target,
    process_in: timedelta | None,
    process_at: datetime | None,
    *,
    now: bool,
    **selection: Any,
) -> None:
    """Change when waiting jobs are due, by their ids or by filters."""
    if sum((process_in is not None, process_at is not None, now)) != 1:
        msg = "give one of --in, --at and --now"
        raise click.UsageError(msg)
    due = process_at if process_at is not None else utcnow() + (process_in or timedelta(0))

    def act(session: Session, job_id: Any) -> tuple[str, Any]:
        done = manage.reschedule(session, job_id, process_at=due, job_model=target.models.job)
        return done or _absent(target, session, job_id), at(due)

    _change(target, "reschedule", "queued", act, **selection)


COMMANDS: Final = (retry, cancel, discard, reschedule)


def _absent(target: Target, session: Session, job_id: Any) -> str:
    models = target.models.of_jobs
    found = manage.get_job(session, job_id, running_job_model=None, **models)
    return "not found" if found is None else "archived"


def _change(
    target: Target,
    verb: str,
    default: str,
    act: _Act,
    *,
    job_ids: Sequence[str],
    filters: Filters,
    every: bool,
    yes: bool,
    as_json: bool,
    always_ask: bool = False,
    retry_part: Callable[[Session, Sequence[Any]], int] | None = None,
) -> None:
    """Select the jobs, ask, change them, and report what became of them."""
    if job_ids and (filters.any_given or filters.limit or every):
        msg = "give ids or filters, not both"
        raise click.UsageError(msg)
    if not (job_ids or filters.any_given or every):
        msg = "give the ids of jobs, or a filter such as --queue, --type or --status; or --all"
        raise click.UsageError(msg)
    try:
        ids = [parse_job_id(target.models.job, text) for text in job_ids]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if not job_ids:
        ids = _found(target, filters, default)
    if ids and (always_ask or len(ids) > 1 or not job_ids):
        jobs = "1 job" if len(ids) == 1 else f"{len(ids):,} jobs"
        confirm(f"{verb.capitalize()} {jobs}{filters}?", yes=yes)
    results: list[_Result] = []
    counts: Counter[str] = Counter()
    with Tracker(f"{verb.capitalize()} {len(ids):,} jobs", len(ids)) as tracker:
        for part in in_parts(ids, _PART):
            if retry_part is not None and not job_ids:
                with target.session() as session:
                    retried = retry_part(session, part)
                counts += Counter({"retried": retried, "not retried": len(part) - retried})
                tracker.reach(counts.total())
                continue
            rest = list(part)
            while rest:
                with target.session() as session:
                    end = monotonic() + _PAUSE
                    done = []
                    while rest and monotonic() < end:
                        job_id = rest.pop(0)
                        done.append((job_id, *act(session, job_id)))
                counts.update(result for _, result, _ in done)  # they are committed
                results += done if job_ids else []
                tracker.reach(counts.total())
    _report(counts, results, by_id=bool(job_ids), as_json=as_json)


def _found(target: Target, filters: Filters, default: str) -> list[Any]:
    """Return the ids of the jobs that meet the filters."""
    ids: list[Any] = []
    after = None
    with Tracker("Looking for jobs", None) as tracker, target.session() as session:
        while True:
            left = _PART * 10 if filters.limit is None else filters.limit - len(ids)
            page = manage.list_jobs(
                session,
                **filters.arguments(default, min(left, _PART * 10)),
                after=after,
                running_job_model=target.models.running,
                **target.models.of_jobs,
            )
            ids += [job.job_id for job in page.jobs if job.retried_at is None]
            after = page.after
            tracker.reach(len(ids))
            if after is None or (filters.limit is not None and len(ids) >= filters.limit):
                return ids


def _report(
    counts: Counter[str], results: Sequence[_Result], *, by_id: bool, as_json: bool
) -> None:
    if as_json:
        names = "job_id", "result", "detail"
        jobs = [dict(zip(names, result, strict=True)) for result in results]
        print_json({"counts": counts, "jobs": jobs})
    elif by_id:
        for job_id, result, detail in results:
            text = _MEANINGS.get(result, result)
            if detail is not None and result in _GOOD:
                text += f" as {detail}" if result == "retried" else f" to {detail}"
            click.echo(f"{job_id}: {text}", err=result not in _GOOD)
    else:
        for result, count in counts.items():
            if count:
                click.echo(f"{count:,} {result}")
        if not counts:
            click.echo("No such jobs.")
    if by_id and counts["not found"]:
        sys.exit(NOT_FOUND)
    if by_id and any(result not in _GOOD for result in counts):
        sys.exit(NOT_DONE)
