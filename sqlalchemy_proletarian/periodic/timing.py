"""When the ticks of a recurring job are: an interval, or a cron expression in a time zone.

cronsim parses the expression and finds the times of the wall clock. What happens when clocks change
is decided here:

* An expression for certain hours is a time of day. It has one tick per day and time: when clocks go
  back, at the first of two equal times; when a time is skipped, right after the gap.
* An expression for every hour is a cadence, and so are the minutes of one that starts with ``*``:
  ticks are at every matching time, also if the wall clock shows it for the second time.

(cronsim's own rule loses ticks where clocks change by half an hour, as on Lord Howe Island, and
may return a tick before the time that it was asked for.)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..extras import require_extra
from ..models.values import UTC_ZONE

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""The ticks of an interval are counted from here, so that they do not depend on a deployment."""

NEVER: Final = datetime(9999, 12, 31, tzinfo=UTC)
"""The next tick if there is none."""

_SECOND: Final = timedelta(seconds=1)
_FIELDS: Final = 5
_HOURS: Final = 24
_LONGEST: Final = 2**31 - 1


@dataclass(frozen=True)
class Timing:
    """The times of a recurring job's ticks; make one with :func:`timing_of`.

    :param cron: a cron expression with five fields, or None.
    :param interval_seconds: the seconds from tick to tick, or None.
    :param time_zone: the time zone of the expression.
    """

    cron: str | None
    interval_seconds: int | None
    time_zone: str

    def after(self, instant: datetime) -> datetime:
        """Return the first tick after ``instant``, in UTC; :data:`NEVER` if there is none.

        :raises ValueError: if the values are not valid.
        """
        instant = instant.astimezone(UTC)
        if self.cron is not None:
            return _next_of_cron(self.cron, _zone(self.time_zone), instant)
        if not self.interval_seconds or self.interval_seconds < 0:
            msg = f"interval_seconds must be positive, not {self.interval_seconds!r}"
            raise ValueError(msg)
        interval = timedelta(seconds=self.interval_seconds)
        return EPOCH + ((instant - EPOCH) // interval + 1) * interval


def timing_of(cron: str | None, every: timedelta | None, timezone: str) -> Timing:
    """Return a timing from the arguments of a call.

    :param cron: five fields: minute, hour, day of month, month, day of week.
    :param every: whole seconds, at least one.
    :param timezone: a name of the IANA time zone database, such as "Europe/Oslo".
    :raises ImportError: if ``cron`` is given and cronsim is not installed.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if not exactly one of ``cron`` and ``every`` is given, or a value is not
        valid; the message says which.
    """
    if (cron is None) == (every is None):
        msg = "give either cron= or every=, and not both"
        raise ValueError(msg)
    if cron is not None:
        if not isinstance(cron, str):
            msg = f"cron must be a string such as '0 3 * * *', not {cron!r}"
            raise TypeError(msg)
        timing = Timing(" ".join(cron.split()), None, timezone)
        if timing.after(datetime(2000, 1, 1, tzinfo=UTC)) == NEVER:
            msg = f"cron {cron!r} has no tick: no day meets all of its fields"
            raise ValueError(msg)
        return timing
    if not isinstance(every, timedelta):
        msg = f"every must be a timedelta, not {every!r}"
        raise TypeError(msg)
    if every < _SECOND or every % _SECOND or every // _SECOND > _LONGEST:
        msg = f"every must be whole seconds from 1 to {_LONGEST}, not {every!r}"
        raise ValueError(msg)
    if timezone != UTC_ZONE:
        msg = "timezone is for cron=: the ticks of every= do not depend on a time zone"
        raise ValueError(msg)
    return Timing(None, every // _SECOND, UTC_ZONE)


@lru_cache(maxsize=1000)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
        msg = f"there is no time zone {name!r}: use a name such as 'Europe/Oslo'"
        raise ValueError(msg) from error


def _matches(cron: str, wall: datetime) -> Any:
    """Return an iterator of the matching times after ``wall``, all without a time zone.

    :raises ValueError: if the expression is not valid.
    """
    cronsim: Any = require_extra("cronsim", "recurring")
    fields = cron.split()
    if len(fields) != _FIELDS:
        msg = (
            f"cron {cron!r} has {len(fields)} fields instead of {_FIELDS}: minute, hour, day of "
            f"month, month, day of week"
        )
        raise ValueError(msg)
    try:
        return cronsim.CronSim(cron, wall)
    except (cronsim.CronSimError, AssertionError, TypeError) as error:
        msg = f"cron {cron!r} is not valid: {str(error) or 'it cannot be parsed'}"
        raise ValueError(msg) from error


def _next_of_cron(cron: str, zone: ZoneInfo, after: datetime) -> datetime:
    instant, include = after, False
    while True:
        offset = _offset(zone, instant)
        wall = _wall(instant, offset)
        matches = _matches(cron, wall - _SECOND if include else wall)
        try:
            match: datetime = next(matches)
            candidate = match.replace(tzinfo=UTC) - offset
        except (StopIteration, OverflowError):
            return NEVER
        of_the_day = len(matches.hours) < _HOURS
        if _offset(zone, candidate) == offset:
            is_second = candidate.astimezone(zone).fold and of_the_day
            if not is_second or cron.startswith("*"):
                return candidate
            instant, include = candidate, False
            continue
        change = _change(zone, instant, candidate)
        if of_the_day and match < _wall(change, _offset(zone, change)):  # a time that is skipped
            return change
        instant, include = change, True


def _offset(zone: ZoneInfo, instant: datetime) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta()


def _wall(instant: datetime, offset: timedelta) -> datetime:
    return instant.replace(tzinfo=None) + offset


def _change(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """Return when the clocks of a zone changed between two instants with different offsets."""
    offset = _offset(zone, before)
    low, high = before.replace(microsecond=0), after
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if _offset(zone, middle) == offset:
            low = middle
        else:
            high = middle
    return high
