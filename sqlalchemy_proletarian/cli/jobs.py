"""The commands ``proletarian jobs list`` and ``jobs show``."""

from __future__ import annotations

from typing import Any

import click

from .. import manage
from ..clock import utcnow
from ..manage.cursors import parse_job_id
from .filters import Filters, filter_options
from .job_views import print_job, print_page
from .jobs_change import COMMANDS
from .output import not_found
from .target import Target, on_database


@click.group()
def jobs() -> None:
    """Show and change jobs."""


@jobs.command("list")
@filter_options(default_limit=50)
@click.option("--after", metavar="POSITION", help="Continue behind a page: its 'after'.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
def list_(target: Target, filters: Filters, after: str | None, *, as_json: bool) -> None:
    """List jobs: by default those that are queued, in the order in which workers claim them.

    With a --status of archived jobs, those that have ended, the last one first.
    """
    with target.session() as session:
        try:
            page = manage.list_jobs(
                session,
                **filters.arguments("queued"),
                after=after,
                **target.models.of_jobs,
                running_job_model=target.models.running,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    print_page(page, filters, utcnow(), as_json=as_json)


@jobs.command()
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
def show(target: Target, job_id: str, *, as_json: bool) -> None:
    """Show all about the job JOB_ID: payload, error, times, and where it runs."""
    options: dict[str, Any] = target.models.of_jobs
    with target.session() as session:
        found = manage.get_job(
            session,
            as_id(target, job_id),
            **options,
            running_job_model=target.models.running,
        )
    if found is None:
        not_found(f"there is no job {job_id}: it may have been pruned")
    print_job(found, utcnow(), as_json=as_json)


def as_id(target: Target, text: str) -> Any:
    """Return an id as the models have it."""
    try:
        return parse_job_id(target.models.job, text)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


for _command in COMMANDS:
    jobs.add_command(_command)
