"""Which of the ticks that are due become jobs, and when the next tick is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from ..models.values import CatchUp
from .timing import Timing

ON_TIME: Final = timedelta(minutes=1)
"""A tick that is later than this was missed, for ``catch_up="none"``."""

MOST: Final = 100
"""Ticks that one transaction enqueues. After a long downtime, several transactions catch up."""

_FIRST_SPAN: Final = timedelta(minutes=1)


class Due(NamedTuple):
    """What to do with a recurring job whose next tick has come.

    :param ticks: the ticks to enqueue, the first one first.
    :param next_at: the tick after them.
    """

    ticks: Sequence[datetime]
    next_at: datetime


def due(
    timing: Timing, next_at: datetime | None, now: datetime, *, catch_up: str, paused: bool
) -> Due:
    """Decide what to do with the ticks from ``next_at`` until ``now``.

    The tick after the last one is calculated from that one, never from the clock: two workers with
    different clocks agree on the ticks.

    :param next_at: None if it is not known yet.
    :raises ValueError: if ``catch_up`` or the timing is not valid.
    """
    policy = as_catch_up(catch_up)
    if next_at is None:
        return Due((), timing.after(now))
    if next_at > now:
        return Due((), next_at)
    if policy is CatchUp.ALL and not paused:
        ticks = [next_at]
        while (following := timing.after(ticks[-1])) <= now and len(ticks) < MOST:
            ticks.append(following)
        return Due(ticks, following)
    last, following = _last(timing, next_at, now)
    missed = policy is CatchUp.NONE and now - last > ON_TIME
    return Due(() if paused or missed else (last,), following)


def as_catch_up(value: str) -> CatchUp:
    """Return the policy with this name.

    :raises ValueError: if there is none.
    """
    try:
        return CatchUp(value)
    except ValueError as error:
        msg = f'catch_up must be "last", "none" or "all", not {value!r}'
        raise ValueError(msg) from error


def _last(timing: Timing, first: datetime, now: datetime) -> tuple[datetime, datetime]:
    """Return the last tick until ``now``, and the one after it.

    The search goes back from ``now`` in growing spans: the ticks of a year need not be counted.
    """
    last, span = first, _FIRST_SPAN
    while now - span > first:
        found = timing.after(now - span)
        if found <= now:
            last = found
            break
        span *= 4
    while (following := timing.after(last)) <= now:
        last = following
    return last, following
