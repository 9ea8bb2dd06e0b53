"""Retry strategies, and exceptions with which a handler controls when its job runs again.

A strategy counts *retries*, so a job runs at most ``retries + 1`` times. The nth delay precedes the
nth retry, and the last delay repeats. For example::

    RetryStrategy(retries=4, delays=[timedelta(seconds=2), timedelta(seconds=10)])

runs a job at most five times, with pauses of 2, 10, 10 and 10 seconds. A delay is a minimum: the
job runs again as soon as a worker is free after it. ``on`` and ``never_on`` limit a strategy to
errors that may go away::

    RetryStrategy.exponential(retries=8, on=(ConnectionError, TimeoutError))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import isfinite
from typing import Any, Final, TypeAlias

from .clock import as_timedelta
from .error_types import ExceptionTypes, any_is, as_error_types, each_is

Delay: TypeAlias = timedelta | int
"""A timedelta, or an int of milliseconds."""


_FIRST_DELAY: Final = timedelta(seconds=5)
_LONGEST_DELAY: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class RetryStrategy:
    """How often, after which delays, and after which errors a failed job is retried.

    :param retries: the number of runs after the first one, an int; 0 means no retry.
    :param delays: a sequence of timedeltas or ints of milliseconds. The last one repeats. With an
        empty sequence, the default, jobs are retried at once.
    :param jitter: whether each delay is random, between half of what ``delays`` says and all of
        it, so that jobs that failed together do not run again together. False by default.
    :param on: an exception type or a collection of them: a job is retried only if its error is one
        of these. None by default: any exception is retried. An exception group is retried if all
        exceptions in it are.
    :param never_on: an exception type or a collection of them that are not retried, although ``on``
        allows them; none by default. An exception group is not retried if it contains one.
    :raises TypeError: if ``retries`` is not an int, ``delays`` is not a sequence, a delay is
        neither a timedelta nor an int, ``jitter`` is not a bool, or ``on`` or ``never_on`` contains
        something that is not a subclass of Exception.
    :raises ValueError: if ``retries`` or a delay is negative, or ``on`` is empty.

    :class:`.RetryAfter` is retried whatever ``on`` and ``never_on`` say.

    .. versionadded:: 0.1
    """

    retries: int
    delays: Sequence[Delay] = ()
    jitter: bool = False
    on: ExceptionTypes | None = None
    never_on: ExceptionTypes = ()

    def __post_init__(self) -> None:
        _require_count(self.retries)
        if isinstance(self.delays, str | bytes) or not isinstance(self.delays, Sequence):
            msg = f"delays must be a sequence of timedeltas or milliseconds, not {self.delays!r}"
            raise TypeError(msg)
        delays = tuple(as_timedelta(f"delays[{n}]", delay) for n, delay in enumerate(self.delays))
        object.__setattr__(self, "delays", delays)
        if not isinstance(self.jitter, bool):
            msg = f"jitter must be True or False, not {self.jitter!r}"
            raise TypeError(msg)
        if self.on is not None:
            object.__setattr__(self, "on", as_error_types("on", self.on))
            if not self.on:
                msg = "on names no exception: leave it out to retry any, or set retries=0"
                raise ValueError(msg)
        object.__setattr__(self, "never_on", as_error_types("never_on", self.never_on))

    @classmethod
    def exponential(
        cls,
        retries: int = 8,
        *,
        first: Delay = _FIRST_DELAY,
        maximum: Delay = _LONGEST_DELAY,
        factor: float = 2,
        jitter: bool = True,
        on: ExceptionTypes | None = None,
        never_on: ExceptionTypes = (),
    ) -> RetryStrategy:
        """Return a strategy whose delays grow: each is ``factor`` times the one before.

        With the defaults, the delays are 5, 10, 20, … 640 seconds, or as little as half of that,
        because of the jitter: the last retry runs after 11 to 21 minutes.

        :param retries: the number of runs after the first one, an int; 8 by default.
        :param first: the delay before the first retry, a timedelta or an int of milliseconds; 5
            seconds by default. It is positive.
        :param maximum: the longest delay, a timedelta or an int of milliseconds; 1 hour by default.
        :param factor: a number of at least 1; 2 by default.
        :param jitter: whether each delay is random, between half of its length and all of it; True
            by default. Without jitter, the delays are always the same.
        :param on: the exception types that are retried; see :class:`.RetryStrategy`.
        :param never_on: the exception types that are not retried.
        :raises TypeError: if an argument is of the wrong type.
        :raises ValueError: if a number is out of range, or ``first`` is longer than ``maximum``.

        .. versionadded:: 0.1
        """
        _require_count(retries)
        shortest = as_timedelta("first", first, zero=False)
        longest = as_timedelta("maximum", maximum, zero=False)
        if longest < shortest:
            msg = f"first ({shortest}) must not be longer than maximum ({longest})"
            raise ValueError(msg)
        if not isinstance(factor, int | float) or isinstance(factor, bool):
            msg = f"factor must be a number, not {factor!r}"
            raise TypeError(msg)
        if not isfinite(factor) or factor < 1:
            msg = f"factor must be at least 1, not {factor!r}"
            raise ValueError(msg)
        delays = tuple(_growing(retries, shortest, longest, factor))
        return cls(retries, delays, jitter, on, never_on)

    def delay_after(self, attempts: int) -> timedelta | None:
        """Return the delay before the next run, or None if no retry is left.

        :param attempts: the number of runs so far, including the failed one; at least 1.
        """
        if attempts > self.retries:
            return None
        if not self.delays:
            return timedelta(0)
        delay = as_timedelta("delay", self.delays[min(attempts, len(self.delays)) - 1])
        return _with_jitter(delay) if self.jitter else delay

    def allows(self, error: BaseException) -> bool:
        """Return whether a job with this error may be retried, if a retry is left.

        :param error: what the attempt raised.
        """
        on: Any = self.on  # __post_init__ has made tuples of both
        never_on: Any = self.never_on
        if isinstance(error, RetryAfter):
            return True
        if on is not None and not each_is(error, (RetryAfter, *on)):
            return False
        return not any_is(error, never_on)


def _require_count(retries: Any) -> None:
    if not isinstance(retries, int) or isinstance(retries, bool):
        msg = f"retries must be an int, not {retries!r}"
        raise TypeError(msg)
    if retries < 0:
        msg = f"retries must not be negative, not {retries}"
        raise ValueError(msg)


def _growing(
    retries: int, shortest: timedelta, longest: timedelta, factor: float
) -> Iterator[timedelta]:
    """Yield the delays up to the longest one, which repeats."""
    seconds, most = shortest.total_seconds(), longest.total_seconds()
    for _ in range(retries):
        if seconds >= most:
            yield longest
            return
        yield timedelta(seconds=seconds)
        if factor == 1:
            return
        seconds *= factor


def _with_jitter(delay: timedelta) -> timedelta:
    # Imported where it is used: most workers do not need it in memory.
    from random import uniform

    return delay * uniform(0.5, 1)  # noqa: S311 - nothing depends on it being unpredictable


RetryLike: TypeAlias = RetryStrategy | Mapping[str, Any]
"""A strategy, or its mapping form ``{"retries": 2, "delays": [1000, 5000]}``.

