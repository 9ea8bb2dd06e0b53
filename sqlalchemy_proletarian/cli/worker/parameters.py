"""The types of the command's options: durations, sizes and queues, as people write them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, Final

import click

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)")

_WEIGHT: Final = re.compile(r"[1-9][0-9]{0,8}")

_SIZES: Final = {
    unit + ending: base**power
    for power, unit in enumerate("kmg", start=1)
    for ending, base in (("b", 1000), ("ib", 1024), ("i", 1024), ("", 1024))
}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?b?)", re.IGNORECASE)


def duration(value: Any) -> timedelta:
    """Return a duration with its unit, such as ``30s``, ``500ms`` or ``1m30s``.

    :raises click.BadParameter: if it is not written like this.
    """
    text = str(value).replace(" ", "")
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        msg = f"{value!r} is not a duration: write 30s, 500ms, 5m or 1h"
        raise click.BadParameter(msg)
    try:
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        msg = f"{value!r} is too long"
        raise click.BadParameter(msg) from None


def positive_duration(value: Any) -> timedelta:
    """Return a duration that is longer than zero.

    :raises click.BadParameter: if it is not.
    """
    found = duration(value)
    if not found:
        msg = f"{value!r} must be longer than zero"
        raise click.BadParameter(msg)
    return found


def size(value: Any) -> int:
    """Return an amount of memory in bytes, given as ``300MB`` or ``1GiB``.

    :raises click.BadParameter: if it is not written like this, or is zero.
    """
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        msg = f"{value!r} is not a size: write 300MB or 1GiB"
        raise click.BadParameter(msg)
    found = int(float(match[1]) * _SIZES[match[2].lower()])
    if not found:
        msg = f"{value!r} must be more than zero"
        raise click.BadParameter(msg)
    return found


def queues(value: Any) -> tuple[str, ...] | dict[str, int]:
    """Return names of queues, separated by commas, each with its weight or none of them.

    In ``pyproject.toml`` they may also be a list of names, or a table of weights.

    :raises click.BadParameter: if they are not written like this.
    """
    if isinstance(value, dict):
        parts: Any = [f"{name}={weight}" for name, weight in value.items()]
    else:
        parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        msg = f"{value!r} is not a list of names of queues"
        raise click.BadParameter(msg)
    split = [[text.strip() for text in part.partition("=")] for part in parts]
    if not split or not all(name for name, _, _ in split):
        msg = f"{value!r} has an empty name: write critical,default"
        raise click.BadParameter(msg)
    if not any(equals for _, equals, _ in split):
        return tuple(name for name, _, _ in split)
    weights = {name: int(weight) for name, _, weight in split if _WEIGHT.fullmatch(weight)}
    if len(weights) < len(split):
        msg = (
            f"{value!r}: every queue needs a weight of 1 or more, and a name of its own, as in "
            f"critical=5,bulk=1"
        )
        raise click.BadParameter(msg)
    return weights


def duration_text(given: timedelta | float) -> str:
    """Return a duration in seconds, or as a timedelta, as people write it."""
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length and not seconds % length:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def size_text(given: int) -> str:
    """Return a number of bytes in megabytes."""
    return f"{given / 1000**2:.0f} MB"
