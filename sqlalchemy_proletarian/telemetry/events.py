"""What a worker tells about itself: named events, to ``logging`` and to a callable of yours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ..callbacks import tamed

LogFunction: TypeAlias = Callable[[str, Mapping[str, Any]], object]
"""Called with an event's name and its data; what it raises is logged and goes no further."""

logger = logging.getLogger("sqlalchemy_proletarian")

LEVELS: Mapping[str, int] = {
    "worker-starting": logging.INFO,
    "worker-stopping": logging.INFO,
    "worker-stopped": logging.INFO,
    "worker-stop-timed-out": logging.ERROR,
    "polling-for-jobs": logging.DEBUG,
    "polling-error": logging.ERROR,
    "clock-skew": logging.WARNING,
    "batch-undone": logging.WARNING,
    "listening-lost": logging.WARNING,
    "presence-lost": logging.WARNING,
    "worker-vanished": logging.WARNING,
    "handling-job": logging.DEBUG,
    "job-finished": logging.DEBUG,
    "job-snoozed": logging.INFO,
    "job-interrupted": logging.INFO,
    "job-cancelled": logging.INFO,
    "job-timed-out": logging.WARNING,
    "lease-lost": logging.WARNING,
    "job-type-unknown": logging.WARNING,
    "archive-refused": logging.ERROR,
    "handle-job-exception": logging.WARNING,
    "retrying": logging.WARNING,
    "not-retrying": logging.ERROR,
    "retry-strategy-error": logging.ERROR,
    "failed-job-callback-error": logging.ERROR,
    "callback-error": logging.ERROR,
}
"""Every event and the level at which it is logged."""


class Events:
    """Sends events to the logger ``sqlalchemy_proletarian`` and to ``log``.

    The data of an event are attributes of its log record, each with the prefix ``job_`` or
    ``worker_`` that it has in the data, so that a structured formatter finds them.

    :param log: the user's callable, or None.
    :param context: data that every event carries.
    """

    def __init__(self, log: LogFunction | None, **context: Any) -> None:
        self._log = log
        self._context = context

    def wants(self, event: str) -> bool:
        """Tell whether anybody listens, so that a busy loop need not gather data for nobody."""
        return self._log is not None or logger.isEnabledFor(LEVELS[event])

    def emit(self, event: str, error: BaseException | None = None, **data: Any) -> None:
        """Report ``event``; ``error`` is the exception that goes with it, if any."""
        level = LEVELS[event]
        everything = self._context | data
        if logger.isEnabledFor(level):
            details = " ".join(f"{name}={value}" for name, value in everything.items())
            logger.log(
                level,
                "%s: %s",
                event,
                details,
                exc_info=error,
                extra={"event": event, **everything},
            )
        if self._log is not None:
            try:
                tamed(self._log, event, everything | ({"error": error} if error else {}))
            except Exception:
                logger.exception("the log callable raised for the event %s", event)

    def call(self, function: Callable[..., object] | None, *args: object) -> object:
        """Call a callback of the user's, if there is one; what it raises is reported."""
        if function is None:
            return None
        try:
            return tamed(function, *args)
        except Exception as error:
            self.emit("callback-error", error)
            return None
