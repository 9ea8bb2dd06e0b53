"""Tests of the retry delays, compared with a simple model."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_proletarian import Discard, JobTimeoutError, RetryAfter, RetryStrategy, Snooze
from sqlalchemy_proletarian.retry import as_strategy

SECOND = timedelta(seconds=1)

milliseconds = st.integers(0, 10**11)
durations = st.timedeltas(timedelta(0), timedelta(days=1000))
retries = st.integers(0, 30)


def schedule(strategy: RetryStrategy) -> list[timedelta]:
    """Return the delays of all retries of a job that always fails."""
    delays = []
    while (delay := strategy.delay_after(len(delays) + 1)) is not None:
        delays.append(delay)
    return delays


@given(retries, st.lists(durations, max_size=8))
def test_the_nth_retry_waits_for_the_nth_delay(retries: int, delays: list[timedelta]) -> None:
    """The last delay also applies to all later retries."""
    expected = []
    remaining = list(delays)
    for _ in range(retries):
        delay = remaining[0] if remaining else timedelta(0)
        expected.append(delay)
        if len(remaining) > 1:
            remaining.pop(0)
    assert schedule(RetryStrategy(retries, delays)) == expected


@given(retries, st.lists(milliseconds, max_size=8))
def test_an_integer_delay_is_in_milliseconds(retries: int, delays: list[int]) -> None:
    as_timedeltas = [timedelta(milliseconds=delay) for delay in delays]
    assert RetryStrategy(retries, delays) == RetryStrategy(retries, as_timedeltas)
    assert hash(RetryStrategy(retries, delays)) == hash(RetryStrategy(retries, as_timedeltas))


@given(retries, st.lists(st.one_of(milliseconds, durations), max_size=8))
def test_a_mapping_is_equivalent_to_the_class(retries: int, delays: list[timedelta | int]) -> None:
    assert as_strategy({"retries": retries, "delays": delays}) == RetryStrategy(retries, delays)


@given(st.lists(durations, max_size=4), st.integers(1, 100))
def test_zero_retries_never_retry(delays: list[timedelta], attempts: int) -> None:
    """The delays do not matter."""
    assert RetryStrategy(0, delays).delay_after(attempts) is None


def test_the_example_of_the_documentation() -> None:
    """Four retries with delays of 2 and 10 seconds wait for 2, 10, 10 and 10 seconds."""
    strategy = RetryStrategy(retries=4, delays=[2 * SECOND, 10 * SECOND])
    assert schedule(strategy) == [2 * SECOND, 10 * SECOND, 10 * SECOND, 10 * SECOND]


def test_changing_the_list_of_delays_does_not_change_the_strategy() -> None:
    delays = [SECOND]
    strategy = RetryStrategy(1, delays)
    delays[0] = timedelta(days=1)
    assert strategy.delay_after(1) == SECOND


@pytest.mark.parametrize(
    ("retries", "delays", "error", "reason"),
    [
        (-1, [], ValueError, "retries must not be negative, not -1"),
        (1.5, [], TypeError, "retries must be an int, not 1.5"),
        (True, [], TypeError, "retries must be an int, not True"),
        ("3", [], TypeError, "retries must be an int, not '3'"),
        (None, [], TypeError, "retries must be an int, not None"),
        (1, [1000, -1], ValueError, "delays[1] must not be negative, not -1"),
        (1, [-SECOND], ValueError, "delays[0] must not be negative"),
        (1, [0.5], TypeError, "delays[0] must be a timedelta or whole milliseconds, not 0.5"),
        (1, [True], TypeError, "delays[0] must be a timedelta or whole milliseconds, not True"),
        (1, [SECOND, "5s"], TypeError, "delays[1] must be a timedelta or whole milliseconds"),
        (1, [None], TypeError, "delays[0] must be a timedelta or whole milliseconds, not None"),
        (1, 1000, TypeError, "delays must be a sequence of timedeltas or milliseconds, not 1000"),
        (1, 0, TypeError, "delays must be a sequence of timedeltas or milliseconds, not 0"),
        (1, SECOND, TypeError, "delays must be a sequence of timedeltas or milliseconds"),
        (1, "1000", TypeError, "delays must be a sequence of timedeltas or milliseconds"),
        (1, "", TypeError, "delays must be a sequence of timedeltas or milliseconds"),
        (1, {1000}, TypeError, "delays must be a sequence of timedeltas or milliseconds"),
    ],
)
def test_an_invalid_strategy_is_rejected(
    retries: object, delays: object, error: type[Exception], reason: str
) -> None:
    """Both the class and the mapping raise an error with the reason."""
    with pytest.raises(error) as class_error:
        RetryStrategy(retries, delays)  # type: ignore[arg-type]
    with pytest.raises(error) as mapping_error:
        as_strategy({"retries": retries, "delays": delays})
    assert reason in str(class_error.value)
    assert reason in str(mapping_error.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            {},
            "'retries' and, optionally, 'delays', 'jitter', 'on', 'never_on'; got none",
        ),
        ({"delays": [1]}, "got 'delays'"),
        ({"retries": 1, "delay": [1]}, "got 'retries', 'delay'"),
        ({"retries": 1, 2: 3}, "got 'retries', 2"),
        (3, "a retry strategy must be a RetryStrategy, a mapping or None, not 3"),
        ("3", "not '3'"),
        (lambda job, error: None, "a retry strategy must be"),
    ],
)
def test_other_objects_are_not_accepted_as_a_strategy(value: object, reason: str) -> None:
    """The message names a misspelt key."""
    with pytest.raises(TypeError) as exception:
        as_strategy(value)  # type: ignore[arg-type]
    assert reason in str(exception.value)


def test_none_never_retries_and_delays_are_optional() -> None:
    assert schedule(as_strategy(None)) == []
    assert schedule(as_strategy({"retries": 2})) == [timedelta(0), timedelta(0)]
    assert schedule(as_strategy({"retries": 1, "delays": None})) == [timedelta(0)]


def test_retry_exceptions_accept_timedeltas_and_milliseconds() -> None:
    """The text of the exceptions describes the delay or the reason."""
    assert RetryAfter(1500).delay == timedelta(seconds=1.5)
    assert str(RetryAfter(SECOND, "rate limit")) == "rate limit"
    assert str(RetryAfter(SECOND)) == "retry after 0:00:01"
    assert Snooze(SECOND).delay == SECOND
    assert str(Snooze(250)) == "snoozed for 250"
    assert str(Discard()) == "discarded by its handler"
    assert str(Discard("no such user")) == "no such user"


@pytest.mark.parametrize("exception", [RetryAfter, Snooze])
@pytest.mark.parametrize(
    ("delay", "error", "reason"),
    [
        (-1, ValueError, "delay must not be negative, not -1"),
        (0.5, TypeError, "delay must be a timedelta or whole milliseconds, not 0.5"),
    ],
)
def test_retry_exceptions_reject_an_invalid_delay(
    exception: type[Exception], delay: object, error: type[Exception], reason: str
) -> None:
    """The constructor of the exception raises the error."""
    with pytest.raises(error, match=reason):
        exception(delay)


def test_exponential_delays_grow_to_the_maximum() -> None:
    """Without jitter, each delay is twice the one before, up to the maximum, which repeats."""
    strategy = RetryStrategy.exponential(6, first=SECOND, maximum=10 * SECOND, jitter=False)
    assert schedule(strategy) == [SECOND * n for n in (1, 2, 4, 8, 10, 10)]


@given(
    retries,
    st.integers(1, 10**6),
    st.integers(0, 10**8),
    st.floats(1, 1000, allow_nan=False),
)
def test_exponential_delays_are_powers_of_the_factor(
    retries: int, first: int, more: int, factor: float
) -> None:
    """The nth delay is the first one times a power of the factor, or the maximum."""
    maximum = first + more
    strategy = RetryStrategy.exponential(
        retries, first=first, maximum=maximum, factor=factor, jitter=False
    )
    expected = [float(min(maximum, first * Fraction(factor) ** n)) for n in range(retries)]
    assert [delay.total_seconds() * 1000 for delay in schedule(strategy)] == pytest.approx(
        expected, rel=1e-6, abs=0.001
    )


def test_the_defaults_of_exponential_delays() -> None:
    """Eight retries from 5 seconds on, with jitter."""
    strategy = RetryStrategy.exponential()
    assert strategy == RetryStrategy(8, [SECOND * 5 * 2**n for n in range(8)], jitter=True)


def test_jitter_makes_each_delay_random_between_its_half_and_all_of_it() -> None:
    strategy = RetryStrategy(3, [10 * SECOND, 20 * SECOND], jitter=True)
    for attempts, delay in ((1, 10 * SECOND), (2, 20 * SECOND), (3, 20 * SECOND)):
        found = [strategy.delay_after(attempts) for _ in range(500)]
        seconds = [one.total_seconds() for one in found if one is not None]
        assert len(seconds) == 500
        assert delay.total_seconds() / 2 <= min(seconds) < 0.55 * delay.total_seconds()
        assert 0.95 * delay.total_seconds() < max(seconds) <= delay.total_seconds()
    assert strategy.delay_after(4) is None
    assert RetryStrategy(1, jitter=True).delay_after(1) == timedelta(0)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"retries": -1}, ValueError, "retries must not be negative, not -1"),
        ({"retries": 2.0}, TypeError, "retries must be an int, not 2.0"),
        ({"first": 0}, ValueError, "first must be positive, not 0"),
        ({"first": "1s"}, TypeError, "first must be a timedelta or whole milliseconds, not '1s'"),
        ({"maximum": 0.5}, TypeError, "maximum must be a timedelta or whole milliseconds, not 0.5"),
        (
            {"first": 2000, "maximum": 1000},
            ValueError,
            "first (0:00:02) must not be longer than maximum (0:00:01)",
        ),
        ({"factor": 0.5}, ValueError, "factor must be at least 1, not 0.5"),
        ({"factor": float("inf")}, ValueError, "factor must be at least 1, not inf"),
        ({"factor": float("nan")}, ValueError, "factor must be at least 1, not nan"),
        ({"factor": "2"}, TypeError, "factor must be a number, not '2'"),
        ({"factor": True}, TypeError, "factor must be a number, not True"),
        ({"jitter": 1}, TypeError, "jitter must be True or False, not 1"),
        ({"on": ()}, ValueError, "on names no exception: leave it out to retry any"),
        ({"on": "ValueError"}, TypeError, "on must be an exception type or a tuple of them"),
        ({"on": 3}, TypeError, "on must be an exception type or a tuple of them, not 3"),
        ({"on": int}, TypeError, "on must contain only subclasses of Exception, not <class 'int'>"),
        ({"on": [ValueError, ValueError()]}, TypeError, "not ValueError()"),
        ({"on": KeyboardInterrupt}, TypeError, "on must contain only subclasses of Exception"),
        ({"never_on": SystemExit}, TypeError, "never_on must contain only subclasses of Exception"),
        ({"never_on": {ValueError: 1}}, TypeError, "never_on must be an exception type or a tuple"),
    ],
)
def test_invalid_exponential_strategies_are_rejected(
    options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """The message names the parameter and the value."""
    with pytest.raises(error) as raised:
        RetryStrategy.exponential(**options)
    assert reason in str(raised.value)


class AppError(Exception):
    """An error of an application."""


class PermanentError(AppError):
    """An error that does not go away."""


TASKS = ExceptionGroup


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (AppError(), True),
        (PermanentError(), False),
        (ConnectionResetError(), True),
        (JobTimeoutError(), True),
        (ValueError(), False),
        (Exception(), False),
        (TASKS("two", [AppError(), ConnectionError()]), True),
        (TASKS("mixed", [AppError(), ValueError()]), False),
        (TASKS("nested", [AppError(), TASKS("inner", [TimeoutError()])]), True),
        (TASKS("nested", [AppError(), TASKS("inner", [PermanentError()])]), False),
        (TASKS("with a request", [AppError(), RetryAfter(1)]), True),
        (RetryAfter(1), True),
    ],
    ids=repr,
)
def test_only_the_named_exceptions_are_retried(error: Exception, retried: bool) -> None:
    """Subclasses and groups are what their types say; ``RetryAfter`` is always retried."""
    strategy = RetryStrategy(
        1, on=[AppError, ConnectionError, TimeoutError], never_on=PermanentError
    )
    assert strategy.allows(error) is retried
    as_mapping = {"retries": 1, "on": strategy.on, "never_on": [PermanentError]}
    assert as_strategy(as_mapping) == strategy
    assert hash(as_strategy(as_mapping)) == hash(strategy)


def test_a_strategy_for_groups_retries_groups() -> None:
    """A group is also an exception of its own type."""
    group = ExceptionGroup("two", [ValueError()])
    assert RetryStrategy(1, on=ExceptionGroup).allows(group)
    assert not RetryStrategy(1, never_on=ExceptionGroup).allows(group)


def test_never_on_alone_retries_all_other_exceptions() -> None:
    strategy = RetryStrategy(1, never_on=PermanentError)
    assert strategy.allows(ValueError())
    assert not strategy.allows(PermanentError())
    assert not strategy.allows(ExceptionGroup("two", [ValueError(), PermanentError()]))
