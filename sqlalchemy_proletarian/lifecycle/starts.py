"""The recorded starts of a job type, and how many more its rate allows.

The record is exact for up to 150 entries. Of more, those that are close together are merged, and
count as if all of them were the latest of them. So a job may start a little later than its rate
allows, but never earlier: no window of time has more starts than the rate, wherever it begins.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from .limits import Rate

MAX_ENTRIES: Final = 150

_SLOTS: Final = 100
"""Of more starts than that, those of one slot are merged. A period has as many slots."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

Starts: TypeAlias = Sequence[tuple[int, int]]
"""Times, in microseconds since 1970, and how many starts there were; the earliest first."""


def read(text: str | None) -> Starts:
    """Return the starts that a text contains."""
    return [(at, count) for at, count in json.loads(text)] if text else []


def written(starts: Starts) -> str:
    """Return starts as text."""
    return json.dumps(starts, separators=(",", ":"))


def available(starts: Starts, rate: Rate, now: datetime) -> int:
    """Return how many jobs may start now."""
    since = _number(now - rate.period)
    return rate.starts - sum(count for at, count in starts if at > since)


def next_at(starts: Starts, rate: Rate, now: datetime) -> datetime:
    """Return when a job may start, if none may now."""
    missing = 1 - available(starts, rate, now)
    since = _number(now - rate.period)
    for at, count in starts:
        if missing <= 0:
            break
        if at > since:
            missing -= count
            now = _EPOCH + at * _MICROSECOND + rate.period
    return now


def add(starts: Starts, rate: Rate, now: datetime, count: int) -> Starts:
    """Return starts with some that are about to happen; without those that no longer count."""
    since = _number(now - rate.period)
    kept = [entry for entry in starts if entry[0] > since]
    kept.append((_number(now + rate.grace), count))
    kept.sort()
    return kept if len(kept) <= MAX_ENTRIES else _merged(kept, rate.period // _SLOTS)


def _merged(starts: Starts, slot: timedelta) -> Starts:
    """Merge the starts of each slot of time."""
    length = max(slot // _MICROSECOND, 1)
    slots: dict[int, tuple[int, int]] = {}
    for at, count in starts:
        slots[at // length] = at, count + slots.get(at // length, (0, 0))[1]
    return list(slots.values())


def _number(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND
