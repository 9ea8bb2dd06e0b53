"""How ``proletarian status`` looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..manage import JobCounts, Running, Stats
from .output import ID, NUMBER, TIME, ago, shown, span, table
from .queues import pause_text

_WIDE: Final = 100
"""The width of a terminal from which on running jobs have their queue."""

_MOST_RUNNING: Final = 20
"""How many running jobs are shown at most, on a screen of unlimited height."""

_HEADINGS: Final = 12
"""How many lines the screen has beside the rows of the tables."""


@dataclass(frozen=True)
class Status:
    """What the command shows."""

    database: str
    stats: Stats
    running: Sequence[Running]
    paused: Mapping[str, dict[str, Any]]
    version: int | None
    queue: str | None
    """The only queue to show; None for all."""

    @property
    def queues(self) -> list[tuple[str, JobCounts]]:
        """The numbers of the queues to show."""
        return [
            (name, counts)
            for name, counts in self.stats.queues.items()
            if self.queue in (None, name)
        ]

    @property
    def job_types(self) -> list[JobCounts]:
        """The numbers of the job types to show."""
        return [c for c in self.stats.job_types if self.queue in (None, c.queue)]


def view(found: Status, width: int, height: int | None = None) -> RenderableType:
    """Return what is printed.

    :param height: the number of lines of the screen; None if there is no limit.
    """
    stats = found.stats
    version = "" if found.version is None else f"  schema version {found.version}"
    minutes = round((stats.at - stats.since).total_seconds() / 60)
    window = f"  last {minutes} min" if minutes else ""
    head = Text.assemble(
        (found.database, "bold"), (f"{version}  {stats.at.astimezone():%H:%M:%S}{window}", "dim")
    )
    parts: list[RenderableType] = [head, Text()]
    if found.job_types:
        parts.append(_queues(found, width))
    else:
        parts.append(Text("No jobs, and none ended in the last minutes."))
    if stats.incomplete:
        parts.append(Text("+ the queue has more jobs than were counted", "dim"))
    if found.paused:
        parts += [Text("\nPaused queues", "bold"), *_pauses(found)]
    if found.running:
        rows = len(found.job_types) + len(found.queues) + len(found.paused)
        most = _MOST_RUNNING if height is None else max(height - rows - _HEADINGS, 3)
        parts += [Text("\nRunning", "bold"), _running(found, width, most)]
        if len(found.running) > most:
            parts.append(Text(f"… and {len(found.running) - most:,} more", "dim"))
    return Group(*parts)


def _queues(found: Status, width: int) -> Table:
    rare = [
        name
        for name in ("waiting", "refused", "cancelled")
        if any(getattr(c, name) for c in found.job_types)
    ]
    made = table(
        "Queue",
        "Type",
        *((title, NUMBER) for title in ("Due", "Oldest", "Run", "Later", "Retry")),
        *((name.capitalize(), NUMBER) for name in rare),
        *((title, NUMBER) for title in ("OK", "Failed", "Jobs/s")),
    )
    for name, counts in found.queues:
        types = [c for c in found.job_types if c.queue == name]
        paused = " paused" if name in found.paused and width >= _WIDE else ""
        label = Text.assemble(shown(name, "bold"), (paused, "yellow"))
        if len(types) > 1:
            made.add_row(label, "", *_cells(counts, found, rare), style="bold")
            label = Text()
        for one in types:
            made.add_row(label, shown(one.job_type or ""), *_cells(one, found, rare))
    return made


def _cells(counts: JobCounts, found: Status, rare: Sequence[str]) -> list[Text]:
    more = "+" if counts.queue in found.stats.incomplete else ""

    def number(value: int, style: str = "", suffix: str = "") -> Text:
        return Text(f"{value:,}{suffix}", style) if value else Text("-", "dim")

    return [
        number(counts.due, "cyan", more),
        Text("" if counts.oldest_due is None else span(counts.oldest_due)),
        number(counts.running),
        number(counts.scheduled, "", more),
        number(counts.retrying, "yellow", more),
        *(number(getattr(counts, name), "red" if name == "refused" else "") for name in rare),
        number(counts.succeeded, "green"),
        number(counts.failed, "red"),
        Text(f"{counts.throughput:.1f}"),
    ]


def _pauses(found: Status) -> list[Text]:
    return [
        Text.assemble(shown(name), "  ", shown(pause_text(pause), "yellow"))
        for name, pause in found.paused.items()
    ]


def _running(found: Status, width: int, most: int) -> Table:
    wide = width >= _WIDE
    made = table(
        ("Job", ID),
        "Type",
        *(["Queue"] if wide else []),
        ("Att.", NUMBER),
        ("Since", TIME),
        "Worker",
    )
    for run in found.running[:most]:
        worker = shown(run.worker or "unknown", "" if run.worker else "dim")
        if run.alive is False:
            worker = Text.assemble(("crashed ", "bold red"), worker)
        made.add_row(
            shown(run.job_id),
            shown(run.job_type),
            *([shown(run.queue)] if wide else []),
            shown(run.attempt),
            shown(ago(run.started_at, found.stats.at)),
            worker,
        )
    return made
