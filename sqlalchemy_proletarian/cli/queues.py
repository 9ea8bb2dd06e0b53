"""The commands ``proletarian queues …``."""

from __future__ import annotations

from getpass import getuser
from typing import Any

import click
from sqlalchemy import select

from .. import manage
from ..clock import utcnow
from ..manage import JobCounts
from .output import NUMBER, ago, console, print_json, shown, table
from .target import Target, on_database


@click.group()
def queues() -> None:
    """Show, pause and resume queues."""


@queues.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
def list_(target: Target, *, as_json: bool) -> None:
    """List the queues that have jobs, have had some in the last minutes, or are paused."""
    with target.session() as session:
        stats = manage.stats(
            session, **target.models.of_jobs, running_job_model=target.models.running
        )
        pauses = paused(session, target)
    names = sorted({*stats.queues, *pauses})
    counts = {name: stats.queues.get(name, JobCounts(name, None)) for name in names}
    if as_json:
        print_json(
            {
                "queues": [
                    {
                        "queue": name,
                        **counts_json(counts[name]),
                        "complete": name not in stats.incomplete,
                        "paused": pauses.get(name),
                    }
                    for name in names
                ]
            }
        )
        return
    made = table("Queue", *((title, NUMBER) for title in ("Due", "Running", "Later", "Failed")), "")
    for name in names:
        found = counts[name]
        more = "+" if name in stats.incomplete else ""
        made.add_row(
            shown(name),
            f"{found.due:,}{more}",
            f"{found.running:,}",
            f"{found.scheduled + found.retrying:,}{more}",
            shown(f"{found.failed:,}", "red" if found.failed else ""),
            shown(pause_text(pauses[name]) if name in pauses else "", "yellow"),
        )
    console().print(made if names else "There are no jobs, and no queue is paused.")


@queues.command()
@click.argument("queue")
@click.option("--reason", help="Why; a text for people.")
@click.option("--by", help="Who pauses the queue; by default the name of the user.")
@on_database
def pause(target: Target, queue: str, reason: str | None, by: str | None) -> None:
    """Pause QUEUE: workers claim no more of its jobs; those that run go on."""
    model = target.models.require("paused")
    try:
        with target.session() as session:
            new = manage.pause(
                session, queue, reason=reason, paused_by=by or _user(), paused_queue_model=model
            )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"Queue {queue} is paused." if new else f"Queue {queue} was paused already.")


@queues.command()
@click.argument("queue")
@on_database
def resume(target: Target, queue: str) -> None:
    """Let workers claim the jobs of QUEUE again."""
    model = target.models.require("paused")
    try:
        with target.session() as session:
            done = manage.resume(session, queue, paused_queue_model=model)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"Queue {queue} is resumed." if done else f"Queue {queue} was not paused.")


def paused(session: Any, target: Target) -> dict[str, dict[str, Any]]:
    """Return the paused queues: since when, by whom, and why."""
    model = target.models.paused
    if model is None:
        return {}
    return {
        row.queue: {"since": row.paused_at, "by": row.paused_by, "reason": row.reason}
        for row in session.scalars(select(model).order_by(model.queue))
    }


def pause_text(pause: dict[str, Any]) -> str:
    """Return a pause in words."""
    by = f" by {pause['by']}" if pause["by"] else ""
    why = f": {pause['reason']}" if pause["reason"] else ""
    return f"paused {ago(pause['since'], utcnow())}{by}{why}"


def counts_json(counts: JobCounts) -> dict[str, Any]:
    """Return the numbers of a queue or type as JSON keys and values."""
    numbers = {name: v for name, v in vars(counts).items() if name not in ("queue", "job_type")}
    numbers["oldest_due_seconds"] = numbers.pop("oldest_due")
    return numbers


def _user() -> str | None:
    try:
        return getuser()[:255] or None
    except (OSError, KeyError):
        return None
