"""Where the time and time-ordered ids come from: the one module that reads the clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias
from uuid import UUID

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7

__all__ = ["Clock", "as_timedelta", "require_aware", "utcnow", "uuid7"]

Clock: TypeAlias = Callable[[], datetime]
"""A callable that returns the time as a timezone-aware datetime."""

UUIDFactory: TypeAlias = Callable[[], UUID]


def utcnow() -> datetime:
    """Return the time as an aware datetime in UTC.

    .. versionadded:: 0.1
    """
    return datetime.now(UTC)


def require_aware(name: str, value: datetime) -> datetime:
    """Return ``value``, or raise ``ValueError`` when it has no time zone.

    :param name: what the value is called in the message.
    :raises TypeError: if it is no datetime.
    """
    if not isinstance(value, datetime):
        msg = f"{name} must be a datetime, not {value!r}"
        raise TypeError(msg)
    if value.tzinfo is None or value.utcoffset() is None:
        msg = (
            f"{name} is a naive datetime ({value.isoformat()}): give it a time zone, "
            f"as in datetime.now(timezone.utc)"
        )
        raise ValueError(msg)
    return value


def as_timedelta(name: str, value: timedelta | int, *, zero: bool = True) -> timedelta:
    """Return ``value`` as a timedelta; a whole number counts milliseconds.

    :param name: what the value is called in the message.
    :param zero: whether a duration of zero is allowed.
    :raises TypeError: if the value is neither a timedelta nor an int.
    :raises ValueError: if the value is negative, or zero where that is not allowed.
    """
    if isinstance(value, timedelta):
        duration = value
    elif isinstance(value, int) and not isinstance(value, bool):
        duration = timedelta(milliseconds=value)
    else:
        msg = f"{name} must be a timedelta or whole milliseconds, not {value!r}"
        raise TypeError(msg)
    if duration < timedelta(0) or not (zero or duration):
        msg = f"{name} must {'not be negative' if zero else 'be positive'}, not {value!r}"
        raise ValueError(msg)
    return duration
