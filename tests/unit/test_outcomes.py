"""How a run of a job ends, case by case."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_proletarian import Discard, RetryAfter, RetryStrategy, Snooze, Status
from sqlalchemy_proletarian.lifecycle.outcomes import (
    MAX_ERROR_LENGTH,
    SUCCEEDED,
    Cancelled,
    Failed,
    Outcome,
    Retried,
    Snoozed,
    error_text,
    outcome_of,
)

NOW = datetime(2024, 2, 29, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
TWICE = RetryStrategy(2, [SECOND, 5 * SECOND])


def ends(error: Exception, attempts: int, strategy: RetryStrategy | None) -> Outcome:
    """Return how the attempt ends that raised ``error``."""
    return outcome_of(error, attempts=attempts, strategy=strategy, now=NOW, text=error_text)


@pytest.mark.parametrize(("attempts", "delay"), [(1, SECOND), (2, 5 * SECOND)])
def test_retry(attempts: int, delay: timedelta) -> None:
    """A failed attempt with a retry left runs again after its delay, and counts."""
    outcome = ends(ValueError("no"), attempts, TWICE)
    assert isinstance(outcome, Retried)
    assert outcome.process_at == NOW + delay
    assert outcome.counted == 1
    assert "ValueError: no" in outcome.error


@pytest.mark.parametrize("strategy", [None, TWICE])
def test_no_retry_left(strategy: RetryStrategy | None) -> None:
    """Without a strategy, or without a retry left in it, the job has failed."""
    outcome = ends(ValueError("no"), 3, strategy)
    assert isinstance(outcome, Failed)
    assert outcome.status is Status.FAILURE
    assert "ValueError: no" in outcome.error


@pytest.mark.parametrize("strategy", [None, RetryStrategy(0), TWICE])
def test_snooze(strategy: RetryStrategy | None) -> None:
    """A snoozed job comes back and nothing is counted, however often it was snoozed before."""
    outcome = ends(Snooze(7 * SECOND), 1000, strategy)
    assert outcome == Snoozed(NOW + 7 * SECOND)
    assert isinstance(outcome, Snoozed)
    assert (outcome.counted, outcome.error) == (0, None)


def test_discard() -> None:
    """A discarded job fails although retries are left."""
    outcome = ends(Discard("no such user"), 1, TWICE)
    assert isinstance(outcome, Failed)
    assert "no such user" in outcome.error


def test_retry_after_moves_the_delay_only() -> None:
    """RetryAfter says when, the strategy still says how often."""
    assert ends(RetryAfter(90 * SECOND), 2, TWICE).process_at == NOW + 90 * SECOND  # type: ignore[union-attr]
    assert isinstance(ends(RetryAfter(90 * SECOND), 3, TWICE), Failed)


def test_retry_after_without_a_strategy() -> None:
    """Where the type has no strategy, RetryAfter is always granted."""
    outcome = ends(RetryAfter(SECOND, "busy"), 500, None)
    assert isinstance(outcome, Retried)
    assert outcome.process_at == NOW + SECOND
    assert outcome.error.endswith("RetryAfter: busy")


def test_statuses() -> None:
    """The archive's three statuses are the ones a reader of the table expects."""
    assert [SUCCEEDED.status, Failed("").status, Cancelled("").status] == [
        "success",
        "failure",
        "cancelled",
    ]


def test_error_names_the_cause() -> None:
    """The kept error is the whole traceback, the exception that led to it included."""
    try:
        try:
            {}["missing"]
        except KeyError as error:
            raise RuntimeError("cannot go on") from error
    except RuntimeError as error:
        text = error_text(error)
    assert "KeyError: 'missing'" in text
    assert __file__ in text
    assert text.endswith("RuntimeError: cannot go on")


def test_long_error_keeps_its_end() -> None:
    """Of a very long error the end is kept: it says what happened."""
    text = error_text(ValueError("x" * 10**6 + " the point"))
    assert len(text) == MAX_ERROR_LENGTH + 1
    assert text.startswith("…")
    assert text.endswith(" the point")


@given(st.text(st.characters(), max_size=50))
def test_error_can_be_stored(message: str) -> None:
    """Whatever an exception says, its text can be stored: no NUL, no lone surrogate."""
    text = error_text(ValueError(message))
    assert "\0" not in text
    assert text.encode().decode() == text
