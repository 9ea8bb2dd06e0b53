"""Measuring runs, and passing them to observers while their handlers run."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from ..clock import Clock
from ..lifecycle.claimed import ClaimedJob
from ..lifecycle.run import Run
from ..telemetry.events import Events
from ..telemetry.observers import ObservedRun, Observers

_NOTHING = timedelta(0)


class RunObserver:
    """Measures the runs of one worker.

    :param observers: are called around each handler.
    :param now: the clock of the due times.
    """

    def __init__(self, observers: Observers, now: Clock) -> None:
        self._observers = observers
        self._now = now

    @contextmanager
    def around(self, run: Run) -> Generator[None]:
        """Measure a run, or all runs of a call of a batch handler."""
        now = self._now()
        started = []
        before = [each.observed for each in run.members if each.observed is not None]
        if before:  # the call of a batch handler that is repeated with fewer jobs
            undone(self._observers, before)
        for each in run.members:
            each.observed = observed_run(each.job)
            if each.job.process_at is not None:
                each.observed.wait = max(now - each.job.process_at, _NOTHING).total_seconds()
            started.append(each.observed)
        with self._observers.around(started):
            yield


def run_observer(observers: Observers, events: Events, now: Clock) -> RunObserver | None:
    """Return what measures runs; None if neither an observer nor the log asks for it."""
    if observers or events.is_enabled(logging.INFO):
        return RunObserver(observers, now)
    return None


def undone(observers: Observers, runs: Sequence[ObservedRun]) -> None:
    """Pass on runs to observers whose jobs run again."""
    for run in runs:
        run.outcome = run.outcome or "undone"
    if observers:
        observers.undone(runs)


def observed_run(job: ClaimedJob) -> ObservedRun:
    """Return what observers see of a job."""
    return ObservedRun(job.job_id, job.job_type, job.queue, job.attempts, job.headers)
