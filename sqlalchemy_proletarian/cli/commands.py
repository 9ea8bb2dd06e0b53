"""The commands of ``proletarian``: thin wrappers around functions of other modules.

An error that the user can act on is printed as one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from alembic.util import CommandError
from rich.console import Console
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from ..database.urls import sync_url
from ..errors import ProletarianError
from ..migrate import commands as migrate_
from ..migrations import LATEST_VERSION

_Command = TypeVar("_Command", bound=Callable[..., Any])

_HINTS = {
    "42P07": "the tables were created by other means: see 'proletarian migrate check'",
    "42P01": "some or all of the tables do not exist: see 'proletarian migrate check'",
    "42501": (
        "ask an administrator to GRANT CREATE on it to the role, or to create a schema for the "
        "role: CREATE SCHEMA … AUTHORIZATION …"
    ),
}
"""A hint at the probable cause, by SQLSTATE."""


class ReadableErrors(click.Group):
    """A group whose commands print one line and exit with 1 instead of raising an exception."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (SQLAlchemyError, CommandError, ProletarianError, ImportError) as error:
            raise click.ClickException(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, DBAPIError) and error.orig is not None:
        # The driver's message without the statement; it has one line for each host of the URL.
        line = " ".join(str(error.orig).split())
        hint = _HINTS.get(getattr(error.orig, "sqlstate", None) or "")
        return f"{line} ({hint})" if hint else line
    line = str(error).partition("\n")[0]
    if "pq wrapper" in line or "psycopg_binary" in line:
        return f"{line.rstrip('.')}: pip install 'sqlalchemy-proletarian[binary]'"
    return line


def database_url(value: str) -> URL:
    """Parse a database URL; replace an asynchronous driver by a synchronous one.

    :raises click.ClickException: if it is not a valid URL. The message does not contain the URL,
        which may include a password.
    """
    try:
        url = sync_url(value)
    except (ArgumentError, ValueError):
        msg = "this is not a database URL; expected: postgresql://user:password@host/database"
        raise click.ClickException(msg) from None
    if "@" in (url.host or ""):
        msg = "the database URL has more than one @: write an @ in the password as %40"
        raise click.ClickException(msg)
    return url


def url_option(*, required: bool = True) -> Callable[[_Command], _Command]:
    """Return the option ``--url``, which can also be set by an environment variable."""
    return click.option(
        "--url",
        type=database_url,
        metavar="URL",
        envvar="PROLETARIAN_DATABASE_URL",
        show_envvar=True,
        required=required,
        help="The database, as postgresql://user:password@host/database.",
    )


@click.group(cls=ReadableErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sqlalchemy-proletarian", prog_name="proletarian")
def proletarian() -> None:
    """A durable job queue that is nothing but mapped tables and your own Session."""  # noqa: D401 - the title of the help


@proletarian.group()
def migrate() -> None:
    """Create, change and check the job tables."""


@migrate.command()
@click.argument("version", type=click.IntRange(1, LATEST_VERSION), default=LATEST_VERSION)
@url_option()
def upgrade(url: URL, version: int) -> None:
    """Upgrade the tables to VERSION, by default the latest."""
    found = migrate_.upgrade(url, version)
    later = f", which is later than this release's {LATEST_VERSION}" * (found > LATEST_VERSION)
    click.echo(f"The job tables are at version {found}{later}.")


@migrate.command()
@click.argument("version", type=click.IntRange(0, LATEST_VERSION))
@url_option()
def downgrade(url: URL, version: int) -> None:
    """Downgrade the tables to VERSION.

    Version 0 drops them, with all their jobs.
    """
    migrate_.downgrade(url, version)
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
@url_option(required=False)
def sql(url: URL | None, version: int, from_version: int) -> None:
    """Print the SQL that upgrades the tables to VERSION, by default the latest.

    Does not connect to a database: the URL only selects the dialect, by default PostgreSQL.
    """
    if version == from_version:
        msg = f"the tables would stay at version {version}: --from-version must be another version"
        raise click.UsageError(msg)
    dialect = {} if url is None else {"drivername": url.drivername}
    click.echo(migrate_.sql(version, from_version=from_version, **dialect), nl=False)


@migrate.command()
@url_option()
def check(url: URL) -> None:
    """Compare the tables with the models of this release; exit with 1 if they differ."""
    result = migrate_.check(url)
    if result.differences:
        lines = "\n".join(f"  {line}" for line in result.differences)
        msg = f"the job tables differ from the models:\n{lines}\nTo fix this: {result.remedy}."
        raise click.ClickException(msg)
    click.echo(f"The job tables match version {LATEST_VERSION}.")


@proletarian.command()
@click.option(
    "--url",
    type=database_url,
    metavar="URL",
    help="The database to use, as postgresql://user:password@host/database.",
)
def demo(url: URL | None) -> None:
    """Run a demo of the queue on a temporary PostgreSQL server.

    With --url it runs on your database, in the schema proletarian_demo. The demo creates this
    schema and drops it at the end, also on Ctrl-C. It changes nothing else, and does not run if the
    schema already exists. The role needs the CREATE privilege on the database.
    """
    from ..demo.show import run_demo

    text = None if url is None else url.render_as_string(hide_password=False)
    run_demo(text, Console())


@proletarian.command()
@url_option(required=False)
@click.option(
    "--size", type=click.IntRange(100), default=20_000, help="Number of jobs of one drain."
)
@click.option(
    "--repetitions", type=click.IntRange(1), default=3, help="Repetitions; the median is reported."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False), help="Also write JSON to this file."
)
def bench(url: URL | None, size: int, repetitions: int, json_file: str | None) -> None:
    """Measure the throughput of the queue, compared with raw psycopg.

    It runs in the schema proletarian_bench, which it creates and drops. Without --url it starts a
    temporary PostgreSQL server.
    """
    from ..demo.bench import run_bench
    from ..demo.stage import open_server

    console = Console()
    with open_server(url, console) as server:
        run_bench(server, console, size=size, repetitions=repetitions, json_file=json_file)
