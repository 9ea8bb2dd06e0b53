"""When a failed job runs again: retry strategies, and the exceptions that decide in the handler.

A strategy counts *retries*, so a job runs at most ``retries + 1`` times. The nth delay is waited
before the nth retry and the last delay repeats::

    RetryStrategy(retries=4, delays=[timedelta(seconds=2), timedelta(seconds=10)])

runs a job five times: 2, 10, 10 and 10 seconds apart. A delay is the earliest time of the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from .clock import as_timedelta

Delay: TypeAlias = timedelta | int
"""A timedelta, or whole milliseconds."""


@dataclass(frozen=True, slots=True)
class RetryStrategy:
    """How often and how much later a failed job runs again.

    :param retries: runs after the first one; 0 means none.
    :param delays: timedeltas or whole milliseconds; the last one repeats, an empty sequence retries
        at once.
    :raises TypeError: if ``retries`` is no int or a delay is neither a timedelta nor an int.
    :raises ValueError: if ``retries`` or a delay is negative.

    .. versionadded:: 0.1
    """

    retries: int
    delays: Sequence[Delay] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.retries, int) or isinstance(self.retries, bool):
            msg = f"retries must be an int, not {self.retries!r}"
            raise TypeError(msg)
        if self.retries < 0:
            msg = f"retries must not be negative, not {self.retries}"
            raise ValueError(msg)
        if isinstance(self.delays, str | bytes) or not isinstance(self.delays, Sequence):
            msg = f"delays must be a sequence of timedeltas or milliseconds, not {self.delays!r}"
            raise TypeError(msg)
        delays = tuple(as_timedelta(f"delays[{n}]", delay) for n, delay in enumerate(self.delays))
        object.__setattr__(self, "delays", delays)

    def delay_after(self, attempts: int) -> timedelta | None:
        """Return how long to wait after that many attempts, or None when no retry is left.

        :param attempts: runs made so far, the failed one included; at least 1.
        """
        if attempts > self.retries:
            return None
        if not self.delays:
            return timedelta(0)
        return as_timedelta("delay", self.delays[min(attempts, len(self.delays)) - 1])


RetryLike: TypeAlias = RetryStrategy | Mapping[str, Any]
"""A strategy, or the mapping form ``{"retries": 2, "delays": [1000, 5000]}``."""

RetryFunction: TypeAlias = Callable[[Any, Exception], RetryLike | None]
"""Called with the job and the exception it failed with; None means no retry."""

NO_RETRY = RetryStrategy(retries=0)


def as_strategy(value: RetryLike | None) -> RetryStrategy:
    """Return ``value`` as a strategy; None is no retry.

    :raises TypeError: if it is neither a strategy nor a mapping, or has keys other than
        ``retries`` and ``delays``.
    """
    if value is None:
        return NO_RETRY
    if isinstance(value, RetryStrategy):
        return value
    if not isinstance(value, Mapping):
        msg = f"a retry strategy must be a RetryStrategy, a mapping or None, not {value!r}"
        raise TypeError(msg)
    if "retries" not in value or not value.keys() <= {"retries", "delays"}:
        msg = (
            f"a retry mapping has the keys 'retries' and, optionally, 'delays'; "
            f"got {', '.join(map(repr, value)) or 'none'}"
        )
        raise TypeError(msg)
    delays = value.get("delays")
    return RetryStrategy(value["retries"], () if delays is None else delays)


def as_retries(value: RetryFunction | RetryLike | None) -> RetryFunction | RetryStrategy | None:
    """Return what a worker is told of retries: a function, or a strategy; None is nothing."""
    return value if callable(value) or value is None else as_strategy(value)


class RetryAfter(Exception):  # noqa: N818 - reads as what the handler asks for
    """Raised by a handler: this attempt failed, run the job again after ``delay``.

    The number of retries stays what the strategy of the job's type allows; where the type has no
    strategy, the handler alone decides and the retry is always granted.

    :param delay: a timedelta or whole milliseconds.
    :param reason: kept as the job's error.

    .. versionadded:: 0.1
    """

    def __init__(self, delay: Delay, reason: str = "") -> None:
        super().__init__(reason or f"retry after {delay}")
        self.delay = as_timedelta("delay", delay)


class Snooze(Exception):  # noqa: N818
    """Raised by a handler: not now, run the job after ``delay``. The attempt is not counted.

    :param delay: a timedelta or whole milliseconds.

    .. versionadded:: 0.1
    """

    def __init__(self, delay: Delay) -> None:
        super().__init__(f"snoozed for {delay}")
        self.delay = as_timedelta("delay", delay)


class Discard(Exception):  # noqa: N818
    """Raised by a handler: this job can never succeed, archive it as a failure without a retry.

    :param reason: kept as the job's error.

    .. versionadded:: 0.1
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "discarded by its handler")
