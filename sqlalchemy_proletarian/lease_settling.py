"""Writing how leased jobs ended: all in one statement, or each apart where one of them is refused.

Nobody's lock is waited for: a job whose row somebody has locked is settled later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .connect import is_lost
from .dialects import is_conflict
from .errors import LeaseLostError, OwnJobRemovedError, WorkerDiedError
from .outcomes import SUCCEEDED, Retried
from .perform import Performer, Report
from .runs import Run
from .store import ClaimedJob, Result

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
    """Settles the jobs of one worker; the caller owns the transaction.

    :param lease: how long a job is put off whose outcome the database refuses, at the least.
    """

    def __init__(self, performer: Performer, lease: timedelta) -> None:
        self._performer = performer
        self._store = performer.store
        self._pause = max(lease, PAUSE)

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
            if said_lost and (run.lost or not self._store.still_held(connection, [run.job])):
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
        written, refused = self._write(connection, part, report, apart=apart)
        rest = [run for run in runs if run.job.job_id not in written | refused]
        locked = self._store.still_held(connection, [run.job for run in rest])
        settled.locked = bool(locked)
        settled.lost += [run for run in rest if not (run.in_doubt or run.job.job_id in locked)]
        settled.off += [run for run in runs if run.job.job_id not in locked]
        return settled

    def bury(
        self,
        connection: Connection,
        claimed: Iterable[ClaimedJob],
        killers: Mapping[Any, str],
        report: Report,
    ) -> None:
        """Settle claimed jobs whose last attempt, which is counted, never ended.

        :param killers: what to say of them, by job id.
        """
        part = Report()
        for job in claimed:
            if reason := killers.get(job.job_id):
                dead = job._replace(attempts=job.attempts - 1)
                self._performer.failed(connection, dead, WorkerDiedError(reason), part)
        self._write(connection, part, report, apart=True)

    def _write(
        self, connection: Connection, part: Report, report: Report, *, apart: bool
    ) -> tuple[set[Any], set[Any]]:
        """Write a part; return the ids of what is written, and of what the database refuses.

        :param report: is told of what is written.
        """
        if apart:
            written, refused = self._write_apart(connection, part.results)
        else:
            now = self._performer.now()
            written = self._store.settle_leased(connection, part.results, now, wait=False)
            refused = set()
        report.results += [result for result in part.results if result[0].job_id in written]
        report.failures += [f for f in part.failures if f.job.job_id in written]
        return written, refused

    def _write_apart(
        self, connection: Connection, results: Sequence[Result]
    ) -> tuple[set[Any], set[Any]]:
        now = self._performer.now()
        written: set[Any] = set()
        refused: set[Any] = set()
        for job, outcome in results:
            try:
                with connection.begin_nested():
                    written |= self._store.settle_leased(
                        connection, [(job, outcome)], now, wait=False
                    )
            except DBAPIError as error:
                if is_lost(error) or is_conflict(error):
                    raise
                # Somebody has to look at this one; until then it must not run without a pause.
                self._performer.events.emit("polling-error", error)
                put_off = Retried(now + self._pause, self._performer.text_of(error))
                self._store.settle_leased(connection, [(job, put_off)], now, wait=False)
                refused.add(job.job_id)
        return written, refused
