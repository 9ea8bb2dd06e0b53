"""What is wrong with the queues, in words, the worst first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from ..manage import JobCounts, Running, Stats
from .formats import number, span

_STUCK: Final = timedelta(minutes=1)
"""How long jobs are due until a queue is stuck or late."""
_LATE: Final = timedelta(minutes=5)
_FAILING: Final = 0.1
"""The share of failures among the jobs that ended, from which on a type is failing."""
_TICK_LATE: Final = timedelta(minutes=2)


@dataclass(frozen=True)
class Problem:
    """Something that somebody should look at."""

    text: str
    filters: Mapping[str, str]
    """The list of jobs to look at, or empty."""
    is_bad: bool = True
    """Whether jobs do not run or fail; otherwise it may be intended."""


def find_problems(
    stats: Stats,
    running: Sequence[Running],
    paused: Mapping[str, Any],
    recurring: Sequence[Any],
    now: datetime,
) -> list[Problem]:
    """Return what is wrong, the worst first."""
    found = [
        *_crashed(running),
        *_queues(stats, paused),
        *_failing(stats),
        *_refused(stats),
        *_ticks(recurring, now),
    ]
    return sorted(found, key=lambda problem: not problem.is_bad)


def _crashed(running: Sequence[Running]) -> Iterator[Problem]:
    crashed = [run for run in running if run.alive is False]
    if crashed:
        names = ", ".join(sorted({run.worker or "" for run in crashed}))
        yield Problem(
            f"The worker {names} has crashed while it ran {_jobs(len(crashed))}.",
            {"state": "running"},
        )


def _queues(stats: Stats, paused: Mapping[str, Any]) -> Iterator[Problem]:
    for name, counts in stats.queues.items():
        if not counts.due or counts.oldest_due is None:
            continue
        more = "at least " if name in stats.incomplete else ""
        due = f"{more}{_jobs(counts.due)} due"
        filters = {"state": "due", "queue": name}
        if name in paused:
            yield Problem(f"“{name}” is paused, with {due}.", filters, is_bad=False)
        elif counts.oldest_due >= _STUCK and not counts.running and not _ended(counts):
            yield Problem(
                f"“{name}” is stuck: {due}, the oldest for {span(counts.oldest_due)}, and nothing "
                f"runs. Is a worker for this queue running?",
                filters,
            )
        elif counts.oldest_due >= _LATE:
            yield Problem(
                f"“{name}” is late: {due}, the oldest for {span(counts.oldest_due)}."
                f"{_time_to_finish(counts)}",
                filters,
            )


def _time_to_finish(counts: JobCounts) -> str:
    if counts.throughput <= 0:
        return ""
    seconds = counts.due / counts.throughput
    return f" At the present rate they take {span(timedelta(seconds=seconds))}."


def _failing(stats: Stats) -> Iterator[Problem]:
    minutes = span(stats.at - stats.since)
    for counts in stats.job_types:
        ended = counts.succeeded + counts.failed
        if counts.failed and counts.failed >= _FAILING * ended:
            yield Problem(
                f"{counts.job_type} fails: {number(counts.failed)} of {_jobs(ended)} in the last "
                f"{minutes}.",
                {"state": "failure", "type": counts.job_type or "", "queue": counts.queue},
            )


def _refused(stats: Stats) -> Iterator[Problem]:
    refused = sum(counts.refused for counts in stats.job_types)
    if refused:
        yield Problem(
            f"{_jobs(refused)} ended, but the archive rejects the rows.", {"state": "refused"}
        )


def _ticks(recurring: Sequence[Any], now: datetime) -> Iterator[Problem]:
    for row in recurring:
        if not row.paused and row.next_at is not None and now - row.next_at > _TICK_LATE:
            yield Problem(
                f"{row.name} should have been enqueued {span(now - row.next_at)} ago: no worker "
                f"with recurring jobs is running.",
                {},
            )


def _ended(counts: JobCounts) -> int:
    return counts.succeeded + counts.failed + counts.cancelled


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{number(count)} jobs"
