"""Retry strategies, and exceptions with which a handler controls when its job runs again.

A strategy counts *retries*, so a job runs at most ``retries + 1`` times. The nth delay precedes the
nth retry, and the last delay repeats. For example::

    RetryStrategy(retries=4, delays=[timedelta(seconds=2), timedelta(seconds=10)])

runs a job at most five times, with pauses of 2, 10, 10 and 10 seconds. A delay is a minimum: the
job runs again as soon as a worker is free after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from .clock import as_timedelta

Delay: TypeAlias = timedelta | int
"""A timedelta, or an int of milliseconds."""


@dataclass(frozen=True, slots=True)
class RetryStrategy:
    """How often, and after which delays, a failed job is retried.

    :param retries: the number of runs after the first one, an int; 0 means no retry.
    :param delays: a sequence of timedeltas or ints of milliseconds. The last one repeats. With an
        empty sequence, the default, jobs are retried at once.
    :raises TypeError: if ``retries`` is not an int, ``delays`` is not a sequence, or a delay is
        neither a timedelta nor an int.
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
        """Return the delay before the next run, or None if no retry is left.

        :param attempts: the number of runs so far, including the failed one; at least 1.
        """
        if attempts > self.retries:
            return None
        if not self.delays:
            return timedelta(0)
        return as_timedelta("delay", self.delays[min(attempts, len(self.delays)) - 1])


RetryLike: TypeAlias = RetryStrategy | Mapping[str, Any]
"""A strategy, or its mapping form ``{"retries": 2, "delays": [1000, 5000]}``."""

RetryFunction: TypeAlias = Callable[[Any, Exception], RetryLike | None]
"""A callable of (job, exception) that returns a strategy, or None for no retry."""

NO_RETRY = RetryStrategy(retries=0)


def as_strategy(value: RetryLike | None) -> RetryStrategy:
    """Return ``value`` as a strategy; None becomes a strategy without retries.

    :raises TypeError: if ``value`` is not a strategy, a mapping or None, or if the mapping lacks
        ``retries`` or has keys other than ``retries`` and ``delays``.
    :raises ValueError: if ``retries`` or a delay is negative.
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
    """Return the ``retry_strategy`` argument of a worker as a function, a strategy or None.

    :raises TypeError: as :func:`as_strategy`.
    :raises ValueError: as :func:`as_strategy`.
    """
    return value if callable(value) or value is None else as_strategy(value)


class RetryAfter(Exception):  # noqa: N818 - the name says what the handler requests
    """Raise this in a handler to fail the attempt and retry the job after ``delay``.

    The strategy of the job type still limits the number of retries. If the type has no strategy,
    the job is always retried.

    :param delay: a timedelta or an int of milliseconds.
    :param reason: the message, recorded as the job's error; generated from ``delay`` by default.
    :raises TypeError: if ``delay`` is neither a timedelta nor an int.
    :raises ValueError: if ``delay`` is negative.

    .. versionadded:: 0.1
    """

    def __init__(self, delay: Delay, reason: str = "") -> None:
        super().__init__(reason or f"retry after {delay}")
        self.delay: timedelta = as_timedelta("delay", delay)


class Snooze(Exception):  # noqa: N818
    """Raise this in a handler to run the job after ``delay`` without counting the attempt.

    :param delay: a timedelta or an int of milliseconds.
    :raises TypeError: if ``delay`` is neither a timedelta nor an int.
    :raises ValueError: if ``delay`` is negative.

    .. versionadded:: 0.1
    """

    def __init__(self, delay: Delay) -> None:
        super().__init__(f"snoozed for {delay}")
        self.delay: timedelta = as_timedelta("delay", delay)


class Discard(Exception):  # noqa: N818
    """Raise this in a handler to archive the job as a failure without a retry.

    :param reason: the message, recorded as the job's error; "discarded by its handler" by default.

    .. versionadded:: 0.1
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "discarded by its handler")
