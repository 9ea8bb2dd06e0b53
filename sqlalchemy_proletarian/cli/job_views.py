"""How a list of jobs and the page of a job look."""

from __future__ import annotations

import json
from datetime import datetime
from textwrap import indent
from typing import Any, Final

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..manage import JobDetails, JobPage, ListedJob
from .filters import Filters
from .output import ID, NUMBER, STYLES, TIME, ago, at, console, print_json, shown, table

_MOST: Final = 20_000
"""How many characters of a payload or an error are shown."""

_WITH_ERROR: Final = 110
"""The width of a terminal from which on a list shows errors."""


def job_json(job: ListedJob) -> dict[str, Any]:
    """Return a job of a list as a JSON object."""
    return dict(vars(job))


def print_page(page: JobPage, filters: Filters, now: datetime, *, as_json: bool) -> None:
    """Print a list of jobs."""
    if as_json:
        print_json({"jobs": [job_json(job) for job in page.jobs], "after": page.after})
        return
    out = console()
    if page.jobs:
        out.print(_list(page, now, out.width))
    elif page.after is None:
        out.print(f"No such jobs{filters}.")
    if page.after is not None:
        full = len(page.jobs) == filters.limit
        what = "More" if full else "The search stopped after 100,000 rows. To continue"
        out.print(Text(f"{what}: --after {page.after}", "dim"), soft_wrap=True)


def _list(page: JobPage, now: datetime, width: int) -> Table:
    archived = page.jobs[0].is_archived
    queues = {job.queue for job in page.jobs}
    errors = width >= _WITH_ERROR and any(job.error for job in page.jobs)
    made = table(
        ("Job", ID),
        ("Status", {"no_wrap": True}),
        "Type",
        *(["Queue"] if len(queues) > 1 else []),
        ("Att.", NUMBER),
        ("Ended" if archived else "Due", TIME),
        *([("Error", {})] if errors else []),
        title=None if len(queues) > 1 else f"Queue {next(iter(queues))}",
    )
    for job in page.jobs:
        status = "retried" if job.retried_at else job.status
        cells = [shown(job.job_id), shown(status, STYLES.get(status, "")), shown(job.job_type)]
        if len(queues) > 1:
            cells.append(shown(job.queue))
        cells.append(shown(job.attempts))
        cells.append(shown(ago(job.finished_at or job.process_at, now)))
        if errors:
            cells.append(shown(job.error or "", "red"))
        made.add_row(*cells)
    return made


def print_job(found: JobDetails, now: datetime, *, as_json: bool) -> None:
    """Print all about a job."""
    if as_json:
        print_json(
            job_json(found.job)
            | {
                "payload": found.payload,
                "error": found.error,
                "deaths": found.deaths,
                "refusal": found.refusal,
                "running": None if found.running is None else vars(found.running),
                "headers": found.headers,
                "waits_for": found.waits_for,
                "result": found.result,
                "columns": found.columns,
            }
        )
        return
    out: Console = console()
    out.print(_facts(found, now))
    out.print(_block("Payload", _pretty(found.payload)), soft_wrap=True)
    if found.result is not None:
        out.print(_block("Result", _pretty(found.result)), soft_wrap=True)
    for name, text in (("Error", found.error), ("Refused by the archive", found.refusal)):
        if text:
            out.print(_block(name, text, "red"), soft_wrap=True)


def _facts(found: JobDetails, now: datetime) -> Table:
    job = found.job
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")

    def add(name: str, value: Any, style: str = "") -> None:
        if value is not None and value != "":
            made.add_row(name, value if isinstance(value, Text) else shown(value, style))

    def when(time: datetime | None) -> str:
        return "" if time is None else f"{at(time)}  ({ago(time, now)})"

    add("Job", job.job_id, "bold")
    add("Type", job.job_type)
    add("Queue", f"{job.queue}, priority {job.priority}")
    add("Status", job.status, STYLES.get(job.status, ""))
    add("Unique key", job.unique_key)
    add("Attempts", job.attempts)
    add("Crashes", found.deaths or None)
    add("Enqueued", when(job.enqueued_at))
    run = found.running
    add("Lease until" if run is not None and run.lease_until else "Due", when(job.process_at))
    if run is not None:
        add("Running", f"attempt {run.attempt}, since {when(run.started_at) or 'unknown'}")
        add("Worker", run.worker)
        if run.alive is False:
            add("", "the worker has crashed", "red")
    add("Ended", when(job.finished_at))
    if job.retried_at is not None:
        add("Retried", f"{when(job.retried_at)}, as a new job")
    add("Waits for", found.waits_for)
    for name, value in (found.headers or {}).items():
        add(f"Header {name}", value if isinstance(value, str) else json.dumps(value))
    for name, value in found.columns.items():
        add(name, value)
    return made


def _block(title: str, text: str, style: str = "") -> Group:
    cut = len(text) - _MOST
    if cut > 0:
        text = f"{text[:_MOST]}\n… {cut:,} more characters: --json prints them"
    return Group(Text(f"\n{title}", "dim"), shown(indent(text.rstrip(), "  "), style))


def _pretty(payload: str) -> str:
    try:
        return json.dumps(json.loads(payload), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return payload
