"""Logging of the command: one line on stderr for each event, as text or as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import click

from ...telemetry.words import short
from .target import described

logger: logging.Logger = logging.getLogger("sqlalchemy_proletarian.cli")

_COLOURS: Final = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}
_OUTCOMES: Final = {"success": "green", "failure": "red", "cancelled": "yellow"}
_OF_EVERY_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def set_up_logging(level: str, form: Literal["text", "json"], *, debug: bool) -> bool:
    """Log to stderr, unless the program has set up logging itself; return whether it has not.

    :param debug: whether lines of text are followed by tracebacks of failed jobs, too.
    """
    root = logging.getLogger()
    if root.handlers:
        return False
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JSONLines())
    else:
        handler.setFormatter(TextLines(debug=debug, colours=_has_colours()))
    root.addHandler(handler)
    root.setLevel(level)
    return True


def _has_colours() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


class TextLines(logging.Formatter):
    """One line: time, level, process, event, and the values of the event."""

    def __init__(self, *, debug: bool, colours: bool) -> None:
        super().__init__()
        self._debug = debug
        self._paint: Callable[..., str] = click.style if colours else _plain

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; for other loggers than the library's with the traceback, if any."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        level = self._paint(f"{record.levelname:<7}", fg=_COLOURS.get(record.levelno))
        start = f"{at} {level} [{record.process}]"
        event = getattr(record, "event", None)
        if event is None:
            line = f"{start} {record.name}: {record.getMessage()}"
            if record.name == logger.name:
                line = f"{start} {record.getMessage()}"
            return line + self._traceback(record)
        if event == "job-finished":
            return f"{start} {event} {self._finished(vars(record))}"
        details = record.getMessage().removeprefix(f"{event}: ")
        details = details.removeprefix(f"worker={getattr(record, 'worker', '')}").strip()
        line = f"{start} {' '.join(filter(None, (event, _printable(details))))}"
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return line
        line = f"{line}: {_printable(_described(record, error))}"
        return line + self._traceback(record) if self._debug else line

    def _finished(self, job: Mapping[str, Any]) -> str:
        """Return what became of a job, in columns: there are as many lines as jobs."""
        outcome = self._paint(f"{job['outcome']:<9}", fg=_OUTCOMES.get(job["outcome"]))
        took = short(job["duration"]) if "duration" in job else "-"
        waited = short(job["wait"]) if "wait" in job else "-"
        text = f"{took:>6}  waited {waited:<6}  {job['job_type']} {job['job_id']}"
        text += f" attempt {job['attempt']}"
        if "queue" in job:
            text += f" queue {job['queue']}"
        if "headers" in job:
            text += f" headers {job['headers']}"
        return f"{outcome} {_printable(text)}"

    def _traceback(self, record: logging.LogRecord) -> str:
        return f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""


class JSONLines(logging.Formatter):
    """One JSON object: time, level, logger, process, message, and what ``extra`` contains."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        data: dict[str, Any] = {
            "time": at,
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        more = {name: v for name, v in vars(record).items() if name not in _OF_EVERY_RECORD}
        if record.exc_info and record.exc_info[1] is not None:
            more["error"] = _described(record, record.exc_info[1])
            more["traceback"] = self.formatException(record.exc_info)
        return json.dumps(more | data, default=_as_text)


def _described(record: logging.LogRecord, error: BaseException) -> str:
    """Return an error in one line; the place may be in an installed package if a job failed."""
    return described(error, installed=hasattr(record, "job_type"))


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _plain(text: str, fg: str | None = None) -> str:  # noqa: ARG001 - as click.style
    return text


def _printable(text: str) -> str:
    """Return a text on one line: names of jobs are anybody's."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
