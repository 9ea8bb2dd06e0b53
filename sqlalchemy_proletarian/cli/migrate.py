"""The commands ``proletarian migrate …``, which print what :mod:`..migrate` did."""

from __future__ import annotations

from typing import Any, Final

import click
from sqlalchemy import URL

from ..migrate import commands
from ..migrations import LATEST_VERSION
from .app import url_option

_PARTITION: Final = click.option(
    "--partition-archive",
    type=click.Choice(["month"]),
    help="Create the archive partitioned by month; only PostgreSQL can do this.",
)


@click.group()
def migrate() -> None:
    """Create, change and check the job tables."""


@migrate.command()
@click.argument("version", type=click.IntRange(1, LATEST_VERSION), default=LATEST_VERSION)
@_PARTITION
@url_option()
def upgrade(url: URL, version: int, partition_archive: str | None) -> None:
    """Upgrade the tables to VERSION, by default the latest."""
    found = commands.upgrade(url, version, partition_archive=partition_archive)
    later = f", which is later than this release's {LATEST_VERSION}" * (found > LATEST_VERSION)
    click.echo(f"The job tables are at version {found}{later}.")


@migrate.command()
@click.argument("version", type=click.IntRange(0, LATEST_VERSION))
@url_option()
def downgrade(url: URL, version: int) -> None:
    """Downgrade the tables to VERSION.

    Version 0 drops them, with all their jobs.
    """
    commands.downgrade(url, version)
    click.echo(
        f"The job tables are at version {version}." if version else "The tables were dropped."
    )


@migrate.command()
@click.argument("version", type=click.IntRange(0, LATEST_VERSION), default=LATEST_VERSION)
@click.option(
    "--from-version",
    type=click.IntRange(0, LATEST_VERSION),
    default=0,
    show_default=True,
    help="The current version of the tables; if it is later than VERSION, print a downgrade.",
)
@_PARTITION
@url_option(required=False)
def sql(
    url: URL | None,
    version: int,
    from_version: int,
    partition_archive: str | None,
) -> None:
    """Print the SQL that upgrades the tables to VERSION, by default the latest.

    Does not connect to a database: the URL only selects the dialect, by default PostgreSQL.
    """
    if version == from_version:
        msg = f"the tables would stay at version {version}: --from-version must be another version"
        raise click.UsageError(msg)
    dialect: dict[str, Any] = {} if url is None else {"drivername": url.drivername}
    script = commands.sql(
        version, from_version=from_version, partition_archive=partition_archive, **dialect
    )
    click.echo(script, nl=False)


@migrate.command()
@url_option()
def check(url: URL) -> None:
    """Compare the tables with the models of this release; exit with 1 if they differ."""
    result = commands.check(url)
    if result.differences:
        lines = "\n".join(f"  {line}" for line in result.differences)
        msg = f"the job tables differ from the models:\n{lines}\nTo fix this: {result.remedy}."
        raise click.ClickException(msg)
    click.echo(f"The job tables match version {LATEST_VERSION}.")
