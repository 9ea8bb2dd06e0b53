"""The command ``proletarian partitions``."""

from __future__ import annotations

import click

from .. import manage
from ..database.partitions import MONTHS_AHEAD
from .output import print_json
from .target import Target, on_database


@click.command()
@click.option(
    "--months",
    type=click.IntRange(1),
    default=MONTHS_AHEAD,
    show_default=True,
    help="How many months after this one get partitions.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
def partitions(target: Target, months: int, *, as_json: bool) -> None:
    """Make the next partitions of an archive that is partitioned by month."""
    try:
        made = manage.make_partitions(
            target.engine, months=months, archived_job_model=target.models.archived
        )
    except (ValueError, NotImplementedError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json({"made": made})
    else:
        click.echo("\n".join(f"Made {name}." for name in made) or "No partition was missing.")
