"""The images of docs/images: ``python -m tests.acceptance.screenshots`` writes them again."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from html import unescape
from typing import Any
from unittest.mock import patch
from uuid import UUID

from rich.console import Console, RenderableType
from rich.text import Text

from sqlalchemy_proletarian.cli import job_views, queues, status_views
from sqlalchemy_proletarian.cli.worker.logs import TextLines
from sqlalchemy_proletarian.manage import JobCounts, JobPage, ListedJob, Running, Stats

from .programs import ROOT

IMAGES = ROOT / "docs" / "images"
COLUMNS = 112
LOG_COLUMNS = 148

NOW = datetime(2026, 5, 1, 12).astimezone()
"""Noon, wherever the images are made."""

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


def _id(n: int) -> UUID:
    return UUID(f"01a22545-d6d6-74e4-8f12-aae349a97{n:03x}")


def _status() -> RenderableType:
    types = [
        JobCounts("bulk", "newsletter", due=1500, oldest_due=40 * SECOND, failed=3),
        JobCounts("critical", "charge-card", retrying=4, succeeded=812, throughput=2.7),
        JobCounts("default", "import-catalogue", running=1, succeeded=1),
        JobCounts(
            "default",
            "send-receipt",
            due=2,
            scheduled=4,
            oldest_due=SECOND,
            succeeded=9120,
            throughput=30.4,
        ),
    ]
    default = JobCounts(
        "default",
        None,
        due=2,
        running=1,
        scheduled=4,
        oldest_due=SECOND,
        succeeded=9121,
        throughput=30.4,
    )
    by_queue = {"bulk": types[0], "critical": types[1], "default": default}
    where: dict[str, Any] = {"worker": "web-1 b1a0", "alive": True, "started_at": NOW}
    runs = [
        Running(
            *(_id(12), "default", "import-catalogue", 1), **where, batch_size=1, lease_until=None
        )
    ]
    pause = {"since": NOW - 4 * MINUTE, "by": "Ada", "reason": "the mail server is down"}
    stats = Stats(NOW, NOW - 5 * MINUTE, types, by_queue)
    found = status_views.Status("postgresql://shop@db/shop", stats, runs, {"bulk": pause}, 1, None)
    return status_views.view(found, COLUMNS)


def _jobs() -> RenderableType:
    errors = ["no such template: 'spring-sale'", "no such template: 'spring-sale'", "no address"]
    ended = [NOW - n * MINUTE for n in (1, 4, 190)]
    jobs = [
        ListedJob(
            *(_id(n), "bulk", "newsletter", "failure", 3, 5, at, at, None, at),
            retried_at=NOW if n == 2 else None,
            error=f"ValueError: {error}",
        )
        for n, (at, error) in enumerate(zip(ended, errors, strict=True))
    ]
    return job_views._list(JobPage(jobs, None), NOW, COLUMNS)


def _log() -> RenderableType:
    card = {"job_id": _id(3), "job_type": "charge-card", "attempt": 1, "queue": "critical"}
    mail = {"job_id": _id(4), "job_type": "send-receipt", "attempt": 1, "queue": "default"}
    failed = "job_id={job_id} job_type={job_type} attempt=1 wait=1.9ms duration=1.5s".format(**card)
    retry = failed + " process_at=2026-05-01T12:01:00Z"
    took = {"duration": 0.0124, "wait": 0.0031, "outcome": "success"}
    error = TimeoutError("the bank does not answer")
    lines = [
        _line(logging.INFO, "job-finished", "", mail | took),
        _line(logging.WARNING, "handle-job-exception", failed, card, error),
        _line(logging.WARNING, "retrying", retry, card),
        _line(logging.INFO, "job-finished", "", card | took | {"attempt": 2, "wait": 2.1}),
    ]
    return Text.from_ansi("\n".join(lines))


def _line(
    level: int,
    event: str,
    text: str,
    data: Mapping[str, object],
    error: Exception | None = None,
) -> str:
    values = {
        "msg": f"{event}: {text}",
        "event": event,
        "levelno": level,
        "process": 4711,
        **data,
        "levelname": logging.getLevelName(level),
        "created": NOW.timestamp(),
        "exc_info": None if error is None else (type(error), error, None),
    }
    return TextLines(debug=False, colours=True).format(logging.makeLogRecord(values))


def images() -> dict[str, str]:
    """Return the images by their names."""
    made = {"status": _status, "jobs-list": _jobs, "worker-log": _log}
    with patch.object(queues, "utcnow", lambda: NOW):
        return {name: _svg(name, make()) for name, make in made.items()}


def _svg(name: str, shown: RenderableType) -> str:
    width = LOG_COLUMNS if isinstance(shown, Text) else COLUMNS
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(shown)
    return console.export_svg(title="", unique_id=name)


def words_of(svg: str) -> list[str]:
    """Return the words of an image; what is around them depends on the release of rich."""
    return unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))).split()


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, svg in images().items():
        (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")
