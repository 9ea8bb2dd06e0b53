"""Named events that a worker reports to ``logging`` and to a user-supplied callable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from ..callbacks import call_user_function
from .words import WORDS

LogFunction: TypeAlias = Callable[[str, Mapping[str, Any]], object]
"""A callable of (event name, event data). An exception that it raises is logged and suppressed."""

logger: logging.Logger = logging.getLogger("sqlalchemy_proletarian")

LEVELS: Mapping[str, int] = {
    "worker-starting": logging.INFO,
    "worker-stopping": logging.INFO,
    "worker-stopped": logging.INFO,
    "worker-stop-timed-out": logging.ERROR,
    "polling-for-jobs": logging.DEBUG,
    "polling-error": logging.ERROR,
    "clock-skew": logging.WARNING,
    "batch-split": logging.WARNING,
    "batch-undone": logging.WARNING,
    "listening-lost": logging.WARNING,
    "presence-lost": logging.WARNING,
    "worker-vanished": logging.WARNING,
    "recurring-enqueued": logging.DEBUG,
    "recurring-changed": logging.INFO,
    "recurring-error": logging.ERROR,
    "handling-job": logging.DEBUG,
    "job-finished": logging.INFO,
    "job-snoozed": logging.DEBUG,
    "job-interrupted": logging.WARNING,
    "job-cancelled": logging.WARNING,
    "job-timed-out": logging.WARNING,
    "lease-lost": logging.WARNING,
    "job-type-unknown": logging.WARNING,
    "archive-pruned": logging.INFO,
    "pruning-error": logging.ERROR,
    "partition-missing": logging.WARNING,
    "queue-paused": logging.INFO,
    "queue-resumed": logging.INFO,
    "archive-refused": logging.ERROR,
    "handle-job-exception": logging.WARNING,
    "retrying": logging.WARNING,
    "not-retrying": logging.ERROR,
    "retry-strategy-error": logging.ERROR,
    "failed-job-callback-error": logging.ERROR,
    "callback-error": logging.ERROR,
    "observer-error": logging.ERROR,
}
"""The name of each event, mapped to the level at which it is logged."""

_MESSAGES: Final = {event: f"{event}: %s" for event in LEVELS}
"""What is logged: services that group log records by their message keep the events apart."""


class Events:
    """Sends events to the logger ``sqlalchemy_proletarian`` and to a callable.

    Each item of an event's data is also an attribute of its log record, under the same name, for
    use by structured formatters.

    :param log: the user's callable, or None.
    :param context: data that is added to every event.
    """

    def __init__(self, log: LogFunction | None, **context: Any) -> None:
        self._log = log
        self._context = context
        self.is_enabled: Callable[[int], bool] = logger.isEnabledFor if log is None else _always
        """Returns whether an event of a level is logged or passed to a callable. Code that runs for
        each job asks first, because collecting the data of an event takes time."""

    def emit(self, event: str, error: BaseException | None = None, **data: Any) -> None:
        """Report an event.

        :param event: a key of :data:`LEVELS`.
        :param error: the exception that caused the event, if any.
        :param data: the event's data, in addition to the context.
        """
        level = LEVELS[event]
        everything = self._context | data
        if logger.isEnabledFor(level):
            details = " ".join(
                f"{name}={WORDS[name](value) if name in WORDS else value}"
                for name, value in everything.items()
            )
            logger.log(
                level,
                _MESSAGES[event],
                details,
                exc_info=error,
                extra={"event": event, **everything},
            )
        if self._log is not None:
            try:
                call_user_function(
                    self._log, event, everything | ({"error": error} if error else {})
                )
            except Exception:
                logger.exception("the log callable raised for the event %s", event)

    def call(self, function: Callable[..., object] | None, *args: object) -> object:
        """Call a user's callback and return its result.

        :param function: the callback, or None to do nothing.
        :return: what the callback returned; None if there is no callback or it raised. An exception
            is reported as the event ``callback-error``.
        """
        if function is None:
            return None
        try:
            return call_user_function(function, *args)
        except Exception as error:
            self.emit("callback-error", error)
            return None


def _always(_level: int) -> bool:
    return True
