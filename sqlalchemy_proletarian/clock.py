"""The current time and time-ordered UUIDs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import local
from typing import TypeAlias
from uuid import UUID

__all__ = ["Clock", "as_timedelta", "checked_clock", "require_aware", "utcnow", "uuid7"]

Clock: TypeAlias = Callable[[], datetime]
"""A callable that returns the current time as a timezone-aware datetime."""

UUIDFactory: TypeAlias = Callable[[], UUID]


if sys.version_info >= (3, 14):
    from uuid import uuid7
else:

    def uuid7() -> UUID:
        """Return a new UUID of version 7: UUIDs created later are greater.

        .. versionadded:: 0.1
        """
        # Imported where it is used: a worker that enqueues no jobs does not need it in memory.
        from uuid_utils import compat

        return compat.uuid7()


_substitutes: list[Clock] = []
"""The clocks that :func:`utcnow` reads instead of the system's; the last one counts."""


def utcnow() -> datetime:
    """Return the current time as an aware datetime in UTC.

    A test can set it with :class:`sqlalchemy_proletarian.testing.FrozenClock`.

    .. versionadded:: 0.1
    """
    return _substitutes[-1]() if _substitutes else datetime.now(UTC)


@contextmanager
def substituted(clock: Clock) -> Generator[None]:
    """Let :func:`utcnow` read ``clock`` in the block, in all threads of the process: for tests.

    The code under test enqueues without a ``clock=``, so a test can set its time only here.
    """
    reading = local()

    def read() -> datetime:
        if getattr(reading, "clock", None):  # the clock itself calls utcnow
            return datetime.now(UTC)
        reading.clock = clock
        try:
            return clock()
        finally:
            del reading.clock

    _substitutes.append(read)
    try:
        yield
    finally:
        _substitutes.remove(read)  # two blocks in two tasks may end in any order


def is_of_the_system(clock: Clock) -> bool:
    """Return whether a clock is :func:`utcnow`, and no test has set it."""
    return clock is utcnow and not _substitutes


def checked_clock(clock: Clock) -> Clock:
    """Return a clock that raises ``ValueError`` if ``clock`` returns a naive datetime."""
    if clock is utcnow:
        return _substitutes[-1] if _substitutes else partial(datetime.now, UTC)
    return lambda: require_aware("clock()", clock())


def require_aware(name: str, value: datetime) -> datetime:
    """Return ``value`` unchanged if it is an aware datetime.

    :param name: the name of the value in error messages.
    :raises TypeError: if ``value`` is not a datetime.
    :raises ValueError: if ``value`` has no time zone.
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
    """Return ``value`` as a timedelta.

    :param name: the name of the value in error messages.
    :param value: a timedelta, or an int of milliseconds.
    :param zero: whether a duration of zero is allowed; True by default.
    :raises TypeError: if ``value`` is neither a timedelta nor an int.
    :raises ValueError: if ``value`` is negative, or is zero and ``zero`` is False.
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
