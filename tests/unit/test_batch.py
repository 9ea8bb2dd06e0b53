"""Tests of the number of jobs that share a transaction."""

from __future__ import annotations

from datetime import timedelta
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_proletarian.execution.transaction.batch_size import BatchSize
from sqlalchemy_proletarian.lifecycle.claimed import ClaimedJob

WINDOW = timedelta(milliseconds=50)
ids = count()


def job(job_type: str) -> ClaimedJob:
    """Return a claimed job of the given type."""
    return ClaimedJob(next(ids), job_type, "null", 1)


def sizes(batch_size: int = 100, **seconds: float) -> BatchSize:
    """Return a pace that has recorded 100 runs of each given type."""
    made = BatchSize(batch_size, WINDOW)
    for job_type, duration in seconds.items():
        for _ in range(100):
            made.record(job_type, duration)
    return made


def test_fast_jobs_share_a_transaction_up_to_the_batch_size() -> None:
    assert sizes(100, fast=0.000_01).limit() == 100


def test_as_many_jobs_are_claimed_as_fit_into_the_window() -> None:
    """The limit is the number of jobs that are expected to finish within the window."""
    assert 4 <= sizes(100, tenth=0.010).limit() <= 5


def test_a_job_slower_than_the_window_has_its_own_transaction() -> None:
    assert sizes(100, slow=1.0).limit() == 1


def test_with_batch_size_1_every_job_has_its_own_transaction() -> None:
    """With ``batch_size=1``, even fast jobs do not share a transaction."""
    strict = sizes(1, fast=0.0)
    assert strict.limit() == 1


def test_a_new_worker_claims_one_job() -> None:
    """A worker that has not recorded any durations yet claims one job."""
    assert BatchSize(100, WINDOW).limit() == 1


def test_a_slow_or_unknown_first_job_is_claimed_alone() -> None:
    """If the most urgent job is slow or of an unknown type, all claimed jobs are released."""
    for first in (job("slow"), job("new")):
        made = sizes(fast=0.0001, slow=1.0)
        for _ in range(100):
            made.record("fast", 0.0001)
        assert made.together([first, job("fast")]) == ()
        assert made.limit() == 1
        assert made.limit() > 1


def test_a_slow_job_behind_fast_ones_is_released() -> None:
    """A slow job behind fast ones is released, so that it does not delay their commit."""
    fast, slow, other = job("fast"), job("slow"), job("fast")
    assert sizes(slow=1.0, fast=0.0001).together([fast, slow, other]) == [fast, other]


def test_a_job_claimed_alone_runs_even_if_it_is_slow() -> None:
    """A single claimed job always runs; without claimed jobs, nothing runs."""
    alone = [job("slow")]
    assert sizes(slow=1.0).together(alone) == alone
    assert sizes().together([]) == []


def test_jobs_of_a_failed_transaction_run_one_by_one() -> None:
    """After a whole transaction failed, exactly its jobs are claimed one at a time."""
    made = sizes(fast=0.0001)
    made.run_alone(3)
    assert [made.limit() for _ in range(4)] == [1, 1, 1, 100]


def test_a_type_that_becomes_slow_leaves_shared_transactions() -> None:
    """A type that becomes slow no longer shares transactions until it is fast again."""
    made = sizes(mail=0.0001)
    for _ in range(20):
        made.record("mail", 1.0)
    assert not made.fits(job("mail"))
    assert made.limit() == 1
    for _ in range(50):
        made.record("mail", 0.0001)
    assert made.fits(job("mail"))
    assert made.limit() > 10


@given(st.integers(1, 1000), st.lists(st.floats(0, 100, allow_nan=False), max_size=50))
def test_the_limit_is_between_1_and_the_batch_size(batch_size: int, seconds: list[float]) -> None:
    made = BatchSize(batch_size, WINDOW)
    for duration in seconds:
        made.record("any", duration)
        assert 1 <= made.limit() <= batch_size
