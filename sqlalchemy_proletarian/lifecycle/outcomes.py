"""How an attempt of a job ends: small values, decided here and written by the store.

Whether a failed attempt is retried is decided in :func:`outcome_of`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from ..errors import JobCancelledError, JobInterruptedError, WorkerDiedError
from ..models.values import Status
from ..retry import Discard, RetryAfter, RetryStrategy, Snooze

MAX_ERROR_LENGTH: Final = 32_768
"""Characters of a traceback that are kept. The last ones are kept, because they name the error."""

FormatFunction: TypeAlias = Callable[[BaseException], str | None]
"""Called with the error of an attempt; returns the text to keep, None for no text."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler returned: the job is archived, with the text of its result if that is kept."""

    result: str | None = None
    name = "success"
    status = Status.SUCCESS
    counted = 1
    error = None


@dataclass(frozen=True, slots=True)
class Failed:
    """No retry is left: the job is archived with its error; None keeps the error of the row."""

    error: str | None
    counted: int = 1
    name = "failure"
    status = Status.FAILURE


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The job was cancelled: it is archived with its error; None keeps the error of the row."""

    error: str | None
    counted: int = 1
    name = "cancelled"
    status = Status.CANCELLED


@dataclass(frozen=True, slots=True)
class Retried:
    """The attempt failed and counts; the job runs again at ``process_at``."""

    process_at: datetime
    error: str
    name = "retried"
    counted = 1


@dataclass(frozen=True, slots=True)
class Refused:
    """The job ended, but the archive rejected its row; it is moved again at ``process_at``.

    ``error`` and ``counted`` are those of the outcome that could not be archived.
    """

    process_at: datetime
    error: str | None
    counted: int
    ended_as: str
    ended_at: datetime
    refusal: str
    name = "refused"


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The job was rescheduled to ``process_at`` by its handler; the attempt does not count."""

    process_at: datetime
    name = "snoozed"
    counted = 0
    error = None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The attempt was interrupted and does not count; the job is due again as it was."""

    process_at = None
    name = "interrupted"
    counted = 0
    error = None


Outcome: TypeAlias = Succeeded | Failed | Cancelled | Retried | Refused | Snoozed | Interrupted

SUCCEEDED: Final = Succeeded()
INTERRUPTED: Final = Interrupted()


def outcome_of(
    error: Exception,
    *,
    attempts: int,
    strategy: RetryStrategy | None,
    now: datetime,
    text: Callable[[BaseException], str],
) -> Outcome:
    """Return the outcome of an attempt that raised ``error``.

    :param attempts: the number of attempts, including this one.
    :param strategy: the retry strategy of the job's type; None if it has none.
    :param text: returns the text to keep of an error.
    """
    if isinstance(error, JobInterruptedError):
        return INTERRUPTED
    if isinstance(error, JobCancelledError):
        return Cancelled(text(error))
    if isinstance(error, Snooze):
        return Snoozed(now + error.delay)
    if isinstance(error, Discard | WorkerDiedError):
        return Failed(text(error))
    delay = strategy.delay_after(attempts) if strategy and strategy.allows(error) else None
    if isinstance(error, RetryAfter) and (strategy is None or delay is not None):
        delay = error.delay
    if delay is None:
        return Failed(text(error))
    return Retried(now + delay, text(error))


def error_text(error: BaseException) -> str:
    """Return the traceback as text that every database can store, cut at its start if too long."""
    return storable("".join(traceback.format_exception(error)).rstrip())


def storable(text: str) -> str:
    """Return text that every database can store, cut at its start if too long."""
    text = text.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_ERROR_LENGTH else "…" + text[-MAX_ERROR_LENGTH:]
