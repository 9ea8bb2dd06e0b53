"""The command ``proletarian demo``."""

from __future__ import annotations

import click
from rich.console import Console
from sqlalchemy import URL

from .app import URL_KEY, database_url


@click.command()
@click.option(
    "--url",
    type=database_url,
    metavar="URL",
    help="The database to use, as postgresql://user:password@host/database.",
)
@click.pass_context
def demo(ctx: click.Context, url: URL | None) -> None:
    """Run a demo of the queue on a temporary PostgreSQL server.

    With --url it runs on your database, in the schema proletarian_demo. The demo creates this
    schema and drops it at the end, also on Ctrl-C. It changes nothing else, and does not run if the
    schema already exists. The role needs the CREATE privilege on the database.
    """
    from ..demo.show import run_demo

    ctx.meta[URL_KEY] = url
    text = None if url is None else url.render_as_string(hide_password=False)
    run_demo(text, Console())
