"""The types of the command's options: durations, sizes and queues, as people write them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, Final

import click

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)")

_WEIGHT: Final = re.compile(r"[1-9][0-9]{0,8}")

_SIZES: Final = {"kb": 1000, "mb": 1000**2, "gb": 1000**3}
_SIZES_OF_1024: Final = {"kib": 1024, "mib": 1024**2, "gib": 1024**3, "k": 1024, "m": 1024**2}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?b?)", re.IGNORECASE)


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since 8.3
    """A duration with its unit, such as ``30s``, ``500ms`` or ``1m30s``.

    :param zero: whether it may be zero.
    """

    name = "duration"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Return the timedelta."""
        if isinstance(value, timedelta):
            return value
        text = str(value).replace(" ", "")
        parts = _PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            self.fail(f"{value!r} is not a duration: write 30s, 500ms, 5m or 1h", param, ctx)
        try:
            found = timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)
        if not (found or self._zero):
            self.fail(f"{value!r} must be longer than zero", param, ctx)
        return found


class Size(click.ParamType):  # type: ignore[type-arg]  # generic since 8.3
    """An amount of memory in bytes, such as ``300MB`` or ``1GiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size: write 300MB or 1GiB", param, ctx)
        unit = match[2].lower()
        factor = (_SIZES | _SIZES_OF_1024 | {"g": 1024**3})[unit]
        found = int(float(match[1]) * factor)
        if not found:
            self.fail(f"{value!r} must be more than zero", param, ctx)
        return found


class Queues(click.ParamType):  # type: ignore[type-arg]  # generic since 8.3
    """Names of queues, separated by commas, each with its weight or none of them.

    In ``pyproject.toml`` they may also be a list of names, or a table of weights.
    """

    name = "queues"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...] | dict[str, int]:
        """Return the names, or the weights by name."""
        if isinstance(value, dict):
            parts = [f"{name}={weight}" for name, weight in value.items()]
        else:
            parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            self.fail(f"{value!r} is not a list of names of queues", param, ctx)
        split = [[text.strip() for text in part.partition("=")] for part in parts]
        if not split or not all(name for name, _, _ in split):
            self.fail(f"{value!r} has an empty name: write critical,default", param, ctx)
        if not any(equals for _, equals, _ in split):
            return tuple(name for name, _, _ in split)
        weights = {name: int(weight) for name, _, weight in split if _WEIGHT.fullmatch(weight)}
        if len(weights) < len(split):
            self.fail(
                f"{value!r}: every queue needs a weight of 1 or more, and a name of its own, as in "
                f"critical=5,bulk=1",
                param,
                ctx,
            )
        return weights


def duration_text(duration: timedelta | float) -> str:
    """Return a duration in seconds, or as a timedelta, as people write it."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length and not seconds % length:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def size_text(size: int) -> str:
    """Return a number of bytes in megabytes."""
    return f"{size / 1000**2:.0f} MB"
