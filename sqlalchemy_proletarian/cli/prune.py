"""The command ``proletarian prune``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import click

from .. import manage
from ..models.values import Status
from .output import Tracker, confirm, print_json, span
from .target import Target, on_database
from .values import duration

_COUNTED: Final = 10_000
"""Up to how many jobs the question says the number exactly."""


@click.command()
@click.option(
    "--older-than",
    required=True,
    type=duration,
    metavar="DURATION",
    help="Only jobs that ended at least this long ago: 90d, 12h.",
)
@click.option(
    "--status",
    "-s",
    multiple=True,
    type=click.Choice([status.value for status in Status]),
    help="Only jobs with this status; can be repeated.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=1000, show_default=True, help="Rows per commit."
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
def prune(
    target: Target,
    older_than: timedelta,
    status: tuple[str, ...],
    batch_size: int,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete archived jobs for ever, in batches that commit one by one."""
    total = None
    if not yes:
        count, total = _count(target, older_than, status)
        which = " or ".join(status)
        jobs = f"{count} archived jobs{f' with status {which}' if which else ''}"
        if total == 0:
            _report(0, as_json=as_json)
            return
        confirm(f"Delete {jobs} that ended more than {span(older_than)} ago?", yes=False)
    with Tracker("Deleting archived jobs", total) as tracker:
        deleted = manage.prune(
            target.engine,
            older_than=older_than,
            status=list(status) or None,
            batch_size=batch_size,
            progress=tracker.reach,
            archived_job_model=target.models.archived,
        )
    _report(deleted, as_json=as_json)


def _report(deleted: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"deleted": deleted})
    else:
        click.echo(f"Deleted {deleted:,} archived jobs.")


def _count(
    target: Target, older_than: timedelta, status: tuple[str, ...]
) -> tuple[str, int | None]:
    """Return the number of jobs in words, and exactly if it is not large."""
    options: dict[str, Any] = target.models.of_jobs
    with target.session() as session:
        page = manage.list_jobs(
            session,
            status=status or "archived",
            older_than=older_than,
            limit=_COUNTED,
            **options,
        )
    count = len(page.jobs)
    return (f"{count:,}", count) if page.after is None else (f"{count:,} or more", None)
