"""Tests of the outcome of an attempt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

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


def outcome_after(error: Exception, attempts: int, strategy: RetryStrategy | None) -> Outcome:
    """Return the outcome of an attempt that raised ``error``."""
    return outcome_of(error, attempts=attempts, strategy=strategy, now=NOW, text=error_text)


@pytest.mark.parametrize(("attempts", "delay"), [(1, SECOND), (2, 5 * SECOND)])
def test_a_failed_attempt_is_retried_after_its_delay(attempts: int, delay: timedelta) -> None:
    """A failed attempt with a retry left is rescheduled and counted."""
    outcome = outcome_after(ValueError("no"), attempts, TWICE)
    assert isinstance(outcome, Retried)
    assert outcome.process_at == NOW + delay
    assert outcome.counted == 1
    assert "ValueError: no" in outcome.error


@pytest.mark.parametrize("strategy", [None, TWICE])
def test_a_job_without_retries_left_fails(strategy: RetryStrategy | None) -> None:
    """A job fails if it has no strategy or its strategy has no retry left."""
    outcome = outcome_after(ValueError("no"), 3, strategy)
    assert isinstance(outcome, Failed)
    assert outcome.status is Status.FAILURE
    assert "ValueError: no" in outcome.error


@pytest.mark.parametrize("strategy", [None, RetryStrategy(0), TWICE])
def test_a_snoozed_job_is_rescheduled_and_not_counted(strategy: RetryStrategy | None) -> None:
    """A snooze does not count as an attempt, however often the job was snoozed before."""
    outcome = outcome_after(Snooze(7 * SECOND), 1000, strategy)
    assert outcome == Snoozed(NOW + 7 * SECOND)
    assert isinstance(outcome, Snoozed)
    assert (outcome.counted, outcome.error) == (0, None)


def test_a_discarded_job_fails_although_retries_are_left() -> None:
    outcome = outcome_after(Discard("no such user"), 1, TWICE)
    assert isinstance(outcome, Failed)
    assert "no such user" in outcome.error


def test_retry_after_replaces_only_the_delay() -> None:
    """``RetryAfter`` sets the delay; the strategy still limits the number of retries."""
    assert outcome_after(RetryAfter(90 * SECOND), 2, TWICE).process_at == NOW + 90 * SECOND  # type: ignore[union-attr]
    assert isinstance(outcome_after(RetryAfter(90 * SECOND), 3, TWICE), Failed)


def test_retry_after_without_a_strategy_always_retries() -> None:
    outcome = outcome_after(RetryAfter(SECOND, "busy"), 500, None)
    assert isinstance(outcome, Retried)
    assert outcome.process_at == NOW + SECOND
    assert outcome.error.endswith("RetryAfter: busy")


@pytest.mark.parametrize("filtered", [{"on": ConnectionError}, {"never_on": ValueError}])
def test_an_error_that_the_strategy_does_not_retry_fails_the_job(filtered: dict[str, Any]) -> None:
    """The filter does not apply to ``RetryAfter``, to snoozes, and to other errors."""
    strategy = RetryStrategy(2, [SECOND], **filtered)
    failed = outcome_after(ValueError("no"), 1, strategy)
    assert isinstance(failed, Failed)
    assert "ValueError: no" in str(failed.error)
    assert isinstance(outcome_after(ConnectionError(), 1, strategy), Retried)
    assert outcome_after(RetryAfter(9 * SECOND), 1, strategy).process_at == NOW + 9 * SECOND  # type: ignore[union-attr]
    assert isinstance(outcome_after(RetryAfter(9 * SECOND), 3, strategy), Failed)
    assert isinstance(outcome_after(Snooze(SECOND), 1, strategy), Snoozed)


def test_names_of_the_archived_statuses() -> None:
    assert [SUCCEEDED.status, Failed("").status, Cancelled("").status] == [
        "success",
        "failure",
        "cancelled",
    ]


def test_the_stored_error_includes_the_cause() -> None:
    """The stored error is the full traceback, including the chained exception."""
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


def test_a_long_error_is_truncated_at_its_start() -> None:
    """The end of a very long error is kept, because it describes what happened."""
    text = error_text(ValueError("x" * 10**6 + " the point"))
    assert len(text) == MAX_ERROR_LENGTH + 1
    assert text.startswith("…")
    assert text.endswith(" the point")


@given(st.text(st.characters(), max_size=50))
def test_every_error_text_can_be_stored(message: str) -> None:
    """The stored text has no NUL and no lone surrogate."""
    text = error_text(ValueError(message))
    assert "\0" not in text
    assert text.encode().decode() == text