The keys of a mapping are the parameters of :class:`.RetryStrategy`."""

RetryFunction: TypeAlias = Callable[[Any, Exception], RetryLike | None]
"""A callable of (job, exception) that returns a strategy, or None for no retry."""

NO_RETRY = RetryStrategy(retries=0)

_OPTIONAL_KEYS: Final = ("delays", "jitter", "on", "never_on")


def as_strategy(value: RetryLike | None) -> RetryStrategy:
    """Return ``value`` as a strategy; None becomes a strategy without retries.

    :raises TypeError: if ``value`` is not a strategy, a mapping or None, or if the mapping lacks
        ``retries`` or has keys that are no parameters of :class:`.RetryStrategy`.
    :raises ValueError: as :class:`.RetryStrategy`.
    """
    if value is None:
        return NO_RETRY
    if isinstance(value, RetryStrategy):
        return value
    if not isinstance(value, Mapping):
        msg = f"a retry strategy must be a RetryStrategy, a mapping or None, not {value!r}"
        raise TypeError(msg)
    if "retries" not in value or not value.keys() <= {"retries", *_OPTIONAL_KEYS}:
        msg = (
            f"a retry mapping has the keys 'retries' and, optionally, "
            f"{', '.join(map(repr, _OPTIONAL_KEYS))}; "
            f"got {', '.join(map(repr, value)) or 'none'}"
        )
        raise TypeError(msg)
    return RetryStrategy(
        **{key: given for key, given in value.items() if key == "retries" or given is not None}
    )


def as_retries(value: RetryFunction | RetryLike | None) -> RetryFunction | RetryStrategy | None:
    """Return the ``retry_strategy`` argument of a worker as a function, a strategy or None.

    :raises TypeError: as :func:`as_strategy`.
    :raises ValueError: as :func:`as_strategy`.
    """
    return value if callable(value) or value is None else as_strategy(value)


class RetryAfter(Exception):  # noqa: N818 - the name says what the handler requests
    """Raise this in a handler to fail the attempt and retry the job after ``delay``.

    This takes precedence over the delays, ``on`` and ``never_on`` of the job type's strategy. The
    strategy still limits the number of retries. If the type has no strategy, the job is always
    retried.

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
