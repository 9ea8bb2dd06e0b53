"""The commands of ``proletarian``: thin shells around functions that live elsewhere.

Whatever a command raises for a reason that its user can act on is printed as one line.
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
    "42P01": "the tables are not there, or not all of them: see 'proletarian migrate check'",
    "42501": (
        "let an administrator GRANT CREATE on it to the role, or make the role a schema: "
        "CREATE SCHEMA … AUTHORIZATION …"
    ),
}
"""SQLSTATE to what may be behind it."""


class ReadableErrors(click.Group):
    """A group whose commands end with one line and exit code 1 where they would raise."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (SQLAlchemyError, CommandError, ProletarianError, ImportError) as error:
            raise click.ClickException(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, DBAPIError) and error.orig is not None:
        # What the driver said, without the statement; with several hosts it says one line for each.
        line = " ".join(str(error.orig).split())
        hint = _HINTS.get(getattr(error.orig, "sqlstate", None) or "")
        return f"{line} ({hint})" if hint else line
    line = str(error).partition("\n")[0]
    if "pq wrapper" in line or "psycopg_binary" in line:
        return f"{line.rstrip('.')}: pip install 'sqlalchemy-proletarian[binary]'"
    return line


def database_url(value: str) -> URL:
    """Parse a URL, made to use a driver that serves us where it names another.

    :raises click.ClickException: if it cannot be one, without printing it: it may hold a password.
    """
    try:
        url = sync_url(value)
    except (ArgumentError, ValueError):
        msg = "this is no database URL: it looks like postgresql://user:password@host/database"
        raise click.ClickException(msg) from None
    if "@" in (url.host or ""):
        msg = "the database URL has two @: write one that belongs to the password as %40"
        raise click.ClickException(msg)
    return url


def url_option(*, required: bool = True) -> Callable[[_Command], _Command]:
    """Return the option ``--url``, which may also stand in the environment."""
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
    """Bring the tables to VERSION, by default the latest."""
    found = migrate_.upgrade(url, version)
    later = f", which is later than this release's {LATEST_VERSION}" * (found > LATEST_VERSION)
    click.echo(f"The job tables are at version {found}{later}.")


@migrate.command()
@click.argument("version", type=click.IntRange(0, LATEST_VERSION))
@url_option()
def downgrade(url: URL, version: int) -> None:
    """Take the tables back to VERSION.

    Version 0 drops them, with the jobs in them.
    """
    migrate_.downgrade(url, version)
    click.echo(f"The job tables are at version {version}." if version else "The tables are gone.")


@migrate.command()
@click.argument("version", type=click.IntRange(0, LATEST_VERSION), default=LATEST_VERSION)
@click.option(
    "--from-version",
    type=click.IntRange(0, LATEST_VERSION),
    default=0,
    show_default=True,
    help="The version the tables have; when it is the later one, print the downgrade.",
)
@url_option(required=False)
def sql(url: URL | None, version: int, from_version: int) -> None:
    """Print the SQL that brings the tables to VERSION, by default the latest.

    Connects to nothing: a URL only says which dialect to write, by default PostgreSQL.
    """
    if version == from_version:
        msg = f"nothing leads from version {from_version} to version {version}"
        raise click.UsageError(msg)
    dialect = {} if url is None else {"drivername": url.drivername}
    click.echo(migrate_.sql(version, from_version=from_version, **dialect), nl=False)


@migrate.command()
@url_option()
def check(url: URL) -> None:
    """Compare the tables with what this release needs; exit with 1 if they differ."""
    result = migrate_.check(url)
    if result.differences:
        lines = "\n".join(f"  {line}" for line in result.differences)
        msg = f"the job tables are not as they should be:\n{lines}\nWhat to do: {result.remedy}."
        raise click.ClickException(msg)
    click.echo(f"The job tables are as version {LATEST_VERSION} makes them.")


@proletarian.command()
@click.option(
    "--url",
    type=database_url,
    metavar="URL",
    help="Run on this database, as postgresql://user:password@host/database.",
)
def demo(url: URL | None) -> None:
    """Show the queue at work, on a PostgreSQL that the demo starts and removes.

    With --url it runs on a database of yours, in a schema of its own: proletarian_demo, which it
    creates and drops again, also on Ctrl-C. It touches nothing else, and refuses to run where that
    schema exists. The role needs the privilege CREATE on the database.
    """
    from ..demo.show import run_demo

    text = None if url is None else url.render_as_string(hide_password=False)
    run_demo(text, Console())


@proletarian.command()
@url_option(required=False)
@click.option("--size", type=click.IntRange(100), default=20_000, help="Jobs of one drain.")
@click.option("--repetitions", type=click.IntRange(1), default=3, help="The median counts.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write JSON there too.")
def bench(url: URL | None, size: int, repetitions: int, json_file: str | None) -> None:
    """Measure the queue beside raw psycopg.

    It works in a schema of its own, proletarian_bench, which it creates and drops again. Without
    --url it starts a PostgreSQL of its own.
    """
    from ..demo.bench import run_bench
    from ..demo.stage import open_server

    console = Console()
    with open_server(url, console) as server:
        run_bench(server, console, size=size, repetitions=repetitions, json_file=json_file)
