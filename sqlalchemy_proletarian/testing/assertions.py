"""Assertions on the jobs that are enqueued."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

from sqlalchemy.orm import Session, scoped_session

from ..handlers.handler import Handler
from ..models.defaults import Job
from ..models.mixins import JobMixin
from ..producer.options import JSON
from ..producer.sessions import immediate_session
from ..serializers.json_serializer import Serializer
from .enqueued_jobs import MODULE, EnqueuedJob, JobType, find_jobs, read
from .failure_messages import failure_message
from .matching import ANY_PAYLOAD, Wanted, differences, wanted_jobs

__tracebackhide__ = True  # pytest shows the line of the test instead

PayloadT = TypeVar("PayloadT")


@overload
def assert_enqueued(
    session: Session | scoped_session[Any],
    job_type: Handler[PayloadT, ..., Any],
    *,
    payload: PayloadT = ...,
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    count: int | None = ...,
    job_model: type[JobMixin] = ...,
    serializer: Serializer = ...,
    **columns: Any,
) -> list[EnqueuedJob[PayloadT]]: ...
@overload
def assert_enqueued(
    session: Session | scoped_session[Any],
    job_type: str | type[JobMixin] | None = ...,
    *,
    payload: Any = ...,
    queue: str | None = ...,
    process_at: datetime | None = ...,
    process_in: timedelta | None = ...,
    count: int | None = ...,
    job_model: type[JobMixin] = ...,
    serializer: Serializer = ...,
    **columns: Any,
) -> list[EnqueuedJob[Any]]: ...
def assert_enqueued(
    session: Session | scoped_session[Any],
    job_type: JobType = None,
    *,
    payload: Any = ANY_PAYLOAD,
    queue: str | None = None,
    process_at: datetime | None = None,
    process_in: timedelta | None = None,
    count: int | None = None,
    job_model: type[JobMixin] = Job,
    serializer: Serializer = JSON,
    **columns: Any,
) -> list[EnqueuedJob[Any]]:
    """Assert that jobs are enqueued, and return those that match.

    Only what is given is compared. The message of a failure shows the jobs that are enqueued
    instead, the most similar first.

    :param session: a Session or scoped_session, which is flushed. For an AsyncSession, use
        :func:`sqlalchemy_proletarian.testing.asyncio.assert_enqueued`.
    :param job_type: as for :func:`.enqueued`.
    :param payload: the payload. It is encoded and decoded first, so a typed object equals the
        payload that was enqueued. It may contain objects that are equal to others, such as
        ``unittest.mock.ANY``.
    :param queue: the name of the queue.
    :param process_at: when the job is due, an aware datetime: useful with a :class:`.FrozenClock`.
    :param process_in: how long after it was enqueued the job is due, a timedelta.
    :param count: how many jobs match; by default at least one.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param serializer: as for :func:`.enqueued`.
    :param columns: values of columns: ``priority``, ``unique_key``, ``attempts``, and those that
        the model adds.
    :raises AssertionError: if no job matches, or a different number than ``count``.
    :raises TypeError: if an argument is of the wrong type, or the model has no such column.
    :raises ValueError: if ``process_at`` is naive.

    Other errors are those of :func:`.enqueued`.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "assert_enqueued", module=MODULE)
    wanted = wanted_jobs(
        job_type,
        payload=payload,
        queue=queue,
        process_at=process_at,
        process_in=process_in,
        job_model=job_model,
        serializer=serializer,
        columns=columns,
    )
    return require(unit, wanted, count)


def assert_not_enqueued(
    session: Session | scoped_session[Any],
    job_type: JobType = None,
    *,
    payload: Any = ANY_PAYLOAD,
    queue: str | None = None,
    process_at: datetime | None = None,
    process_in: timedelta | None = None,
    job_model: type[JobMixin] = Job,
    serializer: Serializer = JSON,
    **columns: Any,
) -> None:
    """Assert that no such job is enqueued; by default, that no job is enqueued at all.

    :param session: a Session or scoped_session, which is flushed. For an AsyncSession, use
        :func:`sqlalchemy_proletarian.testing.asyncio.assert_not_enqueued`.
    :param job_type: as for :func:`.enqueued`.
    :param payload: the payload, as for :func:`assert_enqueued`.
    :param queue: the name of the queue.
    :param process_at: when the job is due, an aware datetime.
    :param process_in: how long after it was enqueued the job is due, a timedelta.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param serializer: as for :func:`.enqueued`.
    :param columns: values of columns, as for :func:`assert_enqueued`.
    :raises AssertionError: if a job matches.

    Other errors are those of :func:`assert_enqueued`.

    .. versionadded:: 0.1
    """
    unit = immediate_session(session, "assert_not_enqueued", module=MODULE)
    wanted = wanted_jobs(
        job_type,
        payload=payload,
        queue=queue,
        process_at=process_at,
        process_in=process_in,
        job_model=job_model,
        serializer=serializer,
        columns=columns,
    )
    require(unit, wanted, 0)


def require(session: Session, wanted: Wanted, count: int | None) -> list[EnqueuedJob[Any]]:
    """Return the jobs that match.

    :param count: how many there must be; None for at least one.
    :raises AssertionError: if there is another number.
    """
    found = find_jobs(session, wanted.job_type, None, wanted.model)
    views = [read(job, wanted.job_type, wanted.serializer) for job in found]
    matching = [view for view in views if not differences(wanted, view)]
    if len(matching) == count or (count is None and matching):
        return matching
    raise AssertionError(failure_message(session, wanted, count, matching))
