"""Prints the report as a table and writes it as JSON."""

# ruff: noqa: T201 - a command prints
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .contender import Role
from .contenders import FLOOR, OURS
from .harness import Report
from .measures import Measurement, Metric
from .numbers import number, ratio, times
from .tables import Table, tables

HEADINGS = "measurement", "contender", "value", "unit", "min … max", "vs. raw", "ours vs. it"
TITLE = "Medians; a ratio above 1 means that the first one is better"


def rows(report: Report) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table."""
    for measurement in report.measurements:
        for metric in measurement.metrics:
            yield from _metric_rows(report, measurement, metric)


def notes(report: Report) -> Iterator[str]:
    """Yield the settings of the contenders and the reasons of missing values."""
    for contender in report.contenders:
        yield f"{contender.label}: {contender.settings}"
    for name, reason in report.absent.items():
        yield f"{name}: {reason}"
    for (measurement, name), cell in report.cells.items():
        if cell.reason and ":" in cell.reason:
            yield f"{name}, {measurement}: {cell.reason}"


def _metric_rows(
    report: Report, measurement: Measurement, metric: Metric
) -> Iterator[tuple[str, ...]]:
    heading = metric.label
    values = _values(report, measurement, metric)
    for contender in report.contenders:
        cell = report.cells.get((measurement.name, contender.name))
        if cell is None:
            continue
        value = values.get(contender.name)
        if value is None and metric is not measurement.metrics[0]:
            continue
        text = number(value) if value is not None else (cell.reason or "").partition(":")[0]
        whole = cell.median(metric.share_of) if metric.share_of else None
        if value is not None and whole:
            text += f" ({100 * value / whole:.0f} %)"
        label = contender.label
        if measurement.name == "drain-write" and metric.key == "rate" and not contender.atomic:
            label += " (not atomic)"
        ours_ratio = "" if contender.name == OURS else times(ratio(metric, values.get(OURS), value))
        floor_ratio = (
            "" if contender.role is Role.FLOOR else times(ratio(metric, value, values.get(FLOOR)))
        )
        yield (
            heading,
            label,
            text,
            metric.unit,
            spread(cell.values.get(metric.key)),
            floor_ratio,
            ours_ratio,
        )
        heading = ""


def _values(report: Report, measurement: Measurement, metric: Metric) -> dict[str, float]:
    medians = {
        contender.name: cell.median(metric.key)
        for contender in report.contenders
        if (cell := report.cells.get((measurement.name, contender.name)))
    }
    return {name: value for name, value in medians.items() if value is not None}


def spread(values: list[float] | None) -> str:
    """Format the minimum and maximum of the repetitions; empty if there is only one."""
    if not values or len(values) < 2:
        return ""
    return f"{number(min(values))} … {number(max(values))}"


def show(report: Report) -> None:
    """Print the tables, with rich if it is installed and else as plain text."""
    _show_table(Table(TITLE, HEADINGS, list(rows(report))))
    for table in tables(report):
        print()
        _show_table(table)
    for warning in report.warnings:
        print(f"WARNING: {warning}")
    for note in notes(report):
        print(note)


def _show_table(table: Table) -> None:
    try:
        import rich.table
        from rich.console import Console
    except ImportError:
        _show_plain(table)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    shown = rich.table.Table(title=table.title)
    for i, heading in enumerate(table.head):
        left = i == 0 or heading in {"contender", "unit"}
        shown.add_column(heading, justify="left" if left else "right", overflow="fold")
    for line in table.rows:
        if table.head is HEADINGS and line[0]:
            shown.add_section()
        shown.add_row(*line, style="bold" if line[1] == "sqlalchemy_proletarian" else None)
    console.print(shown)


def _show_plain(table: Table) -> None:
    lines = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    print(table.title)
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


def write_json(report: Report, path: Path) -> None:
    """Write all facts, settings, values of repetitions, medians and ratios as JSON."""
    document = {
        "machine": report.facts,
        "warnings": report.warnings,
        "contenders": {
            contender.name: {
                "label": contender.label,
                "role": contender.role,
                "settings": contender.settings,
                "atomic": contender.atomic,
            }
            for contender in report.contenders
        },
        "absent": report.absent,
        "measurements": [
            {
                "name": measurement.name,
                "metrics": [_json_metric(report, measurement, m) for m in measurement.metrics],
                "reasons": {
                    contender.name: cell.reason
                    for contender in report.contenders
                    if (cell := report.cells.get((measurement.name, contender.name)))
                    and cell.reason
                },
            }
            for measurement in report.measurements
        ],
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _json_metric(report: Report, measurement: Measurement, metric: Metric) -> dict[str, object]:
    values = _values(report, measurement, metric)
    return {
        "key": metric.key,
        "label": metric.label,
        "unit": metric.unit,
        "share_of": metric.share_of,
        "higher_is_better": metric.higher_is_better,
        "medians": values,
        "times_floor": {n: ratio(metric, v, values.get(FLOOR)) for n, v in values.items()},
        "ours_times": {n: ratio(metric, values.get(OURS), v) for n, v in values.items()},
        "repetitions": {
            name: report.cells[measurement.name, name].values[metric.key] for name in values
        },
    }
