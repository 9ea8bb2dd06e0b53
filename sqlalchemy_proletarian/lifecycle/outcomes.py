"""How a run of a job ends: a small value, decided here and written by the store.

So this module is the life of a job on one screen.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from ..errors import JobCancelledError, JobInterruptedError, WorkerDiedError
from ..models.values import Status
from ..retry import Discard, RetryAfter, RetryStrategy, Snooze

FIRST_PAUSE = timedelta(minutes=1)
"""How long a job that has ended waits when the archive refuses its row for the first time."""
LONGEST_PAUSE = timedelta(hours=1)

MAX_ERROR_LENGTH = 32_768
"""Characters of a traceback that are kept; the end of it says what happened."""

FormatFunction: TypeAlias = Callable[[BaseException], str | None]
"""Called with the error of an attempt; returns what is kept of it, None for nothing."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler returned: to the archive."""

    status = Status.SUCCESS
    counted = 1
    error = None


@dataclass(frozen=True, slots=True)
class Failed:
    """No retry is left: to the archive, with the error; None keeps the one of the row."""

    error: str | None
    counted: int = 1
    status = Status.FAILURE


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody asked for the job's end: to the archive, with the error; None as for a failure."""

    error: str | None
    counted: int = 1
    status = Status.CANCELLED


@dataclass(frozen=True, slots=True)
class Retried:
    """The attempt failed and counts; the job runs again at ``process_at``."""

    process_at: datetime
    error: str
    counted = 1


@dataclass(frozen=True, slots=True)
class Refused:
    """The job has ended, and the archive refused its row: it is asked again at ``process_at``.

    ``error`` and ``counted`` are those of the outcome that could not be archived.
    """

    process_at: datetime
    error: str | None
    counted: int
    ended_as: str
    ended_at: datetime
    refusal: str


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The job was put off until ``process_at``; the attempt does not count."""

    process_at: datetime
    counted = 0
    error = None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The run was given up: the job is due again as it was, and the attempt does not count."""

    process_at = None
    counted = 0
    error = None


Outcome: TypeAlias = Succeeded | Failed | Cancelled | Retried | Refused | Snoozed | Interrupted

SUCCEEDED = Succeeded()
INTERRUPTED = Interrupted()


def outcome_of(
    error: Exception,
    *,
    attempts: int,
    strategy: RetryStrategy | None,
    now: datetime,
    text: Callable[[BaseException], str],
) -> Outcome:
    """Return how a run that raised ``error`` ends.

    :param attempts: runs made, this one included.
    :param strategy: what the job's type allows; None where nobody said anything.
    :param text: returns what is kept of an error.
    """
    if isinstance(error, JobInterruptedError):
        return INTERRUPTED
    if isinstance(error, JobCancelledError):
        return Cancelled(text(error))
    if isinstance(error, Snooze):
        return Snoozed(now + error.delay)
    if isinstance(error, Discard | WorkerDiedError):
        return Failed(text(error))
    delay = strategy.delay_after(attempts) if strategy else None
    if isinstance(error, RetryAfter) and (strategy is None or delay is not None):
        delay = error.delay
    if delay is None:
        return Failed(text(error))
    return Retried(now + delay, text(error))


def refused(
    outcome: Failed | Cancelled, refusal: str, now: datetime, ended_at: datetime | None
) -> Refused:
    """Return what becomes of a job that has ended, and whose row the archive refused.

    The pauses double, because the time since the job ended does.

    :param refusal: what the database said.
    :param ended_at: when the job ended; None if that is now.
    """
    ended_at = ended_at or now
    pause = min(max(now - ended_at, timedelta(0)) + FIRST_PAUSE, LONGEST_PAUSE)
    return Refused(
        now + pause, outcome.error, outcome.counted, outcome.status.value, ended_at, refusal
    )


def error_text(error: BaseException) -> str:
    """Return the traceback as text that any database stores, its end if it is very long."""
    return storable("".join(traceback.format_exception(error)).rstrip())


def storable(text: str) -> str:
    """Return text that any database stores, the end of what is very long."""
    text = text.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_ERROR_LENGTH else "…" + text[-MAX_ERROR_LENGTH:]
