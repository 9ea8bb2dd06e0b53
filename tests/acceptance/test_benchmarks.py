"""The programs of tests/benchmarks run, with a few jobs each; how fast they are is not tested."""

# ruff: noqa: RUF001 - the multiplication sign is intended

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.benchmarks.catalogue import measurements
from tests.benchmarks.contender import Role
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.harness import Harness, Report
from tests.benchmarks.measures import Scale
from tests.benchmarks.report import rows
from tests.benchmarks.tables import tables, write_markdown

from .programs import plain, run

TINY = Scale(
    seconds=20.0,  # how long a run may take at most; its size is first_guess
    enqueue_each=5,
    enqueue_many=50,
    latency=2,
    scheduled=2,
    idle=0.1,
    first_guess=60,
    steps=5,
    backlog_drain=50,
    backlogs=(1_000,),
)
MEASUREMENTS = {measurement.name: measurement for measurement in measurements(TINY)}
TABLES = ["enqueue", "batch-10", "lease", "steps", "backlog-due-1k"]
"""One measurement of each table."""
OTHERS = [
    "enqueue-many",
    "drain-processes",
    "lease-write",
    "waiting",
    "steps-write",
    "latency",
    "lateness",
    "idle",
    "backlog-archived-1k",
]
"""The other programs. What is not measured here is one of them with other settings."""
OWN = [contender for contender in CONTENDERS if contender.role is not Role.PEER]


def measured(url: URL, directory: Path, names: list[str]) -> Report:
    """Run measurements without peers, each of which must return all its values."""
    harness = Harness(url, TINY, directory / "marks", lambda line: None)
    report = harness.run(OWN, [MEASUREMENTS[name] for name in names], 1)
    assert report.absent == {}
    for measurement in report.measurements:
        for contender in filter(measurement.includes, OWN):
            cell = report.cells[measurement.name, contender.name]
            assert cell.reason is None, (measurement.name, contender.name)
            assert set(cell.values) >= {metric.key for metric in measurement.metrics}
    return report


@pytest.mark.parametrize("name", OTHERS)
def test_a_measurement_has_all_its_values(name: str, server_url: URL, tmp_path: Path):
    """A measurement returns each of its values, for the library, its variants and the floor."""
    measured(server_url, tmp_path, [name])


def test_the_tables_show_what_stands_beside_what(server_url: URL, tmp_path: Path):
    """The tables name the floor, the plain row, the lease, and the share of each step."""
    report = measured(server_url, tmp_path, TABLES)
    steps = [row for row in rows(report) if row[3] == "µs"]
    assert all(row[2].endswith("%)") for row in steps if "all" not in row[0] and row[0])

    beside, enqueue, batches, lease, step_table, growth = tables(report)
    assert list(beside.head)[1:4] == ["this library", "raw psycopg", "plain row, session.add"]
    assert all("×" in cell for cell in beside.rows[0][2:4])
    assert len(enqueue.rows) == 1
    assert all("×" in cell for cell in enqueue.rows[0][2:])
    assert [row[0] for row in batches.rows] == ["raw psycopg", "sqlalchemy_proletarian"]
    assert "×" in lease.rows[0][2]
    assert [row[0] for row in step_table.rows][:3] == ["claim", "marker", "handler"]
    assert growth.head[1] == "1,000"

    file = tmp_path / "tables.md"
    write_markdown(report, file)
    lines = file.read_text().splitlines()
    assert sum(line.startswith("|---") for line in lines) == 6
    head = lines.index(next(line for line in lines if "raw psycopg" in line))
    assert lines[head].count("|") == lines[head + 1].count("|") == lines[head + 2].count("|")


def test_the_command_prints_and_writes_its_report(empty_database: URL, tmp_path: Path):
    """The command uses the given server and leaves no database; it writes JSON and Markdown."""
    data, page = tmp_path / "report.json", tmp_path / "report.md"
    command = [sys.executable, "-m", "tests.benchmarks", "--url", plain(empty_database)]
    command += ["--quick", "--no-peers", "--only", "enqueue"]
    result = run([*command, "--json", str(data), "--markdown", str(page)])
    assert result.returncode == 0, result.stderr
    assert "enqueue, one per commit" in result.stdout
    (measurement,) = json.loads(data.read_text())["measurements"]
    medians = measurement["metrics"][0]["medians"]
    assert set(medians) >= {"raw", "proletarian", "proletarian-connection", "session-add"}
    assert "| enqueue, one per commit, jobs/s |" in page.read_text()
