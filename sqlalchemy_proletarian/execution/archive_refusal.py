"""Settling jobs that the archive may reject, each in a SAVEPOINT.

When it is tried again is decided in :mod:`..lifecycle.archive_refusal`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ..database.connections import is_lost
from ..database.error_codes import is_conflict, is_undone
from ..lifecycle.claimed import ClaimedJob, Result
from ..lifecycle.outcomes import Cancelled, Failed, Succeeded
from ..models.values import Status
from ..store.base import Store
from .decide import OutcomeDecider
from .report import Report

WrittenT = TypeVar("WrittenT")


class CautiousSettling:
    """Settles jobs one by one, and reschedules those whose rows the archive rejects."""

    def __init__(self, store: Store, decider: OutcomeDecider) -> None:
        self._store = store
        self._decider = decider

    def settle(
        self,
        connection: Connection,
        result: Result,
        report: Report,
        write: Callable[[Sequence[Result]], WrittenT],
        *,
        ended_at: datetime | None = None,
    ) -> WrittenT:
        """Write the outcome of a job, or what follows if the archive rejects its row.

        :param report: gets the result.
        :param write: writes results.
        :param ended_at: when the job ended, if the archive rejected its row before.
        :raises DatabaseNotReadyError: if the archive would reject every row.
        """
        job, outcome = result
        try:
            with connection.begin_nested():
                written = write([result])
        except DBAPIError as refusal:
            if is_lost(refusal) or is_conflict(refusal) or is_undone(refusal):
                raise
            self._store.raise_explained(connection, refusal)
            if isinstance(outcome, Succeeded):
                result = job, self._decider.decide(connection, job, refusal, report)
                return self.settle(connection, result, report, write)
            if not isinstance(outcome, Failed | Cancelled):
                raise
            result = job, self._decider.refuse(job, outcome, refusal, report, ended_at)
            written = write([result])
        report.results.append(result)
        return written

    def settle_ended(
        self,
        connection: Connection,
        jobs: Iterable[ClaimedJob],
        report: Report,
        write: Callable[[Sequence[Result]], object],
    ) -> None:
        """Move claimed jobs that ended earlier to the archive, if it accepts them now."""
        listed = list(jobs)
        endings = self._store.endings(connection, listed) if listed else {}
        for job in listed:
            # The row has the attempts and the error already.
            ending = Cancelled if job.ended_as == Status.CANCELLED else Failed
            outcome = ending(None, counted=0)
            error, ended_at = endings[job.job_id]
            self._decider.report_ended(connection, job, outcome, error, report)
            self.settle(connection, (job, outcome), report, write, ended_at=ended_at)
