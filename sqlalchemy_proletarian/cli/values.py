"""The types of values on the command line: durations, times and JSON."""

from __future__ import annotations

import json
import re
import shlex
import sys
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn

import click

_UNITS: Final = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def duration(value: str) -> timedelta:
    """Parse a duration such as ``90s``, ``5m``, ``1h30m`` or ``2d``."""
    parts = _PART.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        msg = f"{value!r} is not a duration such as 90s, 5m, 1h30m or 2d"
        raise click.BadParameter(msg)
    try:
        return sum((float(number) * _UNITS[unit] for number, unit in parts), timedelta(0))
    except OverflowError as error:
        msg = f"{value!r} is too long"
        raise click.BadParameter(msg) from error


def time(value: str) -> datetime:
    """Parse a time in ISO 8601; without an offset from UTC, it is local time."""
    try:
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError) as error:
        msg = f"{value!r} is not a time such as 2026-01-31T18:00:00Z or '2026-01-31 18:00'"
        raise click.BadParameter(msg) from error


def json_document(value: str) -> Any:
    """Parse a JSON document, or the one on the standard input if the value is ``-``."""
    text = sys.stdin.read() if value == "-" else value
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        msg = f"not valid JSON: {error}"
        if not text.startswith(('"', "{", "[")):
            quoted = shlex.quote(json.dumps(text, ensure_ascii=False))
            msg += f"; a text needs quotation marks: {quoted}"
        raise click.BadParameter(msg) from error


def _no_json(constant: str) -> NoReturn:
    msg = f"JSON has no {constant}"
    raise ValueError(msg)
