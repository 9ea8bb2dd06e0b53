"""Tests of the retries after the archive rejected the row of an ended job."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sqlalchemy_proletarian import utcnow
from sqlalchemy_proletarian.lifecycle.archive_refusal import refused
from sqlalchemy_proletarian.lifecycle.outcomes import Cancelled, Failed

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("ended_minutes_ago", "delay"),
    [(None, 1), (1, 2), (3, 4), (31, 32), (63, 60), (5000, 60), (-1, 1)],
)
def test_the_delay_doubles_up_to_an_hour(ended_minutes_ago: int | None, delay: int) -> None:
    """Archiving is tried again after 1, 2, 4, … minutes, but at most after one hour."""
    now = utcnow()
    ended_at = None if ended_minutes_ago is None else now - ended_minutes_ago * MINUTE
    retry = refused(Failed("no"), "NotNullViolation", now, ended_at)
    assert retry.process_at == now + delay * MINUTE
    assert retry.ended_at == (ended_at or now)


def test_the_outcome_of_the_ended_job_is_kept() -> None:
    """Status, error and counted attempts do not change while the job waits to be archived."""
    retry = refused(Cancelled("not needed", counted=0), "no room", utcnow(), None)
    assert (retry.ended_as, retry.error, retry.counted) == ("cancelled", "not needed", 0)
    assert retry.refusal == "no room"
