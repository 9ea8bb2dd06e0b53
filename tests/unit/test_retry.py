"""The arithmetic of retries, against the plainest model of it."""

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
    """Fail until no retry is left, and return the waits."""
    waits = []
    while (wait := strategy.delay_after(len(waits) + 1)) is not None:
        waits.append(wait)
    return waits


@given(retries, st.lists(durations, max_size=8))
def test_nth_delay_before_nth_retry(retries: int, delays: list[timedelta]) -> None:
    """The nth delay is waited before the nth retry, and the last one repeats."""
    expected = []
    left = list(delays)
    for _ in range(retries):
        wait = left[0] if left else timedelta(0)
        expected.append(wait)
        if len(left) > 1:
            left.pop(0)
    assert schedule(RetryStrategy(retries, delays)) == expected


@given(retries, st.lists(milliseconds, max_size=8))
def test_whole_numbers_are_milliseconds(retries: int, delays: list[int]) -> None:
    """Whole numbers are milliseconds, everywhere a timedelta may stand."""
    as_timedeltas = [timedelta(milliseconds=delay) for delay in delays]
    assert RetryStrategy(retries, delays) == RetryStrategy(retries, as_timedeltas)
    assert hash(RetryStrategy(retries, delays)) == hash(RetryStrategy(retries, as_timedeltas))


@given(retries, st.lists(st.one_of(milliseconds, durations), max_size=8))
def test_mapping_form(retries: int, delays: list[timedelta | int]) -> None:
    """The mapping form means what the class does."""
    assert as_strategy({"retries": retries, "delays": delays}) == RetryStrategy(retries, delays)


@given(st.lists(durations, max_size=4), st.integers(1, 100))
def test_no_retry_left(delays: list[timedelta], attempts: int) -> None:
    """Zero retries never run a job a second time, whatever delays are given."""
    assert RetryStrategy(0, delays).delay_after(attempts) is None


def test_documented_example() -> None:
    """Four retries with 2 and 10 seconds wait 2, 10, 10 and 10 seconds: five runs in all."""
    strategy = RetryStrategy(retries=4, delays=[2 * SECOND, 10 * SECOND])
    assert schedule(strategy) == [2 * SECOND, 10 * SECOND, 10 * SECOND, 10 * SECOND]


def test_delays_are_copied() -> None:
    """Changing the list of delays later does not change a strategy."""
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
def test_invalid_strategies(
    retries: object, delays: object, error: type[Exception], reason: str
) -> None:
    """An invalid strategy is refused where it is written, with the reason, in either form."""
    with pytest.raises(error) as of_class:
        RetryStrategy(retries, delays)  # type: ignore[arg-type]
    with pytest.raises(error) as of_mapping:
        as_strategy({"retries": retries, "delays": delays})
    assert reason in str(of_class.value)
    assert reason in str(of_mapping.value)


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
def test_what_is_no_strategy(value: object, reason: str) -> None:
    """What is no strategy is refused, and a misspelt key is named."""
    with pytest.raises(TypeError) as refusal:
        as_strategy(value)  # type: ignore[arg-type]
    assert reason in str(refusal.value)


def test_none_and_missing_delays() -> None:
    """None is no retry, and a mapping may leave out the delays."""
    assert schedule(as_strategy(None)) == []
    assert schedule(as_strategy({"retries": 2})) == [timedelta(0), timedelta(0)]
    assert schedule(as_strategy({"retries": 1, "delays": None})) == [timedelta(0)]


def test_exceptions_of_handlers_take_both_units() -> None:
    """RetryAfter and Snooze take timedeltas and milliseconds, and say what they ask for."""
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
def test_exceptions_refuse_bad_delays(
    exception: type[Exception], delay: object, error: type[Exception], reason: str
) -> None:
    """A delay that is none is refused where the handler raises it."""
    with pytest.raises(error, match=reason):
        exception(delay)
