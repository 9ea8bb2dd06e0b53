"""Settling leased jobs: all in one statement, or one by one if the archive rejects one of them.

It never waits for a lock: a job whose row another session has locked is settled later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection

from ...clock import Clock
from ...errors import LeaseLostError, OwnJobRemovedError
from ...lifecycle.claimed import ClaimedJob, Result
from ...lifecycle.run import Run, RunState
from ...liveness.poison import poison_error
from ...store.base import Store
from ..archive_refusal import CautiousSettling
from ..decide import OutcomeDecider
from ..report import Report

NOT_ITS_FAULT: Final = timedelta(seconds=1)
"""The delay of a job that could not run for a reason that lies outside the job."""


@dataclass
class Settled:
    """What became of the jobs of runs that ended."""

    done: list[Run] = field(default_factory=list)
    """The runs that are finished for this worker."""
    lost: list[Run] = field(default_factory=list)
    """The runs of these whose jobs other workers had claimed meanwhile."""
    locked: bool = False
    """Whether there are other runs, whose rows other sessions have locked."""


class LeaseSettling:
    """Settles the jobs of one worker; the caller owns the transaction."""

    def __init__(self, store: Store, decider: OutcomeDecider, now: Clock) -> None:
        self._store = store
        self._decider = decider
        self._now = now
        self._cautious = CautiousSettling(store, decider)

    def settle(
        self,
        connection: Connection,
        ended: Mapping[Run, Exception | None],
        report: Report,
        *,
        one_by_one: bool,
    ) -> Settled:
        """Write the outcomes of runs that ended.

        :param ended: the runs, each with the error that its attempt raised.
        :param one_by_one: whether to write each outcome in a SAVEPOINT of its own.
        """
        settled = Settled()
        report.runs = list(ended)
        runs: list[Run] = []
        part = Report()
        for run, error in ended.items():
            if run.state is RunState.SETTLED:
                report.results.append((run.job, run.success))
                settled.done.append(run)
                continue
            reported_lost = isinstance(error, LeaseLostError)
            if run.state is RunState.LOST or (
                reported_lost and not self._store.still_held(connection, [run.job])
            ):
                settled.lost.append(run)
                settled.done.append(run)
                continue
            runs.append(run)
            if error is None:
                part.results.append((run.job, run.success))
            else:
                reason = OwnJobRemovedError() if reported_lost else error
                self._decider.fail(connection, run.job, reason, part)
        if runs:
            self._write_runs(connection, runs, part, report, settled, one_by_one=one_by_one)
        return settled

    def _write_runs(
        self,
        connection: Connection,
        runs: Sequence[Run],
        part: Report,
        report: Report,
        settled: Settled,
        *,
        one_by_one: bool,
    ) -> None:
        written = self._write(connection, part, report, one_by_one=one_by_one)
        rest = [run for run in runs if run.job.job_id not in written]
        locked = self._store.still_held(connection, [run.job for run in rest]) if rest else set()
        settled.locked = bool(locked)
        settled.lost += [
            run for run in rest if not (run.state is RunState.IN_DOUBT or run.job.job_id in locked)
        ]
        settled.done += [run for run in runs if run.job.job_id not in locked]

    def fail_poison(
        self,
        connection: Connection,
        poison: Iterable[tuple[ClaimedJob, str | None]],
        report: Report,
    ) -> None:
        """Fail claimed jobs by the poison rule.

        :param poison: the jobs, each with the last worker that crashed, if known.
        """
        part = Report()
        listed = list(poison)
        if listed:
            self._store.count_deaths(connection, [job for job, _ in listed])
        for job, worker in listed:
            self._decider.fail(connection, job, poison_error(job, worker), part)
        self._write(connection, part, report, one_by_one=True)

    def archive_ended(
        self, connection: Connection, ended: Iterable[ClaimedJob], report: Report
    ) -> None:
        """Move claimed jobs that ended earlier to the archive, if it accepts them now."""
        write = partial(self._write_results, connection)
        self._cautious.settle_ended(connection, ended, report, write)

    def _write(
        self, connection: Connection, part: Report, report: Report, *, one_by_one: bool
    ) -> set[Any]:
        """Write results, and return the ids of the jobs that were written.

        :param report: gets the results and failures of these jobs.
        """
        written: set[Any] = set()
        if one_by_one:
            results, part.results = part.results, []
            write = partial(self._write_results, connection)
            for result in results:
                written |= self._cautious.settle(connection, result, part, write)
        else:
            written = self._write_results(connection, part.results)
        report.results += [result for result in part.results if result[0].job_id in written]
        report.failures += [f for f in part.failures if f.job.job_id in written]
        return written

    def _write_results(self, connection: Connection, results: Sequence[Result]) -> set[Any]:
        return self._store.settle_leased(connection, results, self._now(), wait=False)
