"""``proletarian bench``: measures the queue on your database, compared with raw psycopg.

It runs in its own schema, which it creates and drops. The benchmarks in the repository compare this
queue with other queues.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import URL, create_engine
from sqlalchemy.schema import CreateSchema, DropSchema

from .bench_measures import Bench
from .bench_tables import SCHEMA, Base


def run_bench(
    url: URL, console: Console, *, size: int = 20_000, repetitions: int = 3, json_file: str | None
) -> None:
    """Run the measurements and print a table.

    :param size: number of jobs of one drain.
    :param repetitions: how often each measurement is repeated; the median is reported.
    :param json_file: a file for the results as JSON; None to write no file.

    .. versionadded:: 0.1
    """
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(CreateSchema(SCHEMA))
        Base.metadata.create_all(connection)
        version = connection.exec_driver_sql("SHOW server_version").scalar_one()
    try:
        found = _measure(Bench(engine, size), repetitions, console)
    finally:
        with engine.begin() as connection:
            connection.execute(DropSchema(SCHEMA, cascade=True))
        engine.dispose()
    console.print(_table(found, version))
    if json_file:
        facts = {"postgresql": version, "python": platform.python_version(), "rows": found}
        Path(json_file).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _measure(bench: Bench, repetitions: int, console: Console) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with console.status("Measuring") as status:
        for name, ours, floor in bench.rows():
            status.update(f"Measuring: {name}")
            pairs = [(ours(), floor() if floor else None) for _ in range(repetitions)]
            raw = [pair[1] for pair in pairs if pair[1] is not None]
            found.append(
                {
                    "name": name,
                    "unit": "jobs/s",
                    "value": median(pair[0] for pair in pairs),
                    "floor": median(raw) if raw else None,
                }
            )
        status.update("Measuring: latency")
        middle, late = bench.latency()
    for name, value in (("p50", middle), ("p99", late)):
        row = {"name": f"commit → handler, {name}", "unit": "ms", "value": value}
        found.append(row | {"floor": None})
    return found


def _table(found: list[dict[str, Any]], version: str) -> Table:
    table = Table(title=f"PostgreSQL {version}, Python {platform.python_version()}")
    table.add_column("")
    for name in ("the queue", "raw psycopg", "ratio"):
        table.add_column(name, justify="right")
    for row in found:
        value, floor = row["value"], row["floor"]
        digits = 1 if row["unit"] == "ms" else 0
        table.add_row(
            row["name"],
            f"{value:,.{digits}f} {row['unit']}",
            f"{floor:,.0f}" if floor else "",
            f"{value / floor:.2f}" if floor else "",
        )
    return table
