"""The command ``proletarian bench``."""

from __future__ import annotations

import click
from rich.console import Console
from sqlalchemy import URL

from .app import url_option


@click.command()
@url_option(required=False, configured=False)
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
