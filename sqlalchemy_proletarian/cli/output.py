"""Output for people and for scripts: tables, relative times, JSON, and questions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final, NoReturn, Self

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

NOT_FOUND: Final = 3
"""The exit code if there is no such job or recurring job."""
NOT_DONE: Final = 4
"""The exit code if the state of a job does not permit what was asked."""

_WIDE: Final = 10_000
"""The width where output is no terminal, so that nothing is cut off."""

STYLES: Final = {
    "due": "cyan",
    "running": "bold cyan",
    "waiting": "yellow",
    "scheduled": "dim",
    "retrying": "yellow",
    "refused": "bold red",
    "success": "green",
    "failure": "red",
    "cancelled": "dim",
}
"""The styles of statuses."""


def console(*, stderr: bool = False) -> Console:
    """Return the console for the output of a command."""
    stream: Any = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):  # a locale without these characters is no reason to fail
        stream.reconfigure(errors="backslashreplace")
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _WIDE
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def table(*columns: str | tuple[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """Return an empty table. If it is too wide, its longest texts are cut, and never a number.

    :param columns: the headers, those of numbers with the options of a rich column.
    """
    made = _Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
        title_style="bold",
        show_edge=False,
    )
    for column in columns:
        header, options = (column, {}) if isinstance(column, str) else column
        made.add_column(header, **{"overflow": "ellipsis", **options})
    return made


class _Table(Table):
    """A table whose rows have one line each, also in columns that may become narrower."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row."""
        for cell in cells:
            if isinstance(cell, Text):
                cell.no_wrap, cell.overflow = True, "ellipsis"
        super().add_row(*cells, **options)


NUMBER: Final[Mapping[str, Any]] = {"justify": "right", "no_wrap": True}
ID: Final[Mapping[str, Any]] = {"min_width": 36, "no_wrap": True}
TIME: Final[Mapping[str, Any]] = {"min_width": 9, "no_wrap": True}
"""The options of columns."""


def shown(value: Any, style: str = "") -> Text:
    """Return a value as text in which control characters have no effect."""
    return Text(safe(str(value)), style)


def safe(text: str) -> str:
    """Return a text with its control characters escaped, except line breaks and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def ago(time: datetime | None, now: datetime) -> str:
    """Return a time relative to now: ``3 min ago`` or ``in 2 h``."""
    if time is None:
        return ""
    text = span(abs(now - time))
    if text == "0 s":
        return "now"
    return f"{text} ago" if time <= now else f"in {text}"


def span(duration: timedelta) -> str:
    """Return a duration in its largest unit: ``3 min``."""
    seconds = int(duration.total_seconds())
    for unit, length, most in (("s", 1, 120), ("min", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{seconds // length} {unit}"
    return f"{seconds // 86400} d"


def at(time: datetime | None) -> str:
    """Return a time as local time with its offset from UTC."""
    if time is None:
        return ""
    try:
        return time.astimezone().isoformat(" ", "seconds")
    except OverflowError:  # at the end of the calendar
        return time.isoformat(" ", "seconds")


def print_json(document: Any) -> None:
    """Print one JSON document: times are in UTC, durations in seconds."""
    click.echo(json.dumps(_jsonable(document), indent=2))


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [_jsonable(one) for one in value]
    return str(value)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone.

    :param yes: whether the option ``--yes`` was given.
    :raises click.UsageError: if nobody can answer.
    :raises click.Abort: if the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        msg = "the standard input is no terminal, so nobody can answer: add --yes"
        raise click.UsageError(msg)
    click.confirm(question, abort=True, err=True)


def not_found(message: str) -> NoReturn:
    """End the command, because there is no such thing."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(NOT_FOUND)


def progress(label: str, total: int | None) -> Progress:
    """Return a progress bar on the standard error output, which a terminal shows."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    bar.add_task(label, total=total)
    return bar


class Tracker:
    """Shows progress if something takes longer than a second."""

    def __init__(self, label: str, total: int | None) -> None:
        self._bar = progress(label, total)
        self._begun = monotonic()
        self._is_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def reach(self, completed: int) -> None:
        """Show how much is done."""
        if not self._is_shown and monotonic() - self._begun > 1:
            self._is_shown = True
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=completed)


def in_parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield the items in parts of a size."""
    for n in range(0, len(items), size):
        yield items[n : n + size]
