"""Writing how leased jobs ended: all in one statement, or each apart where one of them is refused.

Nobody's lock is waited for: a job whose row somebody has locked is settled later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection

from ...errors import LeaseLostError, OwnJobRemovedError
from ...lifecycle.claimed import ClaimedJob, Result
from ...lifecycle.outcomes import SUCCEEDED
from ...lifecycle.run import Run
from ...liveness.poison import poison_error
from ..archive_refusal import settle_apart, settle_ended
from ..perform import Performer, Report

PAUSE = timedelta(seconds=1)
"""How long a job is put off that could not run for a reason that is not its own."""


@dataclass
class Settled:
    """What became of runs that have ended."""

    off: list[Run] = field(default_factory=list)
    """Those whose jobs are off the worker's hands."""
    lost: list[Run] = field(default_factory=list)
    """Those whose jobs somebody else had taken meanwhile."""
    locked: bool = False
    """Whether there are others, whose rows somebody has locked."""


class Settling:
    """Settles the jobs of one worker; the caller owns the transaction."""

    def __init__(self, performer: Performer) -> None:
        self._performer = performer
        self._store = performer.store

    def settle(
        self,
        connection: Connection,
        ended: Mapping[Run, Exception | None],
        report: Report,
        *,
        apart: bool,
    ) -> Settled:
        """Write how runs ended.

        :param apart: each in a SAVEPOINT of its own.
        """
        settled = Settled()
        runs: list[Run] = []
        part = Report()
        for run, error in ended.items():
            if run.settled:
                report.results.append((run.job, SUCCEEDED))
                settled.off.append(run)
                continue
            said_lost = isinstance(error, LeaseLostError)
            if run.lost or (said_lost and not self._store.still_held(connection, [run.job])):
                settled.lost.append(run)
                settled.off.append(run)
                continue
            runs.append(run)
            if error is None:
                part.results.append((run.job, SUCCEEDED))
            else:
                reason = OwnJobRemovedError() if said_lost else error
                self._performer.failed(connection, run.job, reason, part)
        if not runs:
            return settled
        written = self._write(connection, part, report, apart=apart)
        rest = [run for run in runs if run.job.job_id not in written]
        locked = self._store.still_held(connection, [run.job for run in rest])
        settled.locked = bool(locked)
        settled.lost += [run for run in rest if not (run.in_doubt or run.job.job_id in locked)]
        settled.off += [run for run in runs if run.job.job_id not in locked]
        return settled

    def bury(
        self,
        connection: Connection,
        poison: Iterable[tuple[ClaimedJob, str | None]],
        report: Report,
    ) -> None:
        """Fail claimed jobs that have used up their deaths.

        :param poison: the jobs, with the last worker that died, where it is known.
        """
        part = Report()
        listed = list(poison)
        if listed:
            self._store.count_deaths(connection, [job for job, _ in listed])
        for job, worker in listed:
            self._performer.failed(connection, job, poison_error(job, worker), part)
        self._write(connection, part, report, apart=True)

    def archive_ended(
        self, connection: Connection, claimed: Iterable[ClaimedJob], report: Report
    ) -> None:
        """Ask the archive once more to take those claimed jobs that have ended."""
        ended = [job for job in claimed if job.ended_as]
        settle_ended(self._performer, connection, ended, report, partial(self._settle, connection))

    def _write(
        self, connection: Connection, part: Report, report: Report, *, apart: bool
    ) -> set[Any]:
        """Write a part, and return the ids of what is written.

        :param report: is told of that.
        """
        written: set[Any] = set()
        if apart:
            results, part.results = part.results, []
            settle = partial(self._settle, connection)
            for result in results:
                written |= settle_apart(self._performer, connection, result, part, settle)
        else:
            written = self._settle(connection, part.results)
        report.results += [result for result in part.results if result[0].job_id in written]
        report.failures += [f for f in part.failures if f.job.job_id in written]
        return written

    def _settle(self, connection: Connection, results: Sequence[Result]) -> set[Any]:
        now = self._performer.now()
        return self._store.settle_leased(connection, results, now, wait=False)
