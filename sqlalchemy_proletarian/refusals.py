"""Jobs that have ended, and that the archive refuses: one rule, however they are held.

A column of the archive's own wants a value, or the job's id is there already: it is the archive
that somebody has to mend, and no run of a handler does. So

- a success that is refused is a failed attempt, as what the handler wrote is undone with it, and
  the retry strategy decides;
- a job that has ended for good stays in its queue, and its handler does not run again. It is put
  off by a minute, then by twice as long each time, up to an hour, until the archive takes it.

That it has ended stands in its ``error``, before what it ended with: there is no column for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import ColumnElement, Connection, false, func
from sqlalchemy.exc import DBAPIError

from .connect import is_lost
from .dialects import is_conflict, is_undone
from .errors import ArchiveRefusedError
from .models import Status
from .outcomes import SUCCEEDED, Cancelled, Failed, Refused

if TYPE_CHECKING:
    from .claims import ClaimedJob, Result
    from .perform import Performer, Report

WrittenT = TypeVar("WrittenT")

FIRST_PAUSE: Final = timedelta(minutes=1)
_LONGEST_PAUSE: Final = timedelta(hours=1)

_MARK: Final = f"{ArchiveRefusedError.__name__}: "
_SAID: Final = re.compile(rf"{_MARK}the archive refuses .* ended as '(\w+)'.* in (\d+) seconds\n")
_BEFORE: Final = "\n\nIt ended with:\n"


def has_ended(error: Any) -> ColumnElement[bool]:
    """Tell whether a job has ended and was refused by the archive.

    :param error: the column.
    """
    return func.coalesce(error.startswith(_MARK), false())


def put_off(outcome: Failed | Cancelled, said: str, now: datetime, pause: timedelta) -> Refused:
    """Return what becomes of a job that ended, and that the archive refuses.

    :param said: by the database.
    """
    pause = min(pause, _LONGEST_PAUSE)
    seconds = round(pause.total_seconds())
    reason = (
        f"{_MARK}the archive refuses this job, which has ended as {outcome.status.value!r}; it is "
        f"asked again in {seconds} seconds"
    )
    error = f"{reason}\n{said}{_BEFORE}{outcome.error}"
    return Refused(now + pause, error, outcome.counted)


def ended_as(error: str) -> tuple[Failed | Cancelled, timedelta]:
    """Return how a job has ended, and how long it was put off the last time.

    :param error: what its row says.
    """
    said = _SAID.match(error)
    _, divided, before = error.partition(_BEFORE)
    cancelled = said is not None and said[1] == Status.CANCELLED
    outcome = (Cancelled if cancelled else Failed)(before if divided else error)
    return outcome, FIRST_PAUSE if said is None else timedelta(seconds=int(said[2]))


def settle_apart(
    performer: Performer,
    connection: Connection,
    result: Result,
    report: Report,
    settle: Callable[[Sequence[Result]], WrittenT],
    *,
    pause: timedelta = FIRST_PAUSE,
) -> WrittenT:
    """Write in a SAVEPOINT how a job ended, or what becomes of it where the archive refuses it.

    :param report: is told of it.
    :param settle: writes results.
    """
    job, outcome = result
    try:
        with connection.begin_nested():
            written = settle([result])
    except DBAPIError as refusal:
        if is_lost(refusal) or is_conflict(refusal) or is_undone(refusal):
            raise
        if outcome is SUCCEEDED:
            result = job, performer.outcome(connection, job, refusal, report)
            return settle_apart(performer, connection, result, report, settle)
        if not isinstance(outcome, Failed | Cancelled):
            raise
        result = job, performer.refused(job, outcome, refusal, report, pause)
        written = settle([result])
    report.results.append(result)
    return written


def settle_ended(
    performer: Performer,
    connection: Connection,
    jobs: Iterable[ClaimedJob],
    report: Report,
    settle: Callable[[Sequence[Result]], object],
    *,
    counted: int,
) -> None:
    """Ask the archive once more to take jobs that have ended.

    :param jobs: as they were claimed.
    :param counted: 0 if the claim has counted an attempt more than they have had.
    """
    listed = list(jobs)
    errors = performer.store.errors(connection, listed) if listed else {}
    for job in listed:
        outcome, pause = ended_as(errors.get(job.job_id) or "")
        ended = replace(outcome, counted=counted)
        performer.ended(connection, job, ended, report)
        settle_apart(performer, connection, (job, ended), report, settle, pause=2 * pause)
