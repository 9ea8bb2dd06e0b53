"""Tests of the retry delays, compared with a simple model."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_proletarian import Discard, RetryAfter, RetryStrategy, Snooze
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
        ({}, "has the keys 'retries' and, optionally, 'delays'; got none"),
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
