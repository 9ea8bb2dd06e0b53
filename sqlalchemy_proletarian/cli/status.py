"""The command ``proletarian status``."""

from __future__ import annotations

from datetime import datetime
from time import sleep
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from .. import manage
from ..clock import utcnow
from ..errors import ProletarianError
from ..migrate.commands import recorded_version
from ..models.defaults import Job
from .explain import one_line
from .output import console, print_json
from .queues import counts_json, paused
from .status_views import Status, view
from .target import Target, on_database


@click.command()
@click.option(
    "--watch",
    "-w",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(0.1),
    metavar="[SECONDS]",
    help="Show it again and again, by default every 2 seconds, until Ctrl-C.",
)
@click.option("--queue", "-q", metavar="NAME", help="Only this queue.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
def status(target: Target, watch: float | None, queue: str | None, *, as_json: bool) -> None:
    """Show what is queued, what runs and where, and what has ended in the last minutes."""
    if watch is None:
        found = _read(target, queue)
        if as_json:
            print_json(_json(found))
        else:
            out = console()
            out.print(view(found, out.width))
        return
    if as_json or not console().is_terminal:
        msg = "--watch is for a terminal, and not for --json"
        raise click.UsageError(msg)
    try:
        _watch(target, queue, watch)
    except KeyboardInterrupt:
        return


def _watch(target: Target, queue: str | None, seconds: float) -> None:
    out = console()
    found = _read(target, queue)
    lost: datetime | None = None
    problem = ""
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            shown: RenderableType = view(found, out.width, out.height)
            if lost is not None:
                since = f"{lost.astimezone():%H:%M:%S}"
                shown = Group(Text(f"Trying again since {since}: {problem}", "red"), shown)
            live.update(shown, refresh=True)
            sleep(seconds)
            try:
                found, lost = _read(target, queue), None
            except (SQLAlchemyError, ProletarianError) as error:
                lost, problem = lost or utcnow(), one_line(error)


def _read(target: Target, queue: str | None) -> Status:
    models = target.models
    with target.session() as session:
        stats = manage.stats(session, **models.of_jobs, running_job_model=models.running)
        running = manage.running(session, **models.of_running)
        pauses = paused(session, target)
        version = recorded_version(session.connection()) if models.job is Job else 0
    if queue is not None:
        pauses = {name: pause for name, pause in pauses.items() if name == queue}
        running = [run for run in running if run.queue == queue]
    return Status(str(target), stats, running, pauses, version or None, queue)


def _json(found: Status) -> dict[str, Any]:
    stats = found.stats
    return {
        "at": stats.at,
        "since": stats.since,
        "schema_version": found.version,
        "queues": [
            {
                "queue": name,
                **counts_json(counts),
                "complete": name not in stats.incomplete,
                "paused": found.paused.get(name),
            }
            for name, counts in found.queues
        ],
        "job_types": [
            {"queue": counts.queue, "job_type": counts.job_type, **counts_json(counts)}
            for counts in found.job_types
        ],
        "paused": [{"queue": name, **pause} for name, pause in found.paused.items()],
        "running": [vars(run) for run in found.running],
    }
