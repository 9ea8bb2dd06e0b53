"""Jobs that have ended, and that the archive refuses: one rule, however they are held.

A column of the archive's own wants a value, or the job's id is there already: it is the archive
that somebody has to mend, and no run of a handler does. So

- a success that is refused is a failed attempt, as what the handler wrote is undone with it, and
  the retry strategy decides;
- a job that has ended for good stays in its queue, and its handler does not run again. It is put
  off by a minute, then by twice as long each time, up to an hour, until the archive takes it.

The row says so in columns of its own: ``ended_as``, ``ended_at`` and ``refusal``.
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
from ..lifecycle.outcomes import SUCCEEDED, Cancelled, Failed
from ..models.values import Status
from .perform import Performer, Report

WrittenT = TypeVar("WrittenT")


def settle_apart(
    performer: Performer,
    connection: Connection,
    result: Result,
    report: Report,
    settle: Callable[[Sequence[Result]], WrittenT],
    *,
    ended_at: datetime | None = None,
) -> WrittenT:
    """Write in a SAVEPOINT how a job ended, or what becomes of it if the archive refuses its row.

    :param report: gets the result.
    :param settle: writes results.
    :param ended_at: when the job ended, if the archive refused its row before.
    """
    job, outcome = result
    try:
        with connection.begin_nested():
            written = settle([result])
    except DBAPIError as refusal:
        if is_lost(refusal) or is_conflict(refusal) or is_undone(refusal):
            raise
        performer.store.raise_explained(connection, refusal)
        if outcome is SUCCEEDED:
            result = job, performer.outcome(connection, job, refusal, report)
            return settle_apart(performer, connection, result, report, settle)
        if not isinstance(outcome, Failed | Cancelled):
            raise
        result = job, performer.refused(job, outcome, refusal, report, ended_at)
        written = settle([result])
    report.results.append(result)
    return written


def settle_ended(
    performer: Performer,
    connection: Connection,
    jobs: Iterable[ClaimedJob],
    report: Report,
    settle: Callable[[Sequence[Result]], object],
) -> None:
    """Ask the archive again to take jobs that have ended.

    :param jobs: as they were claimed.
    """
    listed = list(jobs)
    endings = performer.store.endings(connection, listed) if listed else {}
    for job in listed:
        # The row has their attempts and error already.
        ending = Cancelled if job.ended_as == Status.CANCELLED else Failed
        ended = ending(None, counted=0)
        error, ended_at = endings[job.job_id]
        performer.ended(connection, job, ended, error, report)
        settle_apart(performer, connection, (job, ended), report, settle, ended_at=ended_at)
