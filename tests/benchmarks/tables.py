"""The short tables: each value beside what it is compared with. They are printed, and are Markdown.

In brackets is how many times better this library is, so above 1 is better for it, in every unit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .catalogue import BATCH_SIZES, GROWTH, growth_name
from .contender import Contender, Role
from .contenders import CONNECTION, FLOOR, OURS, PLAIN
from .harness import Report
from .measures import Measurement, Metric
from .numbers import number, ratio, times

LEASED = "proletarian-lease"


@dataclass(frozen=True)
class Table:
    """A table as text; the first column has the names of the rows."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(report: Report) -> Iterator[Table]:
    """Yield the tables that have rows."""
    for make in (_beside, _enqueue, _batch_sizes, _lease, _steps, _growth):
        table = make(report)
        if table.rows:
            yield table


def write_markdown(report: Report, path: Path) -> None:
    """Write the tables, and then what they were measured with, as Markdown."""
    lines: list[str] = []
    for table in tables(report):
        lines += [f"**{table.title}**", "", _line(table.head)]
        lines += ["|---" + "|---:" * (len(table.head) - 1) + "|"]
        lines += [*map(_line, table.rows), ""]
    versions = report.facts.get("versions")
    facts = {k: v for k, v in report.facts.items() if k in {"cores", "python", "system"}}
    facts |= versions if isinstance(versions, dict) else {}
    lines += [", ".join(f"{key} {value}" for key, value in facts.items()) + ".", ""]
    lines += [f"**Warning:** {warning}.\n" for warning in report.warnings]
    path.write_text("\n".join(lines), encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def _get(report: Report, measurement: str, contender: str, key: str = "rate") -> float | None:
    cell = report.cells.get((measurement, contender))
    return cell.median(key) if cell else None


def _compared(metric: Metric, ours: float | None, theirs: float | None) -> str:
    """Return a value, and how many times better ours is."""
    if theirs is None:
        return ""
    better = times(ratio(metric, ours, theirs))
    return f"{number(theirs)} ({better})" if better else number(theirs)


def _beside(report: Report) -> Table:
    """Every metric of this library beside raw psycopg, a plain row and the best peer."""
    rows = []
    for measurement in report.measurements:
        if measurement.name.startswith(("steps", "backlog", "batch")):
            continue  # these have tables of their own
        for metric in measurement.metrics:
            # A row that only a variant of this library can run, such as jobs that wait.
            mine = next(
                (
                    c
                    for c in _ours(report)
                    if _get(report, measurement.name, c.name, metric.key) is not None
                ),
                None,
            )
            if mine is None:
                continue
            ours = _get(report, measurement.name, mine.name, metric.key)
            name = f"{metric.label}, {metric.unit}" if metric.unit else metric.label
            if mine.name != OURS:
                name += ", asyncio"
            others = [
                _compared(metric, ours, _get(report, measurement.name, other, metric.key))
                for other in (FLOOR, PLAIN)
            ]
            peer = _best_peer(report, measurement, metric, ours)
            rows.append([name, number(ours or 0.0), *others, peer])
    return Table(
        "This library, and how many times better it is than what stands beside it",
        ["", "this library", "raw psycopg", "plain row, session.add", "best peer"],
        rows,
    )


def _ours(report: Report) -> list[type[Contender]]:
    names = (OURS, "proletarian-asyncio")
    return [contender for contender in report.contenders if contender.name in names]


def _best_peer(report: Report, measurement: Measurement, metric: Metric, ours: float | None) -> str:
    found = [
        (value, contender)
        for contender in report.contenders
        if contender.role is Role.PEER
        and (value := _get(report, measurement.name, contender.name, metric.key)) is not None
    ]
    if not found:
        return ""
    best = max if metric.higher_is_better else min
    value, contender = best(found, key=lambda pair: pair[0])
    atomic = "" if measurement.name != "drain-write" or contender.atomic else ", not atomic"
    return f"{_compared(metric, ours, value)} {contender.label}{atomic}"


def _enqueue(report: Report) -> Table:
    """Enqueueing in a Session and on a Connection, beside plain rows."""
    contenders = (CONNECTION, PLAIN, FLOOR)
    rows = []
    for measurement in report.measurements:
        if measurement.name in {"enqueue", "enqueue-many"}:
            metric = measurement.metrics[0]
            ours = _get(report, measurement.name, OURS)
            others = [_get(report, measurement.name, name) for name in contenders]
            cells = [_compared(metric, ours, other) for other in others]
            rows.append([f"{metric.label}, {metric.unit}", number(ours or 0.0), *cells])
    return Table(
        "Enqueue in a Session; in brackets how many times faster it is than what stands beside it",
        ["", "enqueue(session)", "enqueue(connection)", "session.add(row)", "raw psycopg"],
        rows,
    )


def _batch_sizes(report: Report) -> Table:
    """No-op jobs per second, by batch size."""
    rows = []
    for contender in report.contenders:
        rates = [_get(report, f"batch-{n}", contender.name) for n in BATCH_SIZES]
        if any(rates):
            rows.append([contender.label, *("" if r is None else number(r) for r in rates)])
    return Table(
        "Drain, no-op, by batch size, jobs/s",
        ["batch_size", *(str(n) for n in BATCH_SIZES)],
        rows,
    )


def _lease(report: Report) -> Table:
    """Jobs per second with and without a lease."""
    metric = Metric("rate", "", "jobs/s", higher_is_better=True)
    rows = []
    for name, label in (("lease", "no-op"), ("lease-write", "each job inserts a row")):
        ours = _get(report, name, OURS)
        cells = [_compared(metric, ours, _get(report, name, c)) for c in (LEASED, FLOOR)]
        if ours is not None:
            rows.append([label, number(ours), *cells])
    return Table(
        "Drain with 20 threads, jobs/s; in brackets transaction mode compared with it",
        ["", "transaction mode", "lease mode", "raw psycopg"],
        rows,
    )


def _steps(report: Report) -> Table:
    """Microseconds, and shares, of the steps of one job."""
    measured = [m for m in report.measurements if m.name.startswith("steps")]
    columns = [
        (measurement, contender)
        for measurement in measured
        for contender in report.contenders
        if _get(report, measurement.name, contender.name, "total")
    ]
    if not columns:
        return Table("", [], [])
    modes = {FLOOR: "raw psycopg", OURS: "transaction", LEASED: "lease"}
    kinds = {"steps": "no-op", "steps-write": "inserts a row"}
    rows = []
    for metric in measured[0].metrics:
        cells = []
        for measurement, contender in columns:
            value = _get(report, measurement.name, contender.name, metric.key) or 0.0
            total = _get(report, measurement.name, contender.name, "total") or 1.0
            share = f" ({100 * value / total:.0f} %)" if metric.share_of else ""
            cells.append(f"{value:,.0f}{share}")
        rows.append([metric.label.partition(": ")[2], *cells])
    return Table(
        "The steps of one job in a transaction of its own (batch_size=1), µs",
        ["", *(f"{kinds[m.name]}, {modes[c.name]}" for m, c in columns)],
        rows,
    )


def _growth(report: Report) -> Table:
    """The speed with full tables."""
    names = {measurement.name for measurement in report.measurements}
    sizes = [n for n in report.sizes if any(growth_name(kind, n) in names for kind in GROWTH)]
    rows = []
    for kind, words in GROWTH.items():
        for contender in report.contenders:
            cells = []
            for n in sizes:
                name = growth_name(kind, n)
                rate = _get(report, name, contender.name)
                share = _get(report, name, contender.name, "share")
                cells.append("" if rate is None else f"{number(rate)} ({number(share or 0.0)})")
            if any(cells):
                rows.append([f"{words}, {contender.label}", *cells])
    return Table(
        "Drain with other rows in the tables, jobs/s; in brackets compared with the same database "
        "without them",
        ["", *(f"{n:,}" for n in sizes)],
        rows,
    )
