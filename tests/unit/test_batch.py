"""How many jobs share a transaction."""

from __future__ import annotations

from datetime import timedelta
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_proletarian.execution.transaction.batch_size import Pace
from sqlalchemy_proletarian.lifecycle.claimed import ClaimedJob

WINDOW = timedelta(milliseconds=50)
ids = count()


def job(job_type: str) -> ClaimedJob:
    """Return a claimed job of a type."""
    return ClaimedJob(next(ids), job_type, "null", 1)


def pace(batch_size: int = 100, **seconds: float) -> Pace:
    """Return a pace that has met each type often."""
    made = Pace(batch_size, WINDOW)
    for job_type, duration in seconds.items():
        for _ in range(100):
            made.record(job_type, duration)
    return made


def test_fast_jobs_fill_the_batch() -> None:
    """Jobs that take next to nothing share a transaction, as many as the batch may hold."""
    assert pace(100, fast=0.000_01).limit() == 100


def test_jobs_fill_the_window() -> None:
    """As many jobs are claimed as are expected to finish within the window."""
    assert 4 <= pace(100, tenth=0.010).limit() <= 5


def test_slow_jobs_run_one_per_transaction() -> None:
    """A job slower than the window never shares its transaction."""
    assert pace(100, slow=1.0).limit() == 1


def test_strict_mode() -> None:
    """With batch_size 1 every job has a transaction of its own, however fast it is."""
    strict = pace(1, fast=0.0)
    assert strict.limit() == 1


def test_first_job_of_a_worker_runs_alone() -> None:
    """A worker that knows nothing yet claims one job."""
    assert Pace(100, WINDOW).limit() == 1


def test_slow_or_unknown_job_lets_go_of_the_others() -> None:
    """When the most urgent job is slow or new, all are let go of and it is claimed alone."""
    for first in (job("slow"), job("new")):
        knowing = pace(fast=0.0001, slow=1.0)
        for _ in range(100):
            knowing.record("fast", 0.0001)
        assert knowing.together([first, job("fast")]) == ()
        assert knowing.limit() == 1
        assert knowing.limit() > 1


def test_slow_job_further_back_waits() -> None:
    """A slow job behind fast ones goes back to the queue; it does not hold up their commit."""
    fast, slow, other = job("fast"), job("slow"), job("fast")
    assert pace(slow=1.0, fast=0.0001).together([fast, slow, other]) == [fast, other]


def test_one_job_has_nobody_to_wait_for_it() -> None:
    """A job claimed alone runs, slow or not; nothing claimed is nothing to run."""
    alone = [job("slow")]
    assert pace(slow=1.0).together(alone) == alone
    assert pace().together([]) == []


def test_after_trouble_jobs_run_one_by_one() -> None:
    """The jobs of a transaction that failed as a whole run alone next, and only they."""
    knowing = pace(fast=0.0001)
    knowing.run_alone(3)
    assert [knowing.limit() for _ in range(4)] == [1, 1, 1, 100]


def test_a_type_that_slows_down_is_noticed() -> None:
    """A fast type that becomes slow leaves the shared transactions, and comes back when fast."""
    knowing = pace(mail=0.0001)
    for _ in range(20):
        knowing.record("mail", 1.0)
    assert not knowing.fits(job("mail"))
    assert knowing.limit() == 1
    for _ in range(50):
        knowing.record("mail", 0.0001)
    assert knowing.fits(job("mail"))
    assert knowing.limit() > 10


@given(st.integers(1, 1000), st.lists(st.floats(0, 100, allow_nan=False), max_size=50))
def test_limit_keeps_its_bounds(batch_size: int, seconds: list[float]) -> None:
    """Whatever jobs take, at least one is claimed and never more than the batch may hold."""
    made = Pace(batch_size, WINDOW)
    for duration in seconds:
        made.record("any", duration)
        assert 1 <= made.limit() <= batch_size
