"""The commands ``proletarian recurring …``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click
from sqlalchemy import select

from .. import manage
from ..clock import utcnow
from .output import TIME, ago, console, not_found, print_json, shown, span, table
from .target import Target, on_database


@click.group()
def recurring() -> None:
    """Show, pause, resume and run recurring jobs."""


@recurring.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
def list_(target: Target, *, as_json: bool) -> None:
    """List the recurring jobs and their next ticks."""
    model = target.models.require("recurring")
    with target.session() as session:
        rows = session.scalars(select(model).order_by(model.name)).all()
        if as_json:
            print_json({"recurring": [_json(row) for row in rows]})
            return
        now = utcnow()
        made = table("Name", "Type", "When", ("Next", TIME), ("Last", TIME), "Queue")
        for row in rows:
            following = "paused" if row.paused else ago(row.next_at, now) or "soon"
            made.add_row(
                shown(row.name),
                shown(row.job_type),
                shown(_when(row)),
                shown(following, "yellow" if row.paused else ""),
                shown(ago(row.last_at, now) or "never"),
                shown(row.queue),
            )
    console().print(made if rows else "There are no recurring jobs.")


@recurring.command()
@click.argument("name")
@on_database
def pause(target: Target, name: str) -> None:
    """Pause the recurring job NAME: its ticks pass without a job."""
    _pause(target, name, manage.pause_schedule, ("is paused", "was paused already"))


@recurring.command()
@click.argument("name")
@on_database
def resume(target: Target, name: str) -> None:
    """Let the ticks of the recurring job NAME enqueue jobs again."""
    _pause(target, name, manage.resume_schedule, ("is resumed", "was not paused"))


@recurring.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
def run(target: Target, name: str, *, as_json: bool) -> None:
    """Enqueue a job of the recurring job NAME now, and print its id; the ticks stay as they are."""
    model = target.models.require("recurring")
    with target.session() as session:
        job_id = manage.run_schedule(
            session, name, job_model=target.models.job, recurring_job_model=model
        )
    if job_id is None:
        not_found(f"there is no recurring job {name!r}")
    if as_json:
        print_json({"job_id": job_id})
    else:
        click.echo(job_id)


def _pause(target: Target, name: str, change: Any, texts: tuple[str, str]) -> None:
    model = target.models.require("recurring")
    with target.session() as session:
        done = change(session, name, recurring_job_model=model)
    if done is None:
        not_found(f"there is no recurring job {name!r}")
    click.echo(f"Recurring job {name} {texts[0] if done else texts[1]}.")


_KEYS = (
    "name",
    "job_type",
    "queue",
    "priority",
    "payload",
    "cron",
    "interval_seconds",
    "time_zone",
    "catch_up",
    "next_at",
    "last_at",
    "paused",
    "owner",
)


def _json(row: Any) -> dict[str, Any]:
    return {key: getattr(row, key) for key in _KEYS}


def _when(row: Any) -> str:
    if row.cron is None:
        return f"every {span(timedelta(seconds=row.interval_seconds or 0))}"
    zone = "" if row.time_zone == "UTC" else f" {row.time_zone}"
    return f"{row.cron}{zone}"
