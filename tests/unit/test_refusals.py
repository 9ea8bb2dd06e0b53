"""When the archive is asked again that refuses a job which has ended."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sqlalchemy_proletarian import utcnow
from sqlalchemy_proletarian.lifecycle.outcomes import Cancelled, Failed, refused

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("ended_before", "pause"), [(None, 1), (1, 2), (3, 4), (31, 32), (63, 60), (5000, 60), (-1, 1)]
)
def test_pauses_double_up_to_an_hour(ended_before: int | None, pause: int) -> None:
    """The archive is asked again after 1, 2, 4 … minutes, and after an hour at the most."""
    now = utcnow()
    ended_at = None if ended_before is None else now - ended_before * MINUTE
    waits = refused(Failed("no"), "NotNullViolation", now, ended_at)
    assert waits.process_at == now + pause * MINUTE
    assert waits.ended_at == (ended_at or now)


def test_what_is_kept_of_a_job_that_has_ended() -> None:
    """Its status, its error and the attempts that count are those with which it ended."""
    waits = refused(Cancelled("not needed", counted=0), "no room", utcnow(), None)
    assert (waits.ended_as, waits.error, waits.counted) == ("cancelled", "not needed", 0)
    assert waits.refusal == "no room"
