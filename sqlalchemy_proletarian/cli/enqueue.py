"""The command ``proletarian enqueue``."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from typing import Any

import click

from ..models.job_classes import class_of
from ..producer import enqueue as one
from .output import NOT_DONE, print_json
from .target import Target, on_database
from .values import duration, json_document, time


@click.command()
@click.argument("job_type", metavar="TYPE")
@click.argument("payload", metavar="[JSON]", type=json_document, default="null")
@click.option("--queue", "-q", metavar="NAME", help="The queue; by default that of the model.")
@click.option("--priority", "-p", type=click.IntRange(0, 9), help="From 0 (first) to 9 (last).")
@click.option("--in", "process_in", type=duration, metavar="DURATION", help="In 5m, 2h, 1d.")
@click.option("--at", "process_at", type=time, metavar="TIME", help="At a time in ISO 8601.")
@click.option(
    "--unique-key", metavar="KEY", help="Enqueue nothing if the queue has a job with this key."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
def enqueue(
    target: Target,
    job_type: str,
    payload: Any,
    *,
    queue: str | None,
    priority: int | None,
    process_in: timedelta | None,
    process_at: datetime | None,
    unique_key: str | None,
    as_json: bool,
) -> None:
    """Enqueue a job of type TYPE with the payload JSON, and print its id.

    JSON is null by default, and - reads it from the standard input.
    """
    if process_in is not None and process_at is not None:
        msg = "give --in or --at, not both"
        raise click.UsageError(msg)
    options: dict[str, Any] = {
        "queue": queue,
        "priority": priority,
        "process_in": process_in,
        "process_at": process_at,
        "job_model": class_of(target.models.job, job_type),
    }
    try:
        with target.session() as session:
            if unique_key is None:
                job: Any = one.enqueue(session, job_type, payload, **options)
            else:
                from ..unique.enqueue import enqueue_unique

                found = enqueue_unique(session, job_type, payload, unique_key=unique_key, **options)
                job = found.job if found.created else None
            session.flush()
            job_id = None if job is None else job.job_id
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        print_json({"job_id": job_id})
    elif job_id is not None:
        click.echo(job_id)
    if job_id is None:
        click.echo(f"Not enqueued: the queue has a job with the key {unique_key!r}.", err=True)
        sys.exit(NOT_DONE)
