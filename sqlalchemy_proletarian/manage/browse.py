"""Looking at jobs: lists with filters, page by page, and all about one job."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, Final, Literal

from sqlalchemy.orm import Session, scoped_session

from ..arguments import at_least_one
from ..clock import Clock, as_timedelta, require_aware, utcnow
from ..models.defaults import ArchivedJob, Job
from ..models.mixins import ArchivedJobMixin, JobMixin, RunningJobMixin
from ..models.values import Status
from ..producer.sessions import immediate_session
from .cursors import read_cursor, write_cursor
from .job_views import JobDetails, JobPage, JobState
from .reading import JobReading, Wanted

MAX_ROWS: Final = 100_000
"""How many rows one call of :func:`list_jobs` reads at most."""

MAX_ROWS_OF_TEXT: Final = 10_000
"""How many rows one call reads at most if it searches their texts."""


def list_jobs(
    session: Session | scoped_session[Any],
    *,
    status: str | Collection[str] = "queued",
    queue: str | None = None,
    job_type: str | None = None,
    older_than: timedelta | None = None,
    newer_than: timedelta | None = None,
    text: str | None = None,
    limit: int = 50,
    after: str | None = None,
    max_rows: int = MAX_ROWS,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    running_job_model: type[RunningJobMixin] | Literal["default"] | None = "default",
    clock: Clock = utcnow,
) -> JobPage:
    """Return a page of queued or of archived jobs.

    Queued jobs are ordered by queue and, in a queue, as workers claim them. Archived jobs are
    ordered by the time when they ended, the last one first. Pages are read by the indexes, and a
    call reads at most ``max_rows`` rows, however many there are: a search for few rows of a large
    archive may take several calls, which return pages that are not full.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.list_jobs``.
    :param status: the values of :class:`JobState` or of :class:`.Status`, one or several.
        "queued" (the default) means all of the former, "archived" all of the latter.
    :param queue: only jobs of this queue.
    :param job_type: only jobs of this type.
    :param older_than: only jobs that were enqueued, or have ended if they are archived, at least
        this long ago.
    :param newer_than: only jobs that were enqueued, or have ended, at most this long ago.
    :param text: only jobs whose encoded payload or error contains this text, in upper or lower
        case. A call then reads at most 10,000 rows.
    :param limit: the maximum number of jobs; 50 by default.
    :param after: the ``after`` of a page of the same list, to get the next page.
    :param max_rows: how many rows are read; 100,000 by default.
    :param job_model: the mapped class of the job table.
    :param archived_job_model: the mapped class of its archive.
    :param running_job_model: as for :func:`.running`. With None, and where there are no markers,
        jobs that run in transaction mode have the status "due".
    :param clock: returns the time as an aware datetime.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession, or an argument is of the wrong type.
    :raises ValueError: if a status is unknown or they are of both kinds, a number is less than 1,
        a duration is negative, or ``after`` is not from a page of this list.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "list_jobs", arguments="...")
    at_least_one("limit", limit)
    at_least_one("max_rows", max_rows)
    now = require_aware("clock()", clock())
    statuses, archived = _statuses(status)
    since = None if newer_than is None else now - as_timedelta("newer_than", newer_than)
    until = None if older_than is None else now - as_timedelta("older_than", older_than)
    reading = JobReading(unit, job_model, archived_job_model, running_job_model, now)
    wanted = Wanted(statuses, queue, job_type, since, until, text or None)
    if wanted.text is not None:
        max_rows = min(max_rows, MAX_ROWS_OF_TEXT)
    with reading.explained():
        listing = reading.archive(wanted) if archived else reading.queues(wanted)
        start = None if after is None else read_cursor(after, listing.order)
        rows = reading.page(listing, wanted, start, limit + 1, max_rows, archived=archived)
        following = rows[limit - 1] if len(rows) > limit else reading.end(listing, start, max_rows)
        position = None
        if following is not None:
            position = write_cursor([following._mapping[column.name] for column in listing.order])
        return JobPage(reading.listed(rows[:limit], archived=archived), position)


def get_job(
    session: Session | scoped_session[Any],
    job_id: Any,
    *,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    running_job_model: type[RunningJobMixin] | Literal["default"] | None = "default",
    clock: Clock = utcnow,
) -> JobDetails | None:
    """Return all about a queued or archived job.

    :param session: a Session or scoped_session; for an AsyncSession use
        ``sqlalchemy_proletarian.asyncio.get_job``.
    :param job_id: the id of the job.
    :param job_model: the mapped class of the job table.
    :param archived_job_model: the mapped class of its archive.
    :param running_job_model: as for :func:`.running`.
    :param clock: returns the time as an aware datetime.
    :return: None if there is no such job.
    :raises DatabaseNotReadyError: as :func:`.enqueue_many`.
    :raises TypeError: if ``session`` is an AsyncSession.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "get_job", arguments="job_id")
    now = require_aware("clock()", clock())
    reading = JobReading(unit, job_model, archived_job_model, running_job_model, now)
    with reading.explained():
        # In this order: a job that ends between the two statements is found in the archive.
        for model, archived in ((job_model, False), (archived_job_model, True)):
            found = reading.details(model, job_id, archived=archived)
            if found is not None:
                return found
    return None


def _statuses(given: str | Collection[str]) -> tuple[Sequence[str] | None, bool]:
    """Return the wanted statuses, None for all, and whether they are those of the archive."""
    if isinstance(given, str) and given in ("queued", "archived"):
        return None, given == "archived"
    names = [given] if isinstance(given, str) else list(given)
    archived = [name in set(Status) for name in names]
    for name, is_archived in zip(names, archived, strict=True):
        if not is_archived and name not in set(JobState):
            known = ", ".join([*JobState, *Status])
            msg = (
                f"there is no status {name!r}: use 'queued', 'archived', or one or more of {known}"
            )
            raise ValueError(msg)
    if not names or any(archived) != all(archived):
        msg = (
            f"the statuses must be those of queued jobs ({', '.join(JobState)}) or those of "
            f"archived jobs ({', '.join(Status)}), not {given!r}: make two calls"
        )
        raise ValueError(msg)
    return [str(name) for name in names], archived[0]
