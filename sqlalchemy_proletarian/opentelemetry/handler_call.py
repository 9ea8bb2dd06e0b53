"""The span of one call of a handler: when it ends, and when it is an error."""

from __future__ import annotations

from asyncio import CancelledError
from threading import Lock
from time import time_ns
from typing import Final

from opentelemetry.trace import Span, Status, StatusCode

from ..errors import JobCancelledError, JobInterruptedError, LeaseLostError
from ..retry import Snooze
from ..telemetry.observers import ObservedRun
from .metrics import is_failure
from .names import ERROR_TYPE, OUTCOME, type_of

_NO_FAILURE: Final = (
    Snooze,
    JobInterruptedError,
    JobCancelledError,
    LeaseLostError,
    CancelledError,
)
"""What a run may raise although its attempt has not failed."""

_MIXED: Final = "mixed"
"""The outcome of a call of a batch handler whose jobs have different ones."""


class HandlerCall:
    """The span of one call of a handler, which ends when the outcomes of all its jobs are known.

    :param runs: how many jobs it has.
    """

    def __init__(self, span: Span, runs: int) -> None:
        self._span = span
        self._left = runs
        self._lock = Lock()
        self._outcomes: set[str] = set()
        self._recorded: list[BaseException] = []
        self._returned_at: int | None = None

    @property
    def outcome(self) -> str:
        """The outcome of its jobs."""
        return next(iter(self._outcomes)) if len(self._outcomes) == 1 else _MIXED

    def returned(self, error: BaseException | None) -> None:
        """Note when the handler ended, and what it raised."""
        with self._lock:
            self._returned_at = time_ns()
            if self._left and error is not None and not isinstance(error, _NO_FAILURE):
                self._record(error)

    def decided(self, run: ObservedRun) -> bool:
        """Note the outcome of a job; return whether it was the last one."""
        with self._lock:
            self._outcomes.add(run.outcome)
            failed = is_failure(run.outcome) or run.outcome == "undone"
            if failed and run.error is not None and not isinstance(run.error, _NO_FAILURE):
                self._record(run.error)
            self._left -= 1
            if self._left:
                return False
            self._span.set_attribute(OUTCOME, self.outcome)
            self._span.end(self._returned_at)
            return True

    def _record(self, error: BaseException) -> None:
        if any(error is other for other in self._recorded):
            return
        self._recorded.append(error)
        self._span.record_exception(error)
        self._span.set_attribute(ERROR_TYPE, type_of(error))
        self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
