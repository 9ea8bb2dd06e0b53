"""What stands in the row of a job that has ended, and that the archive refuses."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sqlalchemy_proletarian import utcnow
from sqlalchemy_proletarian.outcomes import Cancelled, Failed
from sqlalchemy_proletarian.refusals import FIRST_PAUSE, ended_as, put_off


@pytest.mark.parametrize("outcome", [Failed("what\n\nwas"), Failed(""), Cancelled("not needed")])
def test_how_a_job_ended_can_be_read_again(outcome: Failed | Cancelled) -> None:
    """How it ended, with what error, and how long it was put off: all of it comes back."""
    refused = put_off(outcome, "NotNullViolation:\n  no", utcnow(), timedelta(minutes=4))
    assert ended_as(refused.error) == (outcome, timedelta(minutes=4))
    assert refused.counted == 1


def test_pauses_have_an_end() -> None:
    """However often the archive refuses a job, it is asked again after an hour."""
    now = utcnow()
    refused = put_off(Failed("no"), "", now, timedelta(days=2))
    assert refused.process_at == now + timedelta(hours=1)
    assert ended_as(refused.error) == (Failed("no"), timedelta(hours=1))


def test_a_row_that_somebody_has_edited() -> None:
    """What cannot be read is kept whole: the job has failed, and waits as at first."""
    error = "ArchiveRefusedError: I looked into it"
    assert ended_as(error) == (Failed(error), FIRST_PAUSE)
