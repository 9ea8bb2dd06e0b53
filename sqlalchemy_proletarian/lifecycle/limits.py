"""What limits the jobs of one type: how many run at a time, and how many start in a period."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final

_UNITS: Final = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
_RATE: Final = re.compile(r"([1-9]\d{0,8})/(?:([1-9]\d{0,3}) )?(second|minute|hour|day)s?")

_LONGEST_GRACE: Final = timedelta(seconds=1)
_GRACE_OF_PERIOD: Final = 20

_MAX_NAME: Final = 255
_RATE_SUFFIX: Final = "@rate"


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``starts`` starts in any time of the length ``period``."""

    starts: int
    period: timedelta

    @property
    def grace(self) -> timedelta:
        """How long after its start is recorded a job may start.

        The start is recorded with the end of this time: it never looks earlier than it was. Half of
        the time is left for differences between the clocks of workers.
        """
        return min(_LONGEST_GRACE, self.period / _GRACE_OF_PERIOD)


@dataclass(frozen=True, slots=True)
class Limit:
    """The limits of a job type.

    :param concurrency: how many jobs run at a time; for each key, if there is ``key``.
    :param key: returns the key of a job, by its payload.
    """

    concurrency: int | None = None
    key: Callable[[Any], Any] | None = None
    rate: Rate | None = None


def as_rate(value: object) -> Rate:
    """Return a rate that is given as text, such as "100/minute" or "5/10 seconds".

    :raises TypeError: if it is not a string.
    :raises ValueError: if the string is not a rate.
    """
    if not isinstance(value, str):
        msg = f'rate must be a string such as "100/minute", not {value!r}'
        raise TypeError(msg)
    found = _RATE.fullmatch(value)
    if found is None:
        msg = (
            f'rate must be a number and a time, such as "100/minute" or "5/10 seconds" with '
            f"second, minute, hour or day, not {value!r}"
        )
        raise ValueError(msg)
    starts, times, unit = found.groups()
    return Rate(int(starts), int(times or 1) * _UNITS[unit])


def name_of(job_type: str, key: object = None) -> str:
    """Return the name of the places of a job type, and of a key."""
    name = job_type if key is None else f"{job_type}/{key}"
    return name if _is_storable(name) else _shortened(name)


def rate_name(job_type: str) -> str:
    """Return the name under which the starts of a job type are recorded."""
    return name_of(f"{job_type}{_RATE_SUFFIX}")


def _is_storable(name: str) -> bool:
    """Return whether every database can store a name, and tells it apart from other names."""
    # MySQL ignores spaces at the end when it compares names.
    return len(name) <= _MAX_NAME and name.isprintable() and not name.endswith(" ")


def _shortened(name: str) -> str:
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    plain = "".join(c if c.isprintable() else "?" for c in name)
    return f"{plain[: _MAX_NAME - len(digest) - 1]}#{digest}"
