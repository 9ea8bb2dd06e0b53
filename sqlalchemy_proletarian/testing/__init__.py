"""Helpers for tests of your own code: which jobs it enqueues, and what they do.

::

    def test_sign_up(session):
        sign_up(session, "ada@example.com")
        assert_enqueued(session, "welcome", payload={"email": "ada@example.com"})
        [run] = drain(session, handlers)
        assert run.outcome == "success"

All of it works inside the transaction of your test, which may roll it back at the end. Jobs are
claimed, run, retried and archived by the code and the statements of a worker. For an
``AsyncSession``, use :mod:`sqlalchemy_proletarian.testing.asyncio`.
"""

from .assertions import assert_enqueued, assert_not_enqueued
from .draining import DrainOptions, drain
from .enqueued_jobs import EnqueuedJob, enqueued
from .frozen_clock import FrozenClock
from .job_runs import JobRun, Outcome
from .performing import perform

__all__ = [
    "DrainOptions",
    "EnqueuedJob",
    "FrozenClock",
    "JobRun",
    "Outcome",
    "assert_enqueued",
    "assert_not_enqueued",
    "drain",
    "enqueued",
    "perform",
]
